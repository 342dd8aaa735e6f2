"""A secret for a local Ray: its servers take connections on every interface, and run what they are sent.

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


def require_token() -> None:
    """Have the Ray that this process will start take orders from holders of a fresh secret only.

    Does nothing if Ray is imported already, or the user has chosen a mode of authentication.
    """
    if "ray" in sys.modules or "RAY_AUTH_MODE" in os.environ:
        return
    folder = Path(tempfile.mkdtemp(prefix="tune_stn-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = folder / "token"
    path.touch(mode=0o600)
    path.write_text(secrets.token_hex(32))
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)}
