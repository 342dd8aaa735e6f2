"""The closed form against its definition, and the task against the closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tune_stn.data.splits import Split
from tune_stn.nn import WeightDecay
from tune_stn.space.sample import Sample
from tune_stn.tasks import get_task
from tune_stn.tasks.ridge import best_weight, half_squared_error, validation_loss

PENALTIES = [1e-3, 0.1, 10.0]


@pytest.mark.parametrize("penalty", PENALTIES)
def test_gradient_of_the_tasks_own_loss_is_zero_at_the_best_weight(penalty: float) -> None:
    """By the loss and the penalty that training uses, so that a factor of two could not hide."""
    task = get_task("ridge")
    train = task.data(0).train
    model = task.model().double()
    weight = model.get_parameter("weight")
    with torch.no_grad():
        weight.copy_(best_weight(train, penalty).T)
    (decay,) = task.penalties
    assert isinstance(decay, WeightDecay)
    loss = task.loss(model(train.inputs.double()), train.targets.double())
    loss = loss + decay(model, Sample({"penalty": torch.tensor([penalty], dtype=torch.float64)}), {}).mean()
    (gradient,) = torch.autograd.grad(loss, [weight])
    assert float(gradient.abs().max()) < 1e-12


@pytest.mark.parametrize("penalty", [0.0, *PENALTIES])
def test_best_weight_is_that_of_least_squares(penalty: float) -> None:
    """Ridge is least squares with `features` more examples of sqrt(n penalty) and target 0."""
    train = get_task("ridge").data(1).train
    n, features = train.inputs.shape
    inputs = np.vstack([train.inputs.double().numpy(), np.sqrt(n * penalty) * np.eye(features)])
    targets = np.vstack([train.targets.double().numpy(), np.zeros((features, 1))])
    expected, *_ = np.linalg.lstsq(inputs, targets, rcond=None)
    np.testing.assert_allclose(best_weight(train, penalty).numpy(), expected, rtol=1e-9, atol=1e-11)


def test_one_dimension_by_hand() -> None:
    """With x = 1, t = 1: w = 1 / (1 + penalty)."""
    split = Split(torch.ones(1, 1), torch.ones(1, 1))
    assert float(best_weight(split, 3.0)) == pytest.approx(0.25)
    assert float(half_squared_error(torch.tensor([[3.0]]), torch.tensor([[1.0]]))) == 2.0


def test_validation_loss_has_its_minimum_inside_the_domain() -> None:
    """There is something to tune: both ends are worse than the middle, and so is the start value."""
    task = get_task("ridge")
    for seed in range(3):
        splits = task.data(seed)
        losses = [validation_loss(splits, 10**exponent) for exponent in np.linspace(-3, 1, 41)]
        best = int(np.argmin(losses))
        assert 5 < best < 40
        assert min(losses[0], losses[-1], validation_loss(splits, task.start["penalty"])) > 1.01 * losses[best]


def test_validation_loss_is_that_of_the_exact_weight() -> None:
    splits = get_task("ridge").data(0)
    weight = best_weight(splits.train, 0.3)
    errors = splits.valid.inputs.double() @ weight - splits.valid.targets.double()
    assert validation_loss(splits, 0.3) == pytest.approx(float((errors**2).mean() / 2))
    assert validation_loss(splits, 0.3) != pytest.approx(validation_loss(splits, 0.03), rel=1e-2)


def test_settings_and_seed_decide_the_data() -> None:
    task = get_task("ridge", features=5, train_examples=12, noise=0.0)
    splits = task.data(0)
    assert splits.train.inputs.shape == (12, 5)
    assert splits.train.targets.shape == (12, 1)
    assert (len(splits.valid), len(splits.test)) == (200, 1000)
    assert validation_loss(splits, 1e-9) < 1e-12  # without noise, the truth is found
    assert torch.equal(task.data(0).test.inputs, splits.test.inputs)
    assert not torch.equal(task.data(1).train.inputs, splits.train.inputs)
    assert not torch.equal(splits.train.inputs[:12], splits.valid.inputs[:12])


def test_the_global_stream_is_left_alone() -> None:
    state = torch.get_rng_state()
    get_task("ridge").data(0)
    assert torch.equal(torch.get_rng_state(), state)
