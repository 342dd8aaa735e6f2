"""The loops for a GPU: on a CPU with a stand-in for CUDA graphs, and on a GPU where there is one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tune_stn.nn.cuda_graph import WARM_UP
from tune_stn.nn.lstm.graph import Graphed
from tune_stn.nn.lstm.kernel import lstm, tangents, unroll
from tune_stn.nn.lstm.recurrence import IN_PLACE, Projection, Recurrence

TIME, BATCH, IN, SIZE, RANK = 4, 3, 5, 6, 2
FORMS: dict[str, Callable[..., Projection]] = {
    "plain": lambda w, v, a, b, u: Projection(w),
    "full": lambda w, v, a, b, u: Projection(w, (v,), u),
    "low rank": lambda w, v, a, b, u: Projection(w, (a, b), u),
    "gate": lambda w, v, a, b, u: Projection(None, (v,), u),
    "low rank alone": lambda w, v, a, b, u: Projection(None, (a, b), u),
}
Arguments = tuple[Tensor, Tensor, Tensor, Tensor, Projection, Projection]


@pytest.fixture
def graphed(replays: Any) -> Graphed:
    return Graphed()


def drawn(form: str, seed: int, dtype: torch.dtype = torch.float64, device: str = "cpu") -> Arguments:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype).requires_grad_()

    def projection(inputs: int) -> Projection:
        gates = 4 * SIZE
        shapes = (gates, inputs), (gates, inputs), (RANK, inputs), (gates, RANK), (BATCH, gates)
        return FORMS[form](*(draw(*shape) for shape in shapes))

    states = draw(TIME, BATCH, IN), draw(BATCH, SIZE), draw(BATCH, SIZE), draw(BATCH, 4 * SIZE)
    return *states, projection(IN), projection(SIZE)


def leaves(arguments: Arguments) -> list[Tensor]:
    *states, from_inputs, from_hidden = arguments
    parts = [part for side in (from_inputs, from_hidden) for part in (side.weight, *side.factors, side.unit)]
    return [leaf for leaf in (*states, *parts) if leaf is not None]


def results(arguments: Arguments, recurrence: Recurrence) -> list[Tensor]:
    values = lstm(*arguments, recurrence=recurrence)
    return [*values, *gradients(values, arguments)]


def gradients(values: tuple[Tensor, Tensor], arguments: Arguments) -> tuple[Tensor, ...]:
    """Of a loss that treats no two entries alike."""
    loss = sum((x * torch.linspace(0.5, 1.5, x.numel()).to(x).view_as(x)).sin().sum() for x in values)
    assert isinstance(loss, Tensor)
    return torch.autograd.grad(loss, leaves(arguments))


def along(arguments: Arguments, recurrence: Recurrence) -> list[Tensor]:
    """Changes along a tangent, and gradients to what causes them."""
    inputs, hidden, cell, offset, from_inputs, from_hidden = arguments
    weight = from_hidden.weight
    assert weight is not None
    generator = torch.Generator().manual_seed(7)
    changes = [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(inputs).requires_grad_()
        for shape in ((TIME, BATCH, 4 * SIZE), hidden.shape, cell.shape)
    ]
    with torch.no_grad():
        result = unroll(inputs, hidden, cell, offset, from_inputs, from_hidden, recurrence=recurrence)
    values = tangents(result, weight.detach(), *changes, recurrence=recurrence)
    return [*values, *torch.autograd.grad(values[0].square().sum() + values[1].sin().sum(), changes)]


@pytest.mark.parametrize("form", FORMS)
def test_replayed_is_in_place(form: str, graphed: Graphed, replays: Any) -> None:
    """At other values than those recorded; every loop is recorded once."""
    for seed in range(WARM_UP + 3):
        arguments = drawn(form, seed)
        for ours, theirs in zip(results(arguments, graphed), results(arguments, IN_PLACE), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert (replays.recorded, replays.replayed) == (2, 6)


def test_replayed_tangents_are_those_in_place(graphed: Graphed, replays: Any) -> None:
    for seed in range(WARM_UP + 2):
        arguments = drawn("full", seed)
        for ours, theirs in zip(along(arguments, graphed), along(arguments, IN_PLACE), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert (replays.recorded, replays.replayed) == (3, 6)


def test_layers_of_one_shape_share_a_recording_and_not_their_results(graphed: Graphed) -> None:
    """Two forward passes before the first backward, as in a network of two layers."""
    for seed in range(WARM_UP):
        results(drawn("full", seed), graphed)
    layers = drawn("full", 0), drawn("full", 1)
    expected = [results(arguments, IN_PLACE) for arguments in layers]
    outputs = [lstm(*arguments, recurrence=graphed) for arguments in layers]
    found = [[*values, *gradients(values, arguments)] for values, arguments in zip(outputs, layers, strict=True)]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_operations_can_be_counted(graphed: Graphed, replays: Any) -> None:
    """The count is that of the loops in place, though a replay would hide it, and though matrices are stacked."""
    for seed in range(WARM_UP + 1):
        results(drawn("full", seed), graphed)
    counts = []
    for recurrence in (IN_PLACE, graphed):
        with FlopCounterMode(display=False) as counter:
            results(drawn("full", 0), recurrence)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_copies_of_a_model_share_what_is_recorded(graphed: Graphed) -> None:
    assert copy.deepcopy(graphed) is graphed


@pytest.mark.slow
def test_steps_are_fused_inside_code_that_is_not_compiled() -> None:
    """An LSTM inside a compiled network is kept out of it; its steps are compiled all the same, each once a form."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    graphed = Graphed(fuse=lambda step: torch.compile(step, backend="aot_eager"))
    kept_out: Any = torch.compiler.disable(results)  # type: ignore[no-untyped-call]
    for seed in range(2):
        arguments = drawn("full", seed, torch.float32)
        for ours, theirs in zip(kept_out(arguments, graphed), results(arguments, IN_PLACE), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("fuse", [None, torch.compile], ids=["single operations", "fused"])
@pytest.mark.parametrize("form", FORMS)
def test_cuda_graphs_are_the_loops_in_place(form: str, fuse: Any) -> None:
    graphed = Graphed(fuse)
    for seed in range(WARM_UP + 2):
        arguments = drawn(form, seed, torch.float64, "cuda")
        for ours, theirs in zip(results(arguments, graphed), results(arguments, IN_PLACE), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
