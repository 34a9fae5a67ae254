"""Where figures go while something learns, beside the artifact."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Recorder(Protocol):
    """Takes figures as they are measured."""

    def __call__(self, figures: Mapping[str, float], *, step: int) -> None:
        """Take figures by name."""
        ...
