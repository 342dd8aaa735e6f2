"""When a function is called, recorded and replayed; on a CPU with a stand-in, and on a GPU where there is one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tune_stn.nn.cuda_graph import WARM_UP, GraphedFunction


def doubled(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    return tuple(None if tensor is None else 2 * tensor for tensor in tensors)


@pytest.mark.parametrize("copies", [True, False])
def test_it_is_recorded_once_after_its_first_calls(replays: Any, copies: bool) -> None:
    recorded = GraphedFunction(doubled, copies=copies)
    for call in range(WARM_UP + 3):
        first, nothing, second = recorded(torch.full((2,), float(call)), None, torch.full((3,), -float(call)))
        assert (first.tolist(), nothing, second.tolist()) == ([2 * call] * 2, None, [-2 * call] * 3)
        assert replays.recorded == (call >= WARM_UP)
    assert replays.replayed == 3


def test_what_a_call_gave_stays_where_results_are_copied(replays: Any) -> None:
    for copies in (True, False):
        recorded = GraphedFunction(doubled, copies=copies)
        for _ in range(WARM_UP):
            recorded(torch.zeros(1))
        (first,), _ = recorded(torch.ones(1)), recorded(torch.full((1,), 3.0))
        assert first.item() == (2 if copies else 6)


def test_other_shapes_and_types_are_recorded_anew(replays: Any) -> None:
    recorded = GraphedFunction(doubled)
    kinds = torch.ones(2), torch.ones(3), torch.ones(2, dtype=torch.float64)
    for _ in range(WARM_UP + 2):
        for tensor in kinds:
            assert torch.equal(recorded(tensor)[0], 2 * tensor)
    assert (replays.recorded, replays.replayed) == (3, 6)


def test_arguments_are_left_alone(replays: Any) -> None:
    recorded = GraphedFunction(lambda tensor: (tensor.add_(1),))
    for _ in range(WARM_UP):
        recorded(torch.zeros(1))
    given = torch.zeros(1)
    assert recorded(given)[0].item() == 1
    assert given.item() == 0


def test_whoever_counts_operations_sees_them(replays: Any) -> None:
    recorded = GraphedFunction(lambda matrix: (matrix @ matrix,))
    for _ in range(WARM_UP + 1):
        recorded(torch.ones(2, 2))
    with FlopCounterMode(display=False) as counter:
        recorded(torch.ones(2, 2))
    assert counter.get_total_flops() == 16


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_random_numbers_on_a_gpu_are_those_of_the_seed() -> None:
    """Fresh at every replay, and the same after the same seed."""
    recorded = GraphedFunction(lambda tensor: (torch.rand_like(tensor),))
    given = torch.zeros(100, device="cuda")
    for _ in range(WARM_UP):
        recorded(given)
    drawn = []
    for _ in range(2):
        torch.manual_seed(3)
        drawn.append([recorded(given)[0] for _ in range(2)])
    assert torch.equal(drawn[0][0], drawn[1][0])
    assert torch.equal(drawn[0][1], drawn[1][1])
    assert not torch.equal(drawn[0][0], drawn[0][1])
