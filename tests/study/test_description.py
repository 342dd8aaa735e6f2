"""What a study says of itself."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tune_stn.study.description import git_commit


def checkout(root: Path, project: str) -> Path:
    """A repository with one commit and a package in it; gives the folder of the package."""
    (root / "tune_stn").mkdir(parents=True)
    (root / "pyproject.toml").write_text(f'[project]\nname = "{project}"\n')
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init", "-q"], ["add", "-A"], [*who, "commit", "-qm", "one"]):
        subprocess.run(["git", *arguments], cwd=root, check=True)
    return root / "tune_stn"


def test_the_commit_is_that_of_a_checkout_of_this_project_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", {name: v for name, v in os.environ.items() if not name.startswith("GIT_")})
    own = checkout(tmp_path / "own", "tune_stn")
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=own, check=True, capture_output=True, text=True)
    assert git_commit(own) == head.stdout.strip()
    assert len(head.stdout.strip()) == 40
    theirs = checkout(tmp_path / "theirs", "their_project")
    assert git_commit(theirs) is None
    installed = theirs.parent / ".venv" / "site-packages" / "tune_stn"
    installed.mkdir(parents=True)
    assert git_commit(installed) is None
    monkeypatch.setenv("PATH", str(tmp_path))  # no git there
    assert git_commit(own) is None
