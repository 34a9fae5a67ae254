"""The lines that benchmarks print, and whether their targets are met."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One line of the table. Without a target it is told for comparison only."""

    what: str
    ours: str
    other: str
    measured: float
    target: float | None = None
    at_most: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None without one."""
        if self.target is None:
            return None
        return self.measured <= self.target if self.at_most else self.measured >= self.target


def print_table(rows: Sequence[Row]) -> None:
    print(f"{'what':<62}{'ours':>10}{'other':>10}{'measured':>10}{'target':>9}")
    for row in rows:
        sign = "<=" if row.at_most else ">="
        target = "" if row.target is None else f"{sign} {row.target:g}"
        verdict = {None: "", True: "met", False: "MISSED"}[row.met]
        measured = f"{row.measured:.2f}"
        print(f"{row.what:<62}{row.ours:>10}{row.other:>10}{measured:>10}{target:>9}  {verdict}")
