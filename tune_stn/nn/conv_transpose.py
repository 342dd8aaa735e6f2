"""The response form of `nn.ConvTranspose1d`, `nn.ConvTranspose2d` and `nn.ConvTranspose3d`."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from tune_stn.nn.conv import ResponseConv

_CONVOLUTION: dict[int, Any] = {3: F.conv_transpose1d, 4: F.conv_transpose2d, 5: F.conv_transpose3d}
_Transposed: Any = nn.modules.conv._ConvTransposeNd


class ResponseConvTranspose(ResponseConv):
    """A transposed convolution with a response per output channel; its weight is `(in, out / groups, ...)`."""

    kernel_size: tuple[int, ...]
    output_padding: Sequence[int]

    def forward(self, inputs: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """Outputs of the spatial size `output_size`, where a stride leaves a choice, else as `output_padding` says."""
        if output_size is None:
            return super().forward(inputs)
        sized = copy.copy(self)
        sized.output_padding = _Transposed._output_padding(
            self, inputs, output_size, self.stride, self.padding, self.kernel_size, len(self.stride), self.dilation
        )
        return sized.forward(inputs)

    def product(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        outputs: Tensor = _CONVOLUTION[weight.dim()](
            inputs, weight, bias, self.stride, self.padding, self.output_padding, self.groups, self.dilation
        )
        return outputs

    def by_unit(self, weight: Tensor) -> Tensor:
        groups = weight.view(self.groups, -1, *weight.shape[1:])
        return groups.transpose(1, 2).flatten(0, 1)

    def as_weight(self, by_unit: Tensor) -> Tensor:
        groups = by_unit.view(self.groups, -1, *by_unit.shape[1:]).transpose(1, 2)
        # In groups, each input has to be given its own units, even where all inputs have the same.
        return groups.expand(-1, self.weight.shape[0] // self.groups, *groups.shape[2:]).flatten(0, 1)
