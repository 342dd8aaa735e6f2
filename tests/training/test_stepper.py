"""The stepper by itself, without a task or a trainer: as a loop of one's own uses it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from tune_stn.training.stepper import Stepper

Closure = Callable[[], Tensor]


def groups() -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(torch.tensor([3.0, 4.0])) for name in ("base", "response", "hyper")}


def stepper(parameters: dict[str, nn.Parameter]) -> Stepper:
    optimizers = {name: torch.optim.SGD([parameter], lr=0.1) for name, parameter in parameters.items()}
    schedule = torch.optim.lr_scheduler.StepLR(optimizers["base"], 1, gamma=0.5)
    return Stepper(optimizers, {"base": schedule})


def once(closure: Closure) -> Iterator[Tensor]:
    """The losses of a closure are one loss."""
    yield closure()


def test_a_closure_is_stepped_by_name() -> None:
    parameters = groups()
    steps = stepper(parameters)

    def closure() -> Tensor:
        return torch.stack([parameter.square().sum() / 2 for parameter in parameters.values()]).sum()

    loss = steps.backward(once, closure, to=("base", "response"))
    assert float(loss) == pytest.approx(37.5)
    assert not loss.requires_grad
    assert parameters["hyper"].grad is None
    steps.step("base", "response")
    assert parameters["base"].tolist() == parameters["response"].tolist() == pytest.approx([2.7, 3.6])
    assert parameters["hyper"].tolist() == [3.0, 4.0]


def test_groups_are_clipped_together_and_parts_add_up() -> None:
    parameters = groups()
    steps = stepper(parameters)

    def losses(parts: int) -> Iterator[Tensor]:
        for _ in range(parts):
            yield (parameters["base"].square().sum() + parameters["response"].square().sum()) / (2 * parts)

    assert float(steps.backward(losses, 5, to=("base", "response"), clip_norm=1.0)) == pytest.approx(25.0)
    gradient = torch.cat([parameters[name].grad for name in ("base", "response")])  # type: ignore[misc]
    assert float(gradient.norm()) == pytest.approx(1.0, rel=1e-5)
    assert gradient.tolist() == pytest.approx((torch.tensor([3.0, 4.0] * 2) / 50**0.5).tolist(), rel=1e-5)


def test_an_absent_group_is_empty() -> None:
    assert Stepper({}).parameters("base", "response") == []


def test_slowed_rates_are_those_of_the_weights_inside_the_block() -> None:
    steps = stepper(groups())

    def rates() -> list[float]:
        return [optimizer.param_groups[0]["lr"] for optimizer in steps.optimizers.values()]

    with steps.slowed(0.5):
        assert rates() == [0.05, 0.05, 0.1]
    assert rates() == [0.1, 0.1, 0.1]
    with pytest.raises(KeyError), steps.slowed(0.5):
        raise KeyError
    assert rates() == [0.1, 0.1, 0.1]
