"""The slot: one current sample, nested and put back."""

from __future__ import annotations

import contextlib

import pytest
import torch

from tune_stn.nn.slot import Slot, check_rows, per_row
from tune_stn.space.sample import Sample


def test_blocks_nest_and_are_put_back_also_after_an_error() -> None:
    slot, outer, inner = Slot(), Sample({}), Sample({})
    assert not slot.is_set
    with slot.using(outer):
        assert slot.sample is outer
        with slot.using(inner):
            assert slot.sample is inner
        with contextlib.suppress(KeyError), slot.using(inner):
            raise KeyError
        assert slot.sample is outer
    assert not slot.is_set
    with pytest.raises(RuntimeError, match=r"has no hyperparameter sample: call the network itself"):
        _ = slot.sample


@pytest.mark.parametrize("shape", [(3,), (3, 4), (3, 4, 5)])
def test_values_broadcast_over_the_first_axis(shape: tuple[int, ...]) -> None:
    like = torch.ones(shape, dtype=torch.float64)
    values = torch.tensor([1.0, 2.0, 3.0])
    product = like * per_row(values, like, where="x")
    assert product.dtype == torch.float64
    for i in range(3):
        assert product[i].unique().tolist() == [i + 1]  # type: ignore[no-untyped-call]
    assert torch.equal(like * per_row(values[:1], like, where="x"), like)


def test_one_row_fits_all_and_others_must_match() -> None:
    check_rows(1, torch.ones(()), where="x")
    check_rows(1, torch.ones(7, 2), where="x")
    check_rows(7, torch.ones(7, 2), where="x")
    for like in (torch.ones(()), torch.ones(2, 7), torch.ones(1, 7)):
        with pytest.raises(ValueError, match=r"some layer got an input .* for 7 examples: the first axis must be"):
            check_rows(7, like, where="some layer")
