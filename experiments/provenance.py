"""Where a result comes from: the columns that result files of the experiments have beside their figures."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path


def provenance(*packages: str) -> dict[str, str]:
    """The command, commit, versions and machine of the script that runs.

    Args:
        packages: Whose versions matter beside Python's and torch's.
    """
    versions = ", ".join(f"{package} {version(package)}" for package in ("torch", *packages))
    return {
        "command": shlex.join(["python", f"experiments/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "commit": commit(),
        "versions": f"python {platform.python_version()}, {versions}",
        "machine": platform.machine(),
    }


def commit() -> str:
    """The commit of the checkout that this file lies in."""
    here = Path(__file__).parent
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    return done.stdout.strip()
