"""The rehearsal: it does each kind of step, leaves no trace, and refuses only what no run could do."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tune_stn.data import Split, Splits
from tune_stn.data.batches import Batch
from tune_stn.nn.penalties import WeightDecay
from tune_stn.space import SearchSpace, Uniform
from tune_stn.tasks import Task, get_task
from tune_stn.tasks.own_code import OwnCodeError
from tune_stn.tasks.settings import Training
from tune_stn.training.rehearsal import FEW, Few, rehearse
from tune_stn.training.rules import RULES
from tune_stn.training.schedule import Schedule
from tune_stn.training.trainer import Trainer


def data(seed: int) -> Splits:
    inputs = torch.randn(300, 20, generator=torch.Generator().manual_seed(seed))
    targets = (inputs[:, 0] > 0).long()
    return Splits(*(Split(a, b) for a, b in zip(inputs.split(100), targets.split(100), strict=True)))


TASK = Task(
    name="own",
    model=lambda: nn.Sequential(nn.Linear(20, 32), nn.BatchNorm1d(32), nn.Dropout(), nn.Linear(32, 2)),
    data=data,
    space=SearchSpace({"rate": Uniform(0, 0.9), "decay": Uniform(0, 0.1)}),
    start={"rate": 0.1, "decay": 0.01},
    dropout={"2": "rate"},
    penalties=(WeightDecay("decay"),),
    training=Training(epochs=3, batch_size=20, lr=0.05, warmup_epochs=0, lr_schedule="CosineAnnealingLR",
                      lr_schedule_args={"T_max": 3}),
)  # fmt: skip


class Counted(nn.CrossEntropyLoss):
    """A loss with a state: how often it was called."""

    calls = 0

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(outputs, targets)


def test_each_algorithm_is_rehearsed_and_says_what_it_converts() -> None:
    found = rehearse(TASK, RULES, data(0)).conversions
    assert list(found) == list(RULES)
    assert all(conversion.bound == {"2": "rate"} for conversion in found.values())
    assert {name: bool(conversion.responding) for name, conversion in found.items()} == {
        name: rule.response is not None for name, rule in RULES.items()
    }


def test_what_another_rule_does_as_well_is_not_done_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules on the plain network, of which one extends the other; but for a replay, which is the fixed one's alone."""
    made: list[str] = []

    def noted(task: Task, *, algorithm: str, **more: Any) -> Trainer:
        made.append(algorithm)
        return Trainer(task, algorithm=algorithm, **more)

    monkeypatch.setattr("tune_stn.training.rehearsal.Trainer", noted)
    found = rehearse(TASK, ["fixed", "auto", "stn", "progress-ratio"], data(0)).conversions
    assert made == ["auto", "stn"]
    assert list(found) == ["fixed", "auto", "stn", "progress-ratio"]
    assert found["fixed"] is found["auto"] is not found["stn"]
    rehearse(TASK, ["fixed"], data(0), schedule=Schedule.constant(TASK.start))
    assert made[2:] == ["fixed"]


