"""The hand-written recurrence against the cell in plain autograd of `conftest.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tune_stn.nn.lstm.kernel import lstm, tangents, unroll
from tune_stn.nn.lstm.recurrence import Projection

TIME, BATCH, IN, RANK = 3, 2, 3, 2
FORMS = {
    "plain": lambda w, v, a, b, u: Projection(w),
    "full": lambda w, v, a, b, u: Projection(w, (v,), u),
    "low rank": lambda w, v, a, b, u: Projection(w, (a, b), u),
    "three factors": lambda w, v, a, b, u: Projection(w, (a, a.new_ones(RANK, RANK), b), u),
    "gate": lambda w, v, a, b, u: Projection(None, (v,), u),
}
# Of inputs and hidden state; what a layer has are pairs of equals, but for dropped weights with a low rank.
PAIRS = [(form, form) for form in FORMS] + [("low rank", "full"), ("plain", "gate")]
each_pair = pytest.mark.parametrize("forms", PAIRS, ids=str)
# Results 8 wide are made directly, others transposed.
each_size = pytest.mark.parametrize("size", [8, 3])

Arguments = tuple[Tensor, Tensor, Tensor, Tensor, Projection, Projection]


def drawn(forms: tuple[str, str], size: int, dtype: torch.dtype = torch.float64, features: int = IN) -> Arguments:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    def projection(form: str, inputs: int) -> Projection:
        gates = 4 * size
        return FORMS[form](
            draw(gates, inputs), draw(gates, inputs), draw(RANK, inputs), draw(gates, RANK), draw(BATCH, gates)
        )

    states = draw(TIME, BATCH, features), draw(BATCH, size), draw(BATCH, size), draw(BATCH, 4 * size)
    return *states, projection(forms[0], features), projection(forms[1], size)


def leaves(arguments: Arguments) -> list[Tensor]:
    *states, from_inputs, from_hidden = arguments
    parts = [part for side in (from_inputs, from_hidden) for part in (side.weight, *side.factors, side.unit)]
    return [leaf for leaf in (*states, *parts) if leaf is not None and leaf.requires_grad]


def loss(outputs: Tensor, cell: Tensor) -> Tensor:
    """One that treats no two entries alike."""
    return sum((x * torch.linspace(0.5, 1.5, x.numel()).view_as(x)).sin().sum() for x in (outputs, cell))  # type: ignore[return-value]


@each_pair
@each_size
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_values_and_gradients_are_those_of_the_reference(
    forms: tuple[str, str], size: int, dtype: torch.dtype, lstm_reference: Any
) -> None:
    arguments = drawn(forms, size, dtype)
    before = [leaf.detach().clone() for leaf in leaves(arguments)]
    ours, theirs = lstm(*arguments), lstm_reference(*arguments)
    rtol, atol = (1e-12, 1e-12) if dtype == torch.float64 else (1e-4, 1e-5)
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=rtol, atol=atol)
    pairs = zip(*(torch.autograd.grad(loss(*o), leaves(arguments)) for o in (ours, theirs)), strict=True)
    for left, right in pairs:
        assert left.is_contiguous()
        torch.testing.assert_close(left, right, rtol=rtol, atol=atol)
    for leaf, value in zip(leaves(arguments), before, strict=True):
        assert torch.equal(leaf, value)


@pytest.mark.slow
@each_pair
def test_gradients_are_those_of_finite_differences(forms: tuple[str, str]) -> None:
    """All entries of the Jacobian, for hidden states and the last cell state."""
    arguments = drawn(forms, size=2)
    # gradcheck moves the very tensors it is given.
    assert torch.autograd.gradcheck(lambda *_: lstm(*arguments), leaves(arguments))


@pytest.mark.parametrize("part", [0, 1], ids=["hidden", "cell"])
def test_one_output_alone_has_a_gradient_and_it_can_be_taken_twice(part: int, lstm_reference: Any) -> None:
    arguments = drawn(("full", "full"), size=3)
    ours, theirs = lstm(*arguments)[part].sum(), lstm_reference(*arguments)[part].sum()
    wanted = leaves(arguments)
    expected = torch.autograd.grad(theirs, wanted, materialize_grads=True)
    for _ in range(2):
        found = torch.autograd.grad(ours, wanted, retain_graph=True, materialize_grads=True)
        for left, right in zip(found, expected, strict=True):
            torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


def test_constants_need_no_gradient(lstm_reference: Any) -> None:
    """Frozen weights, inputs that are data."""
    arguments = drawn(("full", "full"), size=3)
    inputs, hidden, cell, offset, from_inputs, from_hidden = arguments
    for leaf in leaves(arguments):
        leaf.requires_grad_(False)
    assert not lstm(*arguments)[0].requires_grad
    assert from_inputs.unit is not None
    from_inputs.unit.requires_grad_()
    ours, theirs = (
        torch.autograd.grad(loss(*f(inputs, hidden, cell, offset, from_inputs, from_hidden)), [from_inputs.unit])[0]
        for f in (lstm, lstm_reference)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


# Cost --------------------------------------------------------------------------------------------------------------


def operations(work: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def weights_of(side: Projection) -> list[Tensor]:
    return [weight for weight in (side.weight, *side.factors) if weight is not None]


@pytest.mark.parametrize("form", ["plain", "full", "low rank", "gate"])
def test_products_by_hand(form: str) -> None:
    """Three for each weight and step in a training step; without the weights' gradients, as in a hyper-step, two."""
    arguments = drawn((form, form), size=5)
    inputs, offset, from_inputs, from_hidden = arguments[0], arguments[3], *arguments[4:]
    weights = weights_of(from_inputs) + weights_of(from_hidden)
    once = 2 * TIME * BATCH * sum(weight.numel() for weight in weights)

    def step(wanted: list[Tensor]) -> None:
        torch.autograd.grad(loss(*lstm(*arguments)), wanted)

    assert operations(lambda: lstm(*arguments)) == once
    assert operations(lambda: step([inputs, *weights])) == 3 * once
    assert operations(lambda: step([inputs, offset])) == 2 * once


# Tangents ----------------------------------------------------------------------------------------------------------


@each_size
def test_tangents_and_their_gradients_are_those_of_double_backward(size: int, lstm_reference: Any) -> None:
    """Along changes of the gates at every step and of the initial states."""
    inputs, hidden, cell, offset, from_inputs, from_hidden = drawn(("plain", "plain"), size)
    assert from_hidden.weight is not None
    generator = torch.Generator().manual_seed(1)
    shapes = (TIME, BATCH, 4 * size), (BATCH, size), (BATCH, size)
    changes = [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]
    identity = Projection(torch.eye(4 * size, dtype=torch.float64))

    def by_gates(gates: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        return lstm_reference(gates, hidden, cell, torch.zeros_like(offset), identity, from_hidden)

    assert from_inputs.weight is not None
    gates = (inputs @ from_inputs.weight.T + offset).detach()
    start = gates, hidden.detach(), cell.detach()
    _, theirs = torch.autograd.functional.jvp(by_gates, start, tuple(changes), create_graph=True)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        result = unroll(inputs, hidden, cell, offset, from_inputs, from_hidden)
    ours = tangents(result, from_hidden.weight.detach(), *changes)
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-10)
    pairs = zip(*(torch.autograd.grad(loss(*both), changes) for both in (ours, theirs)), strict=True)
    for left, right in pairs:
        torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-10)
