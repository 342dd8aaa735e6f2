"""A local Ray that nobody else reaches: its servers run what they are sent, and would listen on every interface.

Ray reads these variables when it is imported, so this module must not import it.
"""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import sys
import tempfile
from pathlib import Path

LOOPBACK = "127.0.0.1"
# Of Ray's, and made for machines whose firewalls ask the user: what calls itself 127.0.0.1 listens there alone.
_ONE_MACHINE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


def protect() -> None:
    """Have the Ray that this process will start listen on loopback and obey only holders of a fresh secret.

    Does nothing if Ray is imported already; and leaves the mode of authentication if the user has chosen one.
    """
    if "ray" in sys.modules:
        return
    os.environ |= _ONE_MACHINE
    if "RAY_AUTH_MODE" in os.environ:
        return
    folder = Path(tempfile.mkdtemp(prefix="tune_stn-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = folder / "token"
    path.touch(mode=0o600)
    path.write_text(secrets.token_hex(32))
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)}
