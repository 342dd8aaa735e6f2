"""An example's output depends on its own hyperparameters alone, in layers of every family.

The batch is as long as every other axis, so that a layer which takes another one for the examples would be seen.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tune_stn.nn import self_tuning
from tune_stn.space import Normal, Sample, SearchSpace

N = 4


class FirstOutput(nn.Module):
    """A layer that gives a tuple, or wants its input three times."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Any:
        return self.layer(x, x, x)[0] if isinstance(self.layer, nn.MultiheadAttention) else self.layer(x)[0]


def layers() -> dict[str, tuple[nn.Module, Tensor]]:
    """Each with its inputs, of which every axis is as long."""
    convolutions = {
        kind.__name__: (kind(N, N, 3, padding=1), torch.randn(N, N, *[N] * axes))
        for axes, kinds in enumerate(
            (
                (nn.Conv1d, nn.ConvTranspose1d),
                (nn.Conv2d, nn.ConvTranspose2d),
                (nn.Conv3d, nn.ConvTranspose3d),
            ),
            start=1,
        )
        for kind in kinds
    }
    x = torch.randn(N, N, N)
    return {
        **convolutions,
        "Linear": (nn.Linear(N, N), x),
        "Embedding": (nn.Embedding(N, N), torch.randint(N, (N, N))),
        "LSTM": (FirstOutput(nn.LSTM(N, N, num_layers=2, bidirectional=True, batch_first=True)), x),
        "attention": (FirstOutput(nn.MultiheadAttention(N, 2, batch_first=True)), x),
        "block": (nn.TransformerEncoderLayer(N, 2, N, dropout=0.0, batch_first=True), x),
        "LayerNorm": (nn.LayerNorm(N), x),
        "RMSNorm": (nn.RMSNorm(N), x),
        "GroupNorm": (nn.GroupNorm(2, N), x),
        "BatchNorm1d": (nn.BatchNorm1d(N), x),
    }


@pytest.mark.parametrize("size", ["gate", 2, "full"])
@pytest.mark.parametrize("name", layers())
def test_the_hyperparameters_of_other_examples_change_nothing(name: str, size: Any) -> None:
    torch.manual_seed(0)
    model, inputs = layers()[name]
    space = SearchSpace({"one": Normal(), "two": Normal()})
    net = self_tuning(model, space, start={"one": 0.0, "two": 0.0}, response=size, norms=True)
    for parameter in net.response_parameters():
        nn.init.normal_(parameter)
    sample = net.perturbed_sample(N)
    assert sample.response_input is not None
    for example in range(N):
        others = torch.arange(N) != example
        changed = sample.response_input + others[:, None].to(sample.response_input)
        outputs = []
        for response_input in (sample.response_input, changed):
            with net.using(Sample(sample.values, response_input)), torch.no_grad():
                outputs.append(net(inputs))
        assert torch.equal(outputs[0][example], outputs[1][example])
        assert all(not torch.equal(outputs[0][i], outputs[1][i]) for i in range(N) if i != example)
