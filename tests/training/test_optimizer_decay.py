"""The weight decay of the optimizer itself as a hyperparameter: exactly AdamW's, and it follows what the rule does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tune_stn.nn import OptimizerWeightDecay, SelfTuningModel, WeightDecay, self_tuning
from tune_stn.space import LogUniform, SearchSpace, Uniform
from tune_stn.tasks import Task
from tune_stn.training import Trainer
from tune_stn.training.schedule import Schedule
from tune_stn.training.self_tuner import SelfTuner

EXACT = 2.0**-4  # is the same number in single and in double precision
RATE = Uniform(0.0, 0.9)
DECAY = LogUniform(1e-4, 1.0)


@pytest.fixture
def decayed(make_task: Callable[..., Task]) -> Callable[..., Task]:
    """A task with a dropout and AdamW's decay of its weights."""

    def make(**more: Any) -> Task:
        return make_task(
            **{
                "space": SearchSpace({"dropout": RATE, "decay": DECAY}),
                "start": {"dropout": 0.25, "decay": EXACT},
                "penalties": (OptimizerWeightDecay("decay"),),
                "augmentations": (),
                "optimizer": "AdamW",
                "lr": 0.01,
                "epochs": 6,
                **more,
            }
        )

    return make


def adamw(parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    weights, others = ([p for p in parameters if (p.dim() >= 2) is matrix] for matrix in (True, False))
    return torch.optim.AdamW([{"params": weights, "weight_decay": EXACT}, {"params": others}], lr=lr)


def assert_equal(some: nn.Module, other: nn.Module) -> None:
    for (name, one), another in zip(some.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(one, another), name


def trained(task: Task, epochs: int = 3, **more: Any) -> tuple[Trainer, dict[str, float]]:
    trainer = Trainer(task, **more)
    for _ in range(epochs):
        report = trainer.run_epoch()
    return trainer, report


def test_a_constant_is_the_decay_of_adamw_to_the_last_bit(decayed: Callable[..., Task]) -> None:
    own, _ = trained(decayed(), algorithm="fixed")
    plain = decayed(space=SearchSpace({"dropout": RATE}), start={"dropout": 0.25}, penalties=(), optimizer=adamw)
    assert_equal(own.model.network, trained(plain, algorithm="fixed")[0].model.network)


def test_auto_moves_it_and_the_optimizer_follows(decayed: Callable[..., Task]) -> None:
    trainer, report = trained(decayed(), epochs=6, algorithm="auto")
    assert report["hp/decay"] != pytest.approx(EXACT, rel=0.01)
    trainer.rule.train_step(next(trainer.splits.train.batches(8, torch.Generator())))
    weights, others = trainer.stepper.optimizers["base"].param_groups
    assert weights["weight_decay"] == pytest.approx(report["hp/decay"])
    assert others["weight_decay"] == 0.01  # of torch
    assert trainer.rule.doses[1] > 0  # type: ignore[attr-defined]


def test_its_schedule_replayed_is_the_run_itself(decayed: Callable[..., Task]) -> None:
    own, _ = trained(decayed(), epochs=6, algorithm="auto")
    table = pd.DataFrame(own.schedule.columns(own.task.space, tuned=True))
    assert table.groupby("hp")["value"].nunique()["decay"] > 1
    replayed, _ = trained(decayed(), epochs=6, algorithm="fixed", schedule=Schedule.from_frame(table))
    assert_equal(replayed.model.network, own.model.network)


@pytest.mark.parametrize("algorithm", ["auto", "fixed"])
def test_a_resumed_run_goes_on_to_the_last_bit(decayed: Callable[..., Task], algorithm: str) -> None:
    whole, _ = trained(decayed(), epochs=6, algorithm=algorithm)
    first, _ = trained(decayed(), epochs=3, algorithm=algorithm)
    second = Trainer(decayed(), algorithm=algorithm)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for _ in range(3):
        second.run_epoch()
    assert_equal(second.model, whole.model)


@pytest.mark.parametrize("algorithm", ["stn", "delta-stn"])
def test_a_response_does_not_tune_it(decayed: Callable[..., Task], algorithm: str) -> None:
    message = rf"'{algorithm}' cannot tune 'decay', .* \(AdamW's weight_decay, say\): .* WeightDecay\('decay'\)"
    with pytest.raises(ValueError, match=message):
        Trainer(decayed(), algorithm=algorithm)
    Trainer(decayed().tuning_only("dropout"), algorithm=algorithm)


def test_who_binds_nothing_is_told_of_it(decayed: Callable[..., Task]) -> None:
    with pytest.raises(ValueError, match=r"read by nothing, .* OptimizerWeightDecay for AdamW's own weight_decay"):
        decayed(penalties=())


def test_groups_have_decays_of_their_own(decayed: Callable[..., Task]) -> None:
    space = SearchSpace({"dropout": RATE, "decay": DECAY, "other": DECAY})
    start = {"dropout": 0.25, "decay": EXACT, "other": 0.25}
    first, last = OptimizerWeightDecay("decay", only="1"), OptimizerWeightDecay("other", only="4")
    trainer, _ = trained(decayed(space=space, start=start, penalties=(first, last)), epochs=1, algorithm="fixed")
    groups = trainer.stepper.optimizers["base"].param_groups
    assert [group["weight_decay"] for group in groups] == [EXACT, 0.25, 0.01]
    with pytest.raises(ValueError, match="match the same weight: an optimizer has one decay for each"):
        Trainer(decayed(space=space, start=start, penalties=(first, OptimizerWeightDecay("other"))), algorithm="auto")
    with pytest.raises(ValueError, match="Rprop has no weight_decay; AdamW has one"):
        Trainer(decayed(optimizer="Rprop"), algorithm="auto")


# A loop of one's own ------------------------------------------------------------------------------------------------

MODEL = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
INPUTS, TARGETS = torch.randn(24, 4), torch.randint(3, (24,))


def converted(response: Any = None) -> SelfTuningModel:
    return self_tuning(MODEL, SearchSpace({"decay": DECAY}), start={"decay": EXACT}, response=response)


def loss(model: nn.Module, part: slice = slice(0, 16)) -> torch.Tensor:
    return F.cross_entropy(model(INPUTS[part]), TARGETS[part])


def test_a_loop_of_ones_own_decays_as_adamw_does() -> None:
    net, plain = converted(), copy.deepcopy(MODEL)
    tuner = SelfTuner(
        net, adamw(list(net.network.parameters()), 0.01), algorithm="fixed", decays=[OptimizerWeightDecay("decay")]
    )
    optimizer = adamw(list(plain.parameters()), 0.01)
    for _ in range(5):
        given = tuner.train_step(lambda: loss(net))
        optimizer.zero_grad()
        own = loss(plain)
        penalty = EXACT / 2 * sum(float(p.detach().square().sum()) for p in plain.parameters() if p.dim() >= 2)
        own.backward()
        assert float(given) == pytest.approx(float(own.detach()) + penalty, rel=1e-5)
        optimizer.step()
    assert_equal(net.network, plain)


def test_a_loop_of_ones_own_tunes_it() -> None:
    net = converted()
    optimizer = adamw(list(net.network.parameters()), 0.01)
    tuner = SelfTuner(net, optimizer, steps=60, decays=[OptimizerWeightDecay("decay")])
    for _ in range(30):
        tuner.train_step(lambda: loss(net))
        tuner.hyper_step(lambda: loss(net, slice(16, 24)))
    before = net.hyperparameters()["decay"]
    tuner.train_step(lambda: loss(net))
    assert before != pytest.approx(EXACT, rel=0.01)
    assert optimizer.param_groups[0]["weight_decay"] == pytest.approx(before)


@pytest.mark.parametrize(
    ("make", "only", "response", "message"),
    [
        (torch.optim.AdamW, "*", None, "is for some parameters of a group .* give the optimizer a group of those"),
        (adamw, "9.*", None, r"only='9\.\*'\) matches no weight of the network; it has 0\.weight, 2\.weight"),
        (torch.optim.Rprop, "*", None, "Rprop has no weight_decay"),
        (adamw, "*", "gate", r"'stn' cannot tune 'decay'"),
    ],
)
def test_a_loop_of_ones_own_is_told_what_does_not_fit(make: Any, only: str, response: Any, message: str) -> None:
    net = converted(response)
    with pytest.raises(ValueError, match=message):
        SelfTuner(
            net,
            make(list(net.network.parameters()), lr=0.01),
            algorithm="stn" if response else "auto",
            decays=[OptimizerWeightDecay("decay", only=only)],
        )


def test_it_is_a_weight_decay_without_a_gradient() -> None:
    net = converted()
    sample = net.hyper.constant_sample()
    own, penalty = (kind("decay")(net.network, sample, {}) for kind in (OptimizerWeightDecay, WeightDecay))
    assert torch.equal(own, penalty)
    assert (own.requires_grad, penalty.requires_grad) == (False, True)
