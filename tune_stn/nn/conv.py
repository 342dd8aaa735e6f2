"""The response form of `nn.Conv1d`, `nn.Conv2d` and `nn.Conv3d`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tune_stn.nn.response import ResponseLayer, ResponseSize
from tune_stn.nn.slot import Slot

_CONVOLUTION = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


class ResponseConv(ResponseLayer):
    """A convolution with a response per output channel; inputs `(batch, in, ...)`, outputs `(batch, out, ...)`."""

    def __init__(
        self,
        base: nn.Conv1d | nn.Conv2d | nn.Conv3d,
        inputs: int,
        size: ResponseSize | None,
        slot: Slot,
        generator: torch.Generator,
    ) -> None:
        super().__init__(base, inputs, size, slot, generator)
        self.stride = base.stride
        self.dilation = base.dilation
        self.groups = base.groups
        self.grouped = base.groups > 1
        self.padding = base.padding
        self.padding_mode = base.padding_mode
        # F.pad takes the last axis first; only the modes that F.conv lacks need it.
        self._around = list(base._reversed_padding_repeated_twice)

    def product(self, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding = self.padding
        if self.padding_mode != "zeros":
            inputs, padding = F.pad(inputs, self._around, mode=self.padding_mode), (0,) * (weight.dim() - 2)
        convolution = _CONVOLUTION[weight.dim()]
        return convolution(inputs, weight, bias, self.stride, padding, self.dilation, self.groups)

    def expand_units(self, inner: Tensor) -> Tensor:
        up = self.response_up.view(*self.response_up.shape, *[1] * (self.weight.dim() - 2))
        return _CONVOLUTION[self.weight.dim()](inner, up)

    def over_units(self, values: Tensor, outputs: Tensor) -> Tensor:
        return values.view(*values.shape, *[1] * (outputs.dim() - 2))
