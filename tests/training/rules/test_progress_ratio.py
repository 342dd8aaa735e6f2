"""The amount of regularisation by the progress ratio: what it leaves alone, what it asks for, and how fast.

What holds for every rule built on it is tested with `auto` too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from tune_stn.nn.first_order import clean_mode
from tune_stn.space import Tunable
from tune_stn.tasks import Task, get_task
from tune_stn.testing import placebo
from tune_stn.training import Trainer, load_state, save_state
from tune_stn.training.rules.progress_ratio import EVERY, FAST, SCALED, SLOW, SMOOTHED, ProgressRatio
from tune_stn.training.schedule import Schedule

ALGORITHMS = ("progress-ratio", "auto")
TEXT: dict[str, Any] = {"hidden": 6, "vocabulary": 40, "window": 8, "batch_size": 5}
TEXT |= {"train_tokens": 900, "valid_tokens": 900, "test_tokens": 200}
# Task -> its settings; "text" is the LSTM language model, the others are those of conftest.
TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "mlp": ("mlp", {}),
    "cnn, two hyper-steps": ("cnn", {"valid_steps": 2, "train_steps": 5}),
    "batch norm": ("batch-norm", {"train_steps": 1}),
    "parts": ("batch-norm", {"accumulate": 2}),
    "half precision": ("cnn", {"precision": "bfloat16"}),
    "text": ("text", {"warmup_epochs": 0}),
    "text in parts": ("text", {"accumulate": 2, "warmup_epochs": 1, "train_steps": 5}),
    "text in half precision": ("text", {"precision": "bfloat16", "warmup_epochs": 0}),
}

RUNS = [*(("auto", case) for case in TASKS), ("progress-ratio", "mlp"), ("progress-ratio", "text")]


def made(make_task: Any, case: str, **more: Any) -> Task:
    network, settings = TASKS[case]
    settings = {**settings, **more}
    return get_task("text-lstm", **TEXT, **settings) if network == "text" else make_task(network, **settings)


def rule_of(trainer: Trainer) -> ProgressRatio:
    assert isinstance(trainer.rule, ProgressRatio)
    return trainer.rule


def hyper_of(trainer: Trainer) -> Tunable:
    assert isinstance(trainer.model.hyper, Tunable)
    return trainer.model.hyper


def losses(trainer: Trainer, epochs: int) -> list[dict[str, float]]:
    """What a run reports of its weights."""
    left_out = ("hp/", "scale/", "device_time_s", "cost")
    reports = [trainer.run_epoch() for _ in range(epochs)]
    return [{k: v for k, v in report.items() if not k.startswith(left_out)} for report in reports]


def train(trainer: Trainer, steps: int = EVERY) -> None:
    """Training steps alone, so that the next hyper-step measures."""
    trainer.model.train()
    batches = trainer.splits.train.batches(trainer.task.training.batch_size, torch.Generator().manual_seed(0))
    for _, batch in zip(range(steps), batches, strict=False):
        trainer.rule.train_step(batch)


# The weights train as those of a plain network -----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("algorithm", "case"), RUNS)
def test_without_hyper_steps_a_run_is_a_plain_one_bit_for_bit(make_task: Any, algorithm: str, case: str) -> None:
    task = made(make_task, case, epochs=2, warmup_epochs=2)
    tuned = Trainer(task, algorithm=algorithm)
    # A start value goes through its raw coordinate, which rounds it.
    plain = Trainer(task, algorithm="fixed", hp=tuned.model.hyper.mean_values())
    reports = [[trainer.run_epoch() for _ in range(2)] for trainer in (tuned, plain)]
    for report in (*reports[0], *reports[1]):
        for key in [key for key in report if key.startswith("scale/") or key == "device_time_s"]:
            del report[key]
    assert reports[0] == reports[1]


@pytest.mark.slow
@pytest.mark.parametrize(("algorithm", "case"), RUNS)
def test_the_schedule_replayed_on_a_plain_network_is_the_run_bit_for_bit(
    make_task: Any, algorithm: str, case: str
) -> None:
    """So a hyper-step touches no weight, no running statistics, no random stream and no carried state."""
    epochs = 2 if case.startswith("text") else 6
    task = made(make_task, case, epochs=epochs)
    tuned = Trainer(task, algorithm=algorithm)
    found = losses(tuned, epochs)
    schedule = Schedule.from_frame(pd.DataFrame(tuned.schedule.columns(task.space, tuned=True)))
    assert len(set(schedule.values[:, 0])) > 2
    assert losses(Trainer(task, algorithm="fixed", schedule=schedule), epochs) == found


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_on_a_placebo_a_run_is_a_plain_one(algorithm: str) -> None:
    """At so small a speed that the rates stay where no unit happens to be dropped."""
    task = placebo(get_task("digits-mlp", epochs=5, warmup_epochs=1, hyper_lr=0.01))
    tuned, plain = (Trainer(task, algorithm=name) for name in (algorithm, "fixed"))
    start = hyper_of(tuned).raw.detach().clone()
    found, expected = (losses(trainer, 5) for trainer in (tuned, plain))
    assert (hyper_of(tuned).raw != start).all()
    for report in (*found, *expected):
        del report["train_loss"]  # it has the penalty in it
    assert found == [pytest.approx(report, abs=1e-6, rel=0) for report in expected]


@pytest.mark.slow
@pytest.mark.parametrize(("algorithm", "case"), RUNS)
def test_a_hyper_step_moves_the_hyperparameters_alone(make_task: Any, algorithm: str, case: str) -> None:
    trainer = Trainer(made(make_task, case), algorithm=algorithm)
    train(trainer, 3)
    train(trainer, 3)
    model, hyper = trainer.model, hyper_of(trainer)
    network = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    raw, rho, stream = hyper.raw.detach().clone(), hyper.rho.detach().clone(), torch.get_rng_state()
    trainer.rule.hyper_step(next(trainer.splits.valid.cycle(5, torch.Generator())))
    assert all(torch.equal(tensor, network[name]) for name, tensor in model.network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), stream)
    assert (hyper.raw != raw).all()
    assert torch.equal(hyper.rho, rho)
    assert model.training


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_network_may_be_in_double_precision(make_task: Any, algorithm: str) -> None:
    trainer = Trainer(make_task(epochs=6), algorithm=algorithm)
    assert all(math.isfinite(trainer.run_epoch()["hp/decay"]) for _ in range(6))
    assert rule_of(trainer).measured == 3


# The averages of the weights -----------------------------------------------------------------------------------------


def test_the_averages_follow_the_weights_and_stand_in_for_them(make_task: Any) -> None:
    """By hand, over 900 steps a run: windows of 18 and 63."""
    trainer = Trainer(make_task(epochs=300), algorithm="progress-ratio")
    rule = rule_of(trainer)
    base = trainer.stepper.parameters("base")
    expected = [[weight.detach().clone() for weight in base] for _ in range(2)]
    for _ in range(4):
        train(trainer, 1)
        for averages, window in zip(expected, (18, 63), strict=True):
            for average, weight in zip(averages, base, strict=True):
                average += (weight.detach() - average) / window
    for averages, mine in zip(expected, (rule.fast, rule.slow), strict=True):
        assert all(torch.allclose(one, other, atol=1e-7) for one, other in zip(averages, mine, strict=True))
    own = [weight.detach().clone() for weight in base]
    with rule.at(rule.slow):
        assert all(torch.equal(weight, average) for weight, average in zip(base, rule.slow, strict=True))
    assert all(torch.equal(weight, before) for weight, before in zip(base, own, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("cycle_of", [1, 2, 5, 7])
def test_it_measures_every_fifth_step_or_less_often(make_task: Any, cycle_of: int) -> None:
    """In 84 steps of a run of 84, as often as the speed counts on; the steps in between cost and move nothing."""
    trainer = Trainer(make_task(epochs=28, train_steps=cycle_of, valid_steps=2), algorithm="progress-ratio")
    for _ in range(28):
        trainer.run_epoch()
    rule = rule_of(trainer)
    assert rule.measured == rule.measurements == 84 // max(5, cycle_of)
    moved = {tuple(raw.tolist()) for raw in trainer.schedule.raw}
    assert len(moved) <= 1 + rule.measured


# What it asks for ----------------------------------------------------------------------------------------------------


def scripted(
    make_task: Any, monkeypatch: pytest.MonkeyPatch, gains: Sequence[tuple[float, float]], scale: float = 1.0
) -> list[float]:
    """The pressures at these gains of validation and training, of which losses `scale * (1 ± gain / 2)` are made."""
    trainer = Trainer(make_task(epochs=1000), algorithm="progress-ratio")
    rule = rule_of(trainer)
    batch = next(trainer.splits.train.batches(8, torch.Generator()))

    def clean() -> Iterator[Tensor]:
        for v, t in gains:
            after_and_before = (1 - v / 2, 1 - t / 2, 1 + v / 2, 1 + t / 2)
            yield from (torch.tensor(scale * loss) for loss in after_and_before)

    asked = clean()
    monkeypatch.setattr(rule, "clean", lambda batch: next(asked))
    return [rule.pressure(batch, batch)[0] for _ in gains]


LONG = 2000
HISTORY = [(0.1, 0.1)] * LONG


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        # In units of their size s, both gains are 1: 2 (.6 - 1).
        ([(0.1, 0.1)], -0.8),
        (HISTORY, -0.8),
        # Validation gains nothing: 2 * .6 * sqrt(2), and the most is 1.
        ([(0.0, 0.1)], 1.0),
        (HISTORY + [(0.0, 0.1)] * LONG, 1.0),
        # It gains just its share; more than training counts as much as training.
        ([(0.06, 0.1)], 0.0),
        ([(0.3, 0.1)], 2 * (0.6 - 1) * 0.1 / math.sqrt(0.05)),
        # It gets worse.
        ([(-0.1, 0.1)], 1.0),
        # Training is undone, and so is what validation has gained: it is too much. Or it gains by that: more.
        ([(-0.1, -0.1)], -1.0),
        (HISTORY + [(-0.02, -0.1)] * LONG, -2 * 0.02 / math.sqrt((0.02**2 + 0.1**2) / 2)),
        ([(0.1, -0.1)], 1.0),
        # Both stand still, after a time when they did not, and from the beginning.
        (HISTORY + [(1e-3, 1e-3)] * 60 + [(-1e-3, 1e-3)] * 60, 0.0),
        ([(0.0, 0.0)], 0.0),
    ],
)
def test_pressure_by_hand(
    make_task: Any, monkeypatch: pytest.MonkeyPatch, gains: list[tuple[float, float]], expected: float
) -> None:
    assert scripted(make_task, monkeypatch, gains)[-1] == pytest.approx(expected, abs=0.1 if len(gains) > 1 else 1e-5)


def test_pressure_does_not_depend_on_the_scale_of_the_loss(make_task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)) / 10
    gains = [(float(v), float(t)) for v, t in numbers + torch.tensor([0.02, 0.05])]
    expected = scripted(make_task, monkeypatch, gains)
    assert min(expected) < -0.2
    assert max(expected) > 0.2
    for scale in (-1.0, 2.0**-20, 2.0**20):
        signed = [(-v, -t) for v, t in gains] if scale < 0 else gains  # a log-likelihood: less is better there as well
        assert scripted(make_task, monkeypatch, signed, scale) == expected
    assert scripted(make_task, monkeypatch, gains, 3.7) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("loss", [0.0, math.inf, math.nan])
def test_losses_that_say_nothing_leave_no_trace(make_task: Any, monkeypatch: pytest.MonkeyPatch, loss: float) -> None:
    """A network may know a training batch so well that its loss rounds to zero: 0 / 0 would stay for ever."""
    trainer = Trainer(make_task(epochs=1000), algorithm="progress-ratio")
    rule, batch = rule_of(trainer), next(trainer.splits.train.batches(8, torch.Generator()))
    script = cycle([torch.tensor(loss)] * 4)
    monkeypatch.setattr(rule, "clean", lambda batch: next(script))
    assert rule.pressure(batch, batch) == (0.0, 0.0)
    script = cycle([torch.tensor(x) for x in (0.95, 0.95, 1.05, 1.05)])
    for _ in range(500):
        pressure, _ = rule.pressure(batch, batch)
    assert pressure == pytest.approx(-0.8, abs=0.01)


@pytest.mark.parametrize(
    ("losses", "first", "trapped"),
    [
        # Validation after and before, training after and before: all as in the beginning; validation is even better.
        ((2.3, 2.3, 2.3, 2.3), 2.3, 1.0),
        ((2.2, 2.2, 2.3, 2.3), 2.3, 1.0),
        # A gap of .05, of .1 and of more: here ends a training that has learned something.
        ((1.025, 1.025, 0.975, 0.975), 0.975, 0.5),
        ((1.05, 1.05, 0.95, 0.95), 0.95, 0.0),
        ((0.6, 0.6, 0.1, 0.1), 0.1, 0.0),
        # Training gains .1 and .2: it goes on; or is undone as fast.
        ((0.95, 1.05, 0.95, 1.05), 0.95, 0.5),
        ((0.9, 1.1, 0.9, 1.1), 0.9, 0.0),
        ((1.1, 0.9, 1.1, 0.9), 1.1, 0.0),
        # It has gained .25 and .5 since the beginning, as language models soon do, or lost.
        ((0.875, 0.875, 0.875, 0.875), 1.125, 0.5),
        ((0.75, 0.75, 0.75, 0.75), 1.25, 0.0),
        ((1.2, 1.2, 1.2, 1.2), 1.0, 1.0),
    ],
)
def test_a_trapped_network_by_hand(
    make_task: Any, monkeypatch: pytest.MonkeyPatch, losses: tuple[float, ...], first: float, trapped: float
) -> None:
    trainer = Trainer(make_task(epochs=1000), algorithm="progress-ratio")
    rule, batch = rule_of(trainer), next(trainer.splits.train.batches(8, torch.Generator()))
    valid_after, valid_before, train_after, train_before = losses
    rule.first, rule.done = first, 421  # of 3,000 steps: more than twice 7 %
    script = cycle([torch.tensor(loss) for loss in (valid_after, train_after, valid_before, train_before)])
    monkeypatch.setattr(rule, "clean", lambda batch: next(script))
    for _ in range(200):
        assert rule.pressure(batch, batch)[1] == pytest.approx(trapped, abs=1e-4)
    rule.done = 419  # the averages still hold the initial weights
    assert rule.pressure(batch, batch)[1] == 0.0


def test_the_first_loss_is_that_of_the_initial_weights(make_task: Any) -> None:
    trainer = Trainer(make_task("batch-norm", epochs=100), algorithm="progress-ratio")
    rule = rule_of(trainer)
    batch = next(trainer.splits.train.batches(8, torch.Generator()))
    with clean_mode(trainer.model):
        expected = float(rule.clean(batch).detach())
    for _ in range(2):
        rule.train_step(batch)
        assert rule.first == expected
    assert rule.done == 2


def test_a_trapped_network_is_freed(make_task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """All hyperparameters fall alike, whatever their doses, and twice as fast as pressure moves them."""
    trainer = Trainer(make_task(hyper_lr=0.05), algorithm="auto")
    rule, hyper = rule_of(trainer), hyper_of(trainer)
    before = hyper.raw.detach().clone()
    batch = trainer.splits.valid.take(torch.arange(8))
    train(trainer, 3)
    train(trainer, 3)
    monkeypatch.setattr(rule, "direction", lambda batch: torch.tensor([1.0, 0.5, 0.0]))
    monkeypatch.setattr(rule, "pressure", lambda valid, train: (1.0, 1.0))
    rule.hyper_step(batch)
    assert (hyper.raw.detach() - before).tolist() == pytest.approx([-0.3] * 3, rel=1e-4)
    monkeypatch.setattr(rule, "pressure", lambda valid, train: (0.5, 0.5))
    rule.hyper_step(batch)
    expected = [0.15 * (0.25 * share - 1.0) for share in (1.0, 0.5, 0.0)]
    assert (hyper.raw.detach() - before + 0.3).tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_strong_start_values_do_not_keep_a_network_from_learning() -> None:
    """From these it learns nothing at first (as in the arm `starts` of experiments/rules.py); a plain one never."""
    start = {"dropout_input": 0.86, "dropout_1": 0.87, "dropout_2": 0.88, "input_scale": 0.9, "weight_decay": 0.01}
    tuned, plain = (Trainer(get_task("digits-mlp"), algorithm=name, hp=start) for name in ("auto", "fixed"))
    found, kept = (min(trainer.run_epoch()["val_loss"] for _ in range(60)) for trainer in (tuned, plain))
    assert kept > 2.0
    assert found < 1.0


def test_clean_losses_are_comparable(make_task: Any) -> None:
    """No dropout, augmentation or penalty is in them, and batch norms normalise by the batch, at any weights."""
    trainer = Trainer(make_task("batch-norm"), algorithm="progress-ratio", hp={"dropout": 0.8, "decay": 0.1})
    rule, batch = rule_of(trainer), trainer.splits.train.take(torch.arange(8))
    with clean_mode(trainer.model):
        first = rule.clean(batch)
    for module in trainer.model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_mean.fill_(5.0)  # type: ignore[union-attr]
    plain = trainer.task.model()
    plain.load_state_dict(trainer.model.network.state_dict())
    plain[3].p = 0.0
    with clean_mode(trainer.model):
        assert torch.equal(rule.clean(batch), first)
    torch.testing.assert_close(first, torch.nn.functional.cross_entropy(plain(batch.inputs), batch.targets))


# How fast ------------------------------------------------------------------------------------------------------------


def test_a_run_ten_times_as_long_does_the_same_ten_times_as_slowly(make_task: Any) -> None:
    rules = [rule_of(Trainer(make_task(epochs=n, hyper_lr="auto"), algorithm="auto")) for n in (200, 2000)]
    windows = [
        [rule.window(FAST, rule.steps), rule.window(SLOW, rule.steps)]
        + [rule.window(share, rule.measurements) for share in (SMOOTHED, SCALED)]
        for rule in rules
    ]
    assert windows[0] == pytest.approx([12, 42, 2.4, 12])
    assert windows[1] == pytest.approx([10 * window for window in windows[0]])
    assert [rule.measurements for rule in rules] == [120, 1200]
    assert [rule.speed * rule.measurements for rule in rules] == pytest.approx([18.0, 3 * 0.01 * 1200])


@pytest.mark.parametrize(
    ("hyper_lr", "epochs", "speed"),
    [
        ("auto", 20, 0.3),
        ("auto", 100, 0.3),
        ("auto", 200, 0.15),
        ("auto", 1000, 0.03),
        ("auto", 10000, 0.03),
        (0.05, 10, 0.15),
    ],
)
def test_speed_follows_from_the_number_of_measurements(
    make_task: Any, hyper_lr: Any, epochs: int, speed: float
) -> None:
    """Three for five epochs here. So the product is constant between the cap and three times the papers' rate."""
    rule = rule_of(Trainer(make_task(epochs=epochs, hyper_lr=hyper_lr), algorithm="progress-ratio"))
    assert rule.speed == pytest.approx(speed)


