"""Values as joblib files; writing only."""

from __future__ import annotations

import io
from typing import Any

import joblib


def dump(value: Any) -> bytes:
    """Return what ``joblib.dump(value, path)`` would write, uncompressed."""
    stream = io.BytesIO()
    joblib.dump(value, stream)
    return stream.getvalue()
