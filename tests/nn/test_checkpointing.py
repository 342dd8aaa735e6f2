"""Activation checkpointing: a part that is run again in the backward pass reads the sample that it read at first."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tune_stn.data.splits import Split, Splits
from tune_stn.nn import SelfTuningModel, self_tuning
from tune_stn.space import SearchSpace, Uniform
from tune_stn.tasks import Task, Training
from tune_stn.training import Trainer

SPACE = SearchSpace({"rate": Uniform(0, 0.9), "connect": Uniform(0, 0.9)}, per_batch=["connect"])
START = {"rate": 0.2, "connect": 0.3}


class Net(nn.Module):
    """`reentrant` is None for no checkpointing."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Dropout(), nn.Linear(8, 8)) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for block in self.blocks:
            if self.training and self.reentrant is not None:
                h = h + checkpoint(block, h, use_reentrant=self.reentrant)
            else:
                h = h + block(h)
        outputs: Tensor = self.last(h)
        return outputs


def converted(reentrant: bool | None) -> SelfTuningModel:
    torch.manual_seed(0)
    net = self_tuning(
        Net(reentrant),
        SPACE,
        start=START,
        dropout={"blocks.*": "rate"},
        weight_dropout={"blocks.1.0": "connect"},
        response="full",
    )
    for parameter in net.response_parameters():
        nn.init.normal_(parameter, std=0.3)
    return net.train()


def gradients(net: SelfTuningModel, loss: Tensor) -> list[Tensor]:
    net.zero_grad()
    loss.backward()
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in net.network.parameters()]


each_way = pytest.mark.parametrize("reentrant", [False, True])


@each_way
def test_gradients_are_those_without_checkpointing(reentrant: bool) -> None:
    """Each example at a response input and a rate of its own."""
    found = []
    for way in (None, reentrant):
        net = converted(way)
        torch.manual_seed(1)
        inputs = torch.randn(6, 4)
        found.append(gradients(net, net(inputs).square().sum()))
    assert any(gradient.ne(0).any() for gradient in found[0])
    for plain, checkpointed in zip(*found, strict=True):
        torch.testing.assert_close(checkpointed, plain)


@each_way
@pytest.mark.parametrize("inside", [False, True])
def test_of_several_forward_passes_each_is_run_again_at_its_own_sample(reentrant: bool, inside: bool) -> None:
    """In one backward pass, which may lie in a block that has yet another sample in force."""
    found = []
    for way in (None, reentrant):
        net = converted(way)
        torch.manual_seed(1)
        inputs = torch.randn(6, 4)
        samples = [net.perturbed_sample(6) for _ in range(3)]
        loss = inputs.new_zeros(())
        for sample in samples[:2]:
            with net.using(sample):
                loss = loss + net(inputs).square().sum()
        if inside:
            with net.using(samples[2]):
                found.append(gradients(net, loss))
        else:
            found.append(gradients(net, loss))
        assert net.slot.replayed is None
    for plain, checkpointed in zip(*found, strict=True):
        torch.testing.assert_close(checkpointed, plain)


def test_after_a_backward_pass_a_part_has_no_sample() -> None:
    net = converted(False)
    net(torch.randn(6, 4)).sum().backward()
    with pytest.raises(RuntimeError, match="no hyperparameter sample"):
        net.network.get_submodule("first")(torch.randn(6, 4))


def task(reentrant: bool | None) -> Task:
    def data(seed: int) -> Splits:
        torch.manual_seed(seed)
        x, y = torch.randn(30, 4), torch.randint(3, (30,))
        return Splits(*(Split(a, b) for a, b in zip(x.split(10), y.split(10), strict=True)))

    return Task(
        name="mine",
        model=lambda: Net(reentrant),
        data=data,
        space=SearchSpace({"rate": Uniform(0, 0.9)}),
        start={"rate": 0.2},
        dropout={"blocks.*": "rate"},
        training=Training(epochs=2, batch_size=5, train_steps=1, warmup_epochs=0, hyper_lr=0.1, optimizer="Adam"),
    )


@pytest.mark.parametrize("algorithm", ["fixed", "auto", "stn"])
def test_training_is_that_without_checkpointing(algorithm: str) -> None:
    reports: list[dict[str, Any]] = []
    for reentrant in (None, False):
        trainer = Trainer(task(reentrant), algorithm=algorithm)
        trainer.run_epoch()
        reports.append(trainer.run_epoch())
    for name in ("train_loss", "val_loss", "hp/rate"):
        assert reports[1][name] == pytest.approx(reports[0][name], rel=1e-5)


def test_delta_stn_says_that_tangents_are_not_kept() -> None:
    with pytest.raises(
        RuntimeError, match=r"turn activation checkpointing off .* the algorithm 'auto' or 'stn'|implement the jvp"
    ):
        Trainer(task(False), algorithm="delta-stn").run_epoch()


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")  # where no gradient is wanted
@pytest.mark.parametrize("algorithm", ["fixed", "auto", "stn", "delta-stn"])
def test_reentrant_checkpointing_in_a_trainer_is_refused_with_the_way_out(algorithm: str) -> None:
    """By torch: a trainer asks for the gradients of some parameters, and of nothing else."""
    with pytest.raises(RuntimeError, match="you can either set use_reentrant=False"):
        Trainer(task(True), algorithm=algorithm).run_epoch()