@pytest.mark.slow
def test_a_run_is_the_same_with_and_without_a_rehearsal() -> None:
    task = replace(TASK, loss=Counted())
    without = {name: Trainer(task, algorithm=name, seed=3).run_epoch() for name in RULES}
    task = replace(TASK, loss=(loss := Counted()))
    before = torch.get_rng_state()
    rehearse(task, RULES, task.data(3), seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert loss.calls == 0
    for name, report in without.items():
        found = Trainer(task, algorithm=name, seed=3).run_epoch()
        assert {**found, "device_time_s": 0} == {**report, "device_time_s": 0}


@pytest.mark.parametrize(
    ("loss", "width", "broadcasts"),
    [
        (nn.functional.mse_loss, 1, True),  # of which torch warns
        (lambda outputs, targets: (outputs - targets).abs().mean(), 1, True),  # of which nobody does
        (lambda outputs, targets: nn.functional.mse_loss(outputs.flatten(), targets), 1, False),
        (lambda outputs, targets: nn.functional.mse_loss(outputs.squeeze(1), targets), 1, False),
        (lambda outputs, targets: nn.functional.mse_loss(outputs[:, 0], targets), 2, False),
    ],
)
def test_a_loss_that_takes_each_output_with_every_target_is_remarked(loss: Any, width: int, broadcasts: bool) -> None:
    def of_numbers(seed: int) -> Splits:
        return Splits(*(replace(one, targets=one.inputs[:, 0]) for one in vars(data(seed)).values()))

    task = replace(TASK, model=lambda: nn.Sequential(*TASK.model()[:3], nn.Linear(32, width)), loss=loss)
    remarks = rehearse(task, ["fixed"], of_numbers(0)).remarks
    assert list(remarks) == broadcasts * [
        "the loss of task 'own' broadcasts outputs of shape (3, 1) against targets of shape (3,), so that each output "
        "is compared with every target: give both one shape"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ridge", "digits-mlp", "text-lstm", "text-transformer"])
def test_built_in_tasks_of_default_size_take_few_seconds(name: str) -> None:
    began = time.process_time()
    task = get_task(name)
    rehearse(task, ["auto", "stn", "fixed"], task.data(0))
    assert time.process_time() - began < 5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fashion-mnist-cnn", "cifar10-resnet18"])
def test_of_many_images_few_are_looked_at(name: str) -> None:
    """Here a quarter as wide, on images that are noise; all of a split would take minutes."""
    task = get_task(name, **{"width" if name.startswith("cifar10") else "hidden": 16})
    shape = (3, 32, 32) if name.startswith("cifar10") else (1, 28, 28)
    images = torch.randint(0, 256, (40_000, *shape), dtype=torch.uint8)
    looked: list[int] = []

    def prepare(inputs: Tensor) -> Tensor:
        looked.append(len(inputs))
        return inputs / 255

    split = Split(images, torch.randint(0, 10, (40_000,)), prepare=prepare)
    rehearse(task, ["stn"], Splits(split, split, split))
    assert set(looked) == {FEW}


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dropout, self.output = nn.Dropout(), nn.Linear(20, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.output(self.dropout(inputs))  # type: ignore[no-any-return]


class Wrong(Plain):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs[:, :19])


def picky(outputs: Tensor, targets: Tensor) -> float:
    """As an average over classes: not defined where one of them is absent."""
    if len(outputs) < 20:
        raise ValueError("too few examples")
    return 1.0


def test_what_needs_more_than_a_few_examples_gets_a_whole_batch() -> None:
    rehearse(replace(TASK, metrics={"picky": picky}), ["stn"], data(0))
    with pytest.raises(OwnCodeError, match=r"metric 'm' of task 'own', given outputs float32 \(100, 2\)"):
        rehearse(replace(TASK, metrics={"m": lambda outputs, targets: 1 / 0}), ["stn"], data(0))


@pytest.mark.parametrize("change", [{"accumulate": 5}, {"response_share": 0.2}])
def test_a_part_of_a_batch_is_enough_for_a_batch_norm(change: dict[str, Any]) -> None:
    task = replace(TASK, training=replace(TASK.training, **change))
    seen: list[int] = []

    class Seeing(nn.BatchNorm1d):
        def forward(self, inputs: Tensor) -> Tensor:
            seen.append(len(inputs))
            return super().forward(inputs)

    rehearse(replace(task, model=lambda: nn.Sequential(nn.Linear(20, 8), Seeing(8), nn.Dropout(), nn.Linear(8, 2))),
             ["delta-stn"], data(0))  # fmt: skip
    assert min(seen) >= 2


def test_few_of_a_split_are_a_batch_of_it() -> None:
    split = data(0).train
    few = Few(split, 4)
    assert len(few) == 4
    assert few.steps(20) == 1
    (batch,) = few.batches(20, torch.Generator().manual_seed(1))
    assert isinstance(batch, Batch)
    expected = next(split.batches(4, torch.Generator().manual_seed(1)))
    assert torch.equal(batch.inputs, expected.inputs)
    assert [len(batch) for batch in few.whole(500)] == [4]
    assert len(next(few.to("cpu").cycle(3, torch.Generator()))) == 3


def flat(split: str) -> Callable[[int], Splits]:
    """Data of which one split has inputs of another width."""

    def made(seed: int) -> Splits:
        splits = data(seed)
        return replace(splits, **{split: Split(torch.zeros(9, 19), torch.zeros(9, dtype=torch.int64))})

    return made


@pytest.mark.parametrize(
    ("change", "words", "own"),
    [
        ({"model": lambda: Wrong(), "dropout": {"dropout": "rate"}}, "in its module 'output', Linear(in_feat", 1),
        ({"data": flat("valid")}, "in its module '0', Linear(in_features=20, out_features=32, bias=True), given "
         "float32 (4, 19) of the valid split, raised RuntimeError: mat1", 0),
        ({"data": flat("test")}, "of the test split, raised RuntimeError", 0),
        ({"loss": lambda outputs, targets: outputs.max().detach()}, "loss of task 'own' gave a tensor without a gr", 0),
        ({"loss": lambda outputs, targets: 1.0}, "loss of task 'own' gave a float for a batch of the train split", 0),
        ({"loss": nn.CrossEntropyLoss(reduction="none")}, "gave a tensor of shape (4,) for a batch", 0),
        ({"loss": lambda outputs, targets: outputs.oops}, "the loss of task 'own', given outputs float32 (4, 2) and "
         "targets int64 (4,) of the train split, raised AttributeError", 1),
        ({"metrics": {"m": lambda outputs, targets: outputs}}, "metric 'm' of task 'own' gave a tensor of shape", 0),
        ({"metrics": {"m": lambda outputs, targets: "0.5!"}}, "metric 'm' of task 'own' gave a str", 0),
        ({"dropout": {"7": "rate"}}, "the model of task 'own': dropout path '7' matches no dropout module", 0),
        ({"training": replace(TASK.training, optimizer_args={"momentum": -1})}, "the optimizer of task 'own' raised "
         "ValueError: Invalid momentum value", 0),
        ({"training": replace(TASK.training, hyper_optimizer_args={"alpha": -1})}, "the hyper_optimizer of task", 0),
        ({"training": replace(TASK.training, epochs=30, lr_schedule="OneCycleLR", lr_schedule_args={
            "max_lr": 0.1, "total_steps": 10, "cycle_momentum": False})}, "the lr_schedule of task 'own' raised "
         "ValueError: Tried to step 11 times", 0),
        ({"training": replace(TASK.training, lr_schedule_args={"T_max": "3"})}, "the lr_schedule of task 'own'", 0),
    ],
)  # fmt: skip
def test_an_error_says_which_part_of_the_task_it_is(change: dict[str, Any], words: str, own: bool) -> None:
    """And has the traceback of the user's code, where that is in it."""
    small = replace(TASK.training, batch_size=4, eval_batch_size=4)
    task = replace(TASK, **{"training": small, **change})
    with pytest.raises(ValueError, match=r"own") as caught:
        rehearse(task, ["stn"], task.data(0))
    assert words in str(caught.value), str(caught.value)
    assert bool(getattr(caught.value, "trace", "")) == bool(own)
