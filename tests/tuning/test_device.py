"""A trial's device and memory; the GPU is a stand-in that notes what it is asked."""

from __future__ import annotations

import pytest
import torch

from tune_stn.tuning.device import SHARE_OF_TORCH, claim, peak_memory


@pytest.mark.parametrize(("gpus", "share"), [(0.25, 0.25 * SHARE_OF_TORCH), (1, 1.0), (2, 1.0)])
def test_a_part_of_a_gpu_is_that_part_of_its_memory(gpus: float, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: asked.append("given back"))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", asked.append)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: asked.append("reset"))
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 7 if device.type == "cuda" else 0)
    assert claim(gpus) == torch.device("cuda")
    assert asked == ["given back", share, "reset"]
    assert peak_memory(torch.device("cuda")) == 7


def test_without_a_gpu_none_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "empty_cache", None)
    assert claim(0) == torch.device("cpu")


@pytest.mark.slow
def test_memory_of_the_process_grows_by_what_it_takes() -> None:
    before = peak_memory(torch.device("cpu"))
    assert 2**25 < before < 2**40  # bytes, not a multiple of them
    # Wherever the peak was: more than that is in use now.
    taken = torch.ones(before // 4 + 2**26)
    assert peak_memory(torch.device("cpu")) >= before + 2**25
    del taken
