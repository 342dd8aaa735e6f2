"""The slot: one current sample, nested and put back."""

from __future__ import annotations

import contextlib

import pytest
import torch

from tune_stn.nn.slot import Slot, check_rows
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


def test_one_row_fits_all_and_others_must_match() -> None:
    check_rows(1, torch.ones(()), where="x")
    check_rows(1, torch.ones(7, 2), where="x")
    check_rows(7, torch.ones(7, 2), where="x")
    for like in (torch.ones(()), torch.ones(2, 7), torch.ones(1, 7)):
        with pytest.raises(ValueError, match=r"some layer got an input .* for 7 examples: the first axis must be"):
            check_rows(7, like, where="some layer")
