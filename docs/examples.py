"""Docstrings head an example with `Example:`; the reader of docstrings wants `Examples:` to show it as code."""

from __future__ import annotations

import re
from typing import Any

import griffe

HEADING = re.compile(r"(?m)^( *)Example:$")


class Examples(griffe.Extension):
    """Renames the heading in each docstring."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = HEADING.sub(r"\1Examples:", obj.docstring.value)
