"""What all tests share."""

from __future__ import annotations

import torch

# Tests work on tiny tensors: where several processes share the cores, waiting for a second thread took ten times as long.
torch.set_num_threads(1)
