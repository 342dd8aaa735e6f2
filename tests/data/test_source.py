from __future__ import annotations

from pathlib import Path

import pooch
import pytest

from tune_stn.data.source import cache_folder, env_folder, target_folder


def test_the_folder_given_comes_before_the_environments_and_that_before_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TUNE_STN_DATA", raising=False)
    assert env_folder("digits") is None
    assert target_folder(None, "digits") == cache_folder("digits") == Path(pooch.os_cache("tune_stn")) / "digits"
    monkeypatch.setenv("TUNE_STN_DATA", str(tmp_path))
    assert target_folder(None, "digits") == env_folder("digits") == tmp_path / "digits"
    assert target_folder(tmp_path / "own", "digits") == tmp_path / "own"
