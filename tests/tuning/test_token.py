"""The secret of a local Ray: made before Ray is imported, readable by its owner alone, gone with the process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import os, stat, sys
{before}
from tune_stn.tuning.token import protect
assert "ray" not in sys.modules or {before!r}
protect()
path = os.environ.get("RAY_AUTH_TOKEN_PATH")
print(os.environ.get("RAY_AUTH_MODE"))
print(path)
if path:
    from ray.util import get_node_ip_address
    print(get_node_ip_address())
    print(oct(stat.S_IMODE(os.stat(path).st_mode)))
    print(len(open(path).read()))
    first = open(path).read()
    protect()
    assert os.environ["RAY_AUTH_TOKEN_PATH"] == path and open(path).read() == first
"""


def run(before: str = "", **more: str) -> list[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_AUTH")}
    script = SCRIPT.format(before=before)
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment | more, capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.split()


@pytest.mark.slow
def test_a_fresh_secret_for_the_owner_alone_that_does_not_outlive_the_process() -> None:
    mode, path, address, permissions, length = run()
    assert mode == "token"
    assert address == "127.0.0.1"  # where Ray's servers listen then, and nowhere else
    assert permissions == "0o600"
    assert int(length) == 64
    assert not Path(path).parent.exists()
    assert run()[1] != path


def test_a_mode_that_the_user_chose_stays() -> None:
    assert run(RAY_AUTH_MODE="disabled") == ["disabled", "None"]


def test_nothing_is_done_where_ray_has_read_its_settings_already() -> None:
    assert run("sys.modules['ray'] = None") == ["None", "None"]
