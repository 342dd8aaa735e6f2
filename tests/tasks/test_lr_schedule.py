"""The non-monotone rule."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tune_stn.tasks import Training
from tune_stn.tasks.lr_schedule import NonMonotone


def optimizer(lr: float = 32.0) -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)


def rates(losses: list[float], **settings: float) -> list[float]:
    """Learning rate after each epoch."""
    sgd = optimizer()
    schedule = NonMonotone(sgd, **settings)  # type: ignore[arg-type]
    found = []
    for loss in losses:
        schedule.step(loss)
        found.append(sgd.param_groups[0]["lr"])
    return found


def test_it_divides_by_four_when_five_epochs_have_not_improved_on_the_best_before_them() -> None:
    losses = [5.0, 4.0, 4.5, 4.5, 4.5, 4.5, 4.5, 4.5, 4.1, 3.0]
    # The seventh epoch is compared with the first alone, the eighth with the first two, the ninth with three.
    assert rates(losses) == [32.0] * 7 + [8.0, 2.0, 2.0]


def test_as_good_as_the_best_is_no_improvement() -> None:
    assert rates([1.0, 1.0, 1.0], window=1, factor=0.5) == [32.0, 32.0, 16.0]


@given(st.lists(st.sampled_from([1.0, 2.0, 3.0, 4.0]), max_size=20), st.integers(1, 6), st.sampled_from([0.25, 0.5]))
def test_it_is_the_rule(losses: list[float], window: int, factor: float) -> None:
    slow = []
    rate = 32.0
    for epoch, loss in enumerate(losses):
        earlier = losses[: max(0, epoch - window)]
        if earlier and loss >= min(earlier):
            rate *= factor
        slow.append(rate)
    assert rates(losses, window=window, factor=factor) == pytest.approx(slow)


def test_no_rate_gets_smaller_than_the_least() -> None:
    assert rates([1.0] * 5, window=1, min_lr=10.0) == [32.0, 32.0, 10.0, 10.0, 10.0]


def test_it_goes_on_from_its_state() -> None:
    losses = [3.0, 2.0, 2.5, 2.5, 2.5, 2.5]
    sgd, other = optimizer(), optimizer()
    schedule = NonMonotone(sgd, window=2)
    for loss in losses[:3]:
        schedule.step(loss)
    resumed = NonMonotone(other, window=2)
    resumed.load_state_dict(schedule.state_dict())
    other.load_state_dict(sgd.state_dict())
    for loss in losses[3:]:
        schedule.step(loss)
        resumed.step(loss)
    assert sgd.param_groups[0]["lr"] == other.param_groups[0]["lr"] < 32.0


def test_a_training_takes_it_by_name() -> None:
    training = Training(lr_schedule="NonMonotone", lr_schedule_args={"window": 3})
    made = training.make_lr_schedule(optimizer())
    assert isinstance(made, NonMonotone)
    assert made.window == 3
    with pytest.raises(ValueError, match="do not fit NonMonotone"):
        Training(lr_schedule="NonMonotone", lr_schedule_args={"patience": 3})
    with pytest.raises(ValueError, match="accepted is NonMonotone, the name of a class"):
        Training(lr_schedule="NonMonotonic")


@pytest.mark.parametrize(("settings", "message"), [({"factor": 1.0}, "factor=1.0"), ({"window": 0}, "window=0")])
def test_other_settings_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NonMonotone(optimizer(), **settings)  # type: ignore[arg-type]
