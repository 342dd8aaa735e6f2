"""Where the batch is: what cannot be told is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

from tune_stn.nn import self_tuning
from tune_stn.space import SearchSpace, Uniform

SPACE = SearchSpace({"rate": Uniform(0, 0.9)})


def block(*, batch_first: bool) -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, batch_first=batch_first)


def test_sequence_first_transformer_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"batch_first=False.*make it with batch_first=True"):
        self_tuning(block(batch_first=False), SPACE, start={"rate": 0.1}, dropout={"dropout": "rate"})


def test_they_may_have_hyperparameters_per_batch_or_no_response() -> None:
    shared = SearchSpace({"rate": Uniform(0, 0.9)}, per_batch=["rate"])
    for space, response in ((shared, "gate"), (SPACE, None)):
        net = self_tuning(
            block(batch_first=False), space, start={"rate": 0.1}, dropout={"dropout": "rate"}, response=response
        )
        assert net(torch.randn(5, 3, 8)).shape == (5, 3, 8)


def test_a_plain_lstm_carries_the_tangents_of_other_layers() -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(3, 4)
            self.drop = nn.Dropout()
            self.lstm = nn.LSTM(4, 4, batch_first=True)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = self.lstm(self.drop(self.embed(inputs)))[0]
            return output

    net = self_tuning(
        Tagger(), SPACE, start={"rate": 0.1}, dropout={"drop": "rate"}, response={"embed": "full"}, centred=True
    )
    assert net.conversion.plain["lstm"] == "no response asked for"
    for parameter in net.base_parameters():
        parameter.requires_grad_(False)
    with torch.no_grad():
        for parameter in net.response_parameters():
            parameter.normal_()
    with forward_ad.dual_level(), net.using(net.perturbed_sample(2, linearise=True)):
        tangent = forward_ad.unpack_dual(net(torch.randn(2, 5, 3))).tangent
    assert tangent is not None
    assert tangent.abs().sum() > 0
