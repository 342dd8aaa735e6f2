"""What the data layer raises when files are absent or damaged."""

from __future__ import annotations


class DataError(ValueError):
    """A data set cannot be found, fetched or read; the message names the file and says what to do."""
