"""What all tests share."""

from __future__ import annotations

import torch

# Tests work on tiny tensors: where processes share the cores, waiting for a second thread made them ten times as slow.
torch.set_num_threads(1)
