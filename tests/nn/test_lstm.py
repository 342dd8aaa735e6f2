"""x"""
from __future__ import annotations
from collections.abc import Iterator
from typing import Any
import pytest
import torch
from torch import Tensor, nn
from tune_stn.nn.lstm import ResponseLSTM
from tune_stn.testing import Case, ResponseLayerContract


class TestResponseLSTM(ResponseLayerContract):
    converted = ResponseLSTM

    @pytest.fixture(autouse=True, params=[{}, {"num_layers": 2, "bias": False, "batch_first": True}, {"num_layers":2,"bidirectional": True}], ids=str)
    def chosen(self, request: pytest.FixtureRequest) -> None:
        self.settings = request.param

    def base(self) -> nn.Module:
        return nn.LSTM(3, 5, **self.settings)

    def inputs(self, batch: int) -> Tensor:
        return torch.randn(batch, 4, 3)

    def call(self, layer: nn.Module, inputs: Tensor) -> Tensor:
        assert isinstance(layer, nn.LSTM)
        outputs, (hidden, cell) = layer(inputs if layer.batch_first else inputs.transpose(0, 1))
        if not layer.batch_first:
            outputs = outputs.transpose(0, 1)
        return torch.cat([part.flatten(1) for part in (outputs, hidden.transpose(0, 1), cell.transpose(0, 1))], 1)

    def effective_weights(self, case: Case, row: Tensor) -> Any:
        return None
