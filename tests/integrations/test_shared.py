"""What the callbacks share: batches of their own draws, in an order that a state brings back."""

from __future__ import annotations

import importlib
import itertools
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from tune_stn.integrations.shared import ValidationBatches, shuffled


def loader(**more: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.arange(7)), 2, **more)


def drawn(batches: ValidationBatches, count: int) -> list[list[int]]:
    return [batches.draw()[0].tolist() for _ in range(count)]


def test_each_pass_has_all_examples_and_the_loop_beside_draws_as_if_alone() -> None:
    before = torch.get_rng_state()
    batches = ValidationBatches(loader(shuffle=True))
    passes = [drawn(batches, 4) for _ in range(3)]
    assert all(sorted(itertools.chain(*one)) == list(range(7)) for one in passes)
    assert passes[0] != passes[1] != passes[2]
    assert torch.equal(torch.get_rng_state(), before)
    assert drawn(ValidationBatches(loader(shuffle=True)), 4) == passes[0]
    assert drawn(ValidationBatches(loader(shuffle=True), seed=1), 4) != passes[0]


@pytest.mark.parametrize("taken", [0, 3, 4, 5, 6])
def test_a_state_brings_back_the_order(taken: int) -> None:
    batches, other = (ValidationBatches(loader(shuffle=True)) for _ in range(2))
    drawn(batches, taken)
    other.load_state_dict(batches.state_dict())
    assert drawn(other, 9) == drawn(batches, 9)


def test_a_loader_in_order_is_shuffled_and_any_other_left() -> None:
    assert drawn(ValidationBatches(shuffled(loader())), 4) != drawn(ValidationBatches(loader()), 4)
    assert shuffled(loader(), batch_size=3).batch_size == 3
    for other in (loader(shuffle=True), [1, 2]):
        assert shuffled(other) is other


def test_no_batch_at_all_is_told() -> None:
    class Empty:
        def __iter__(self) -> Iterator[Any]:
            return iter(())

    with pytest.raises(ValueError, match="the validation data has no batch"):
        ValidationBatches(Empty()).draw()


@pytest.mark.parametrize("name", ["lightning", "transformers"])
def test_a_library_that_is_absent_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [found for found in sys.modules if found.split(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, f"tune_stn.integrations.{name}", raising=False)
    with pytest.raises(ImportError, match=rf"(?i)needs {name}.*: pip install 'tune_stn\[{name}\]'"):
        importlib.import_module(f"tune_stn.integrations.{name}")


def test_the_package_imports_neither_library() -> None:
    code = "import sys, tune_stn.integrations.shared; print({'lightning', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=100)
    assert done.stdout.strip() == "set()"