@pytest.mark.parametrize("pressure", [-1.0, 0.3])
def test_all_raw_coordinates_take_the_same_step_within_their_domains(
    make_task: Any, monkeypatch: pytest.MonkeyPatch, pressure: float
) -> None:
    trainer = Trainer(make_task(hyper_lr=0.05), algorithm="progress-ratio")
    rule, hyper = rule_of(trainer), hyper_of(trainer)
    monkeypatch.setattr(rule, "pressure", lambda valid, train: (pressure, 0.0))
    before = hyper.raw.detach().clone()
    batch = trainer.splits.valid.take(torch.arange(8))
    for step in (1, 2):
        train(trainer, 3)
        train(trainer, 3)
        rule.hyper_step(batch)
        assert (hyper.raw.detach() - before).tolist() == pytest.approx([step * 0.15 * pressure] * 3, rel=1e-4)
    for _ in range(300):
        rule.since = EVERY
        rule.hyper_step(batch)
    assert torch.equal(hyper.raw.detach(), hyper.highest if pressure > 0 else hyper.lowest)


# Its state -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("case", ["mlp", "batch norm"])
def test_a_run_resumed_at_any_epoch_is_the_whole_one(
    make_task: Any, differences: Callable[[Trainer, Trainer], list[str]], tmp_path: Any, algorithm: str, case: str
) -> None:
    """The last training batch is in no checkpoint: an epoch begins with a training step, which brings another."""
    task = made(make_task, case, epochs=5, train_steps=1)
    whole, found = Trainer(task, algorithm=algorithm), []
    for epoch in range(5):
        save_state(whole.state_dict(), tmp_path / f"{epoch}.pt")
        found += losses(whole, 1)
    for killed in range(5):
        resumed = Trainer(task, algorithm=algorithm)
        resumed.load_state_dict(load_state(tmp_path / f"{killed}.pt"))
        assert rule_of(resumed).batch is None
        assert losses(resumed, 5 - killed) == found[killed:]
        assert differences(whole, resumed) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_checkpoint_goes_on_on_a_gpu(make_task: Any, tmp_path: Any, algorithm: str) -> None:
    """There all of it comes to the GPU, but averages of losses are kept where Python reads them."""
    trainer = Trainer(make_task("batch-norm", train_steps=1), algorithm=algorithm, device="cuda")
    losses(trainer, 4)
    save_state(trainer.state_dict(), tmp_path / "state.pt")
    resumed = Trainer(make_task("batch-norm", train_steps=1), algorithm=algorithm, device="cuda")
    resumed.load_state_dict(load_state(tmp_path / "state.pt", device="cuda"))
    assert losses(resumed, 3) == losses(trainer, 3)
