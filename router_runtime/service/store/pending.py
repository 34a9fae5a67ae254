"""What was spent and is not in the database yet, and what could not be kept.

Sums by key and hour take little memory however long the database is away. All methods are called
under the store's lock.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import uuid4

HOUR_S: Final = 3600


@dataclass(slots=True)
class PendingSpend:
    """10^-12 dollars by key and hour."""

    _sums: Counter[tuple[str, int]] = field(default_factory=Counter)

    def add(self, key_id: str, at: float, pico: int) -> None:
        """Count what was spent; a negative number takes it back."""
        if pico:
            place = key_id, int(at // HOUR_S)
            self._sums[place] += pico
            if not self._sums[place]:
                del self._sums[place]

    def since(self, key_id: str, at: float) -> int:
        """Return what a key spent since the beginning of the hour of ``at``."""
        first = int(at // HOUR_S)
        return sum(
            pico for (key, hour), pico in self._sums.items() if key == key_id and hour >= first
        )


@dataclass(slots=True)
class Losses:
    """Records that could not be kept, by reason; those not yet told to the database apart."""

    total: Counter[str] = field(default_factory=Counter)
    _untold: dict[tuple[str, str, int], dict[str, Any]] = field(default_factory=dict)

    def add(self, reason: str, *, key_id: str, at: float, pico: int) -> None:
        """Count one record that is lost."""
        self.total[reason] += 1
        hour = int(at // HOUR_S)
        row = self._untold.setdefault(
            (reason, key_id, hour),
            {
                "id": uuid4().hex,
                "at": float(hour * HOUR_S),
                "key_id": key_id,
                "reason": reason,
                "records": 0,
                "pico": 0,
            },
        )
        row["records"] += 1
        row["pico"] += pico

    def take(self) -> list[dict[str, Any]]:
        """Return what the database was not told, to be given back if it cannot be told now."""
        rows = list(self._untold.values())
        self._untold = {}
        return rows

    def give_back(self, rows: list[dict[str, Any]]) -> None:
        """Keep rows for later, under the ids that they have: they may have arrived after all."""
        self._untold |= {(row["id"], "", 0): row for row in rows}


def loss_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of ``Losses.take`` as one of the table."""
    columns = {name: value for name, value in row.items() if name != "pico"}
    return columns | {"cost_usd": row["pico"]}
