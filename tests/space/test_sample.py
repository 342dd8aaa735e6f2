"""One draw, and its parts."""

from __future__ import annotations

import pytest
import torch

from tune_stn.space import Sample


@pytest.mark.parametrize("linearise", [False, True])
def test_a_part_has_its_own_rows_of_what_is_each_examples_own(linearise: bool) -> None:
    own, shared, response_input = torch.rand(8), torch.rand(1), torch.rand(8, 2)
    part = Sample({"own": own, "shared": shared}, response_input, linearise).rows(slice(3, 6))
    assert torch.equal(part["own"], own[3:6])
    assert torch.equal(part["shared"], shared)
    assert part.response_input is not None
    assert torch.equal(part.response_input, response_input[3:6])
    assert part.linearise is linearise


def test_a_response_input_of_one_row_or_none_is_everybodys() -> None:
    row = torch.rand(1, 2)
    part = Sample({"own": torch.rand(8)}, row).rows(slice(6, 9))
    assert part["own"].shape == (2,)
    assert part.response_input is row
    assert Sample({"shared": torch.rand(1)}).rows(slice(0, 4)).response_input is None


def test_parts_carry_the_gradient_of_the_whole() -> None:
    response_input = torch.rand(4, 2, requires_grad=True)
    part = Sample({}, response_input).rows(slice(1, 3)).response_input
    assert part is not None
    (gradient,) = torch.autograd.grad(part.sum(), response_input)
    assert gradient.sum(1).tolist() == [0, 2, 2, 0]
