"""Hard needs: which candidates can serve a query at all, and why the others cannot.

Nothing here is learned or weighed. A candidate that cannot see pictures is not asked about one,
whatever its probability.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from router_runtime.pricing import estimate_tokens
from router_runtime.types import Bool, Modality, Query

NO_IMAGE = "does_not_accept_image"
NO_TEXT = "does_not_accept_text"
NO_TOOLS = "does_not_support_tools"
NO_JSON = "does_not_support_json_mode"
TOO_LONG = "context_window_exceeded"
NOT_CONFIGURED = "not_configured"


@dataclass(frozen=True)
class Capabilities:
    """What one candidate can serve.

    Parameters
    ----------
    modalities : frozenset of Modality
        What it accepts.
    context_window : int or None
        Tokens of prompt and answer together; None when unknown, then not checked.
    tools, json_mode : bool
        Whether it supports them.
    blocked : str or None
        A reason that makes it ineligible for every query, such as ``not_configured``.
    """

    modalities: frozenset[Modality] = field(default_factory=lambda: frozenset(Modality))
    context_window: int | None = None
    tools: bool = True
    json_mode: bool = True
    blocked: str | None = None


@dataclass(frozen=True)
class Eligibility:
    """Which candidate can serve which query.

    Parameters
    ----------
    mask : ndarray of shape (n_queries, n_models), bool
        True where the candidate can serve the query.
    checks : tuple of (reason, ndarray)
        For each reason, where it applies; the first that applies is the one told.
    """

    mask: Bool
    checks: tuple[tuple[str, Bool], ...]

    def reason(self, row: int, column: int) -> str:
        """Return the first reason against one cell; empty where eligible."""
        return next((name for name, hit in self.checks if hit[row, column]), "")


def find_eligible(
    queries: Sequence[Query],
    capabilities: Sequence[Capabilities],
    *,
    excluded: Mapping[int, str] | None = None,
) -> Eligibility:
    """Compare every query's needs with every candidate's capabilities.

    Parameters
    ----------
    queries : sequence of Query
        Rows.
    capabilities : sequence of Capabilities
        Columns.
    excluded : mapping of column to reason, optional
        Candidates ruled out for this call by something outside, such as health or a budget.

    Returns
    -------
    Eligibility
    """
    shape = (len(queries), len(capabilities))
    checks: dict[str, Bool] = {}

    def add(reason: str, needs: Sequence[bool], lacks: Sequence[bool]) -> None:
        if any(needs) and any(lacks):
            hit = np.asarray(needs, bool)[:, None] & np.asarray(lacks, bool)[None, :]
            checks[reason] = checks[reason] | hit if reason in checks else hit

    everyone = [True] * shape[0]
    for reason in sorted({c.blocked for c in capabilities if c.blocked}):
        add(reason, everyone, [c.blocked == reason for c in capabilities])
    for column, reason in (excluded or {}).items():
        add(reason, everyone, [index == column for index in range(shape[1])])
    images = [Modality.IMAGE not in c.modalities for c in capabilities]
    add(NO_IMAGE, [bool(query.images) for query in queries], images)
    texts = [Modality.TEXT not in c.modalities for c in capabilities]
    add(NO_TEXT, [bool(query.text) for query in queries], texts)
    add(NO_TOOLS, [q.requirements.tools for q in queries], [not c.tools for c in capabilities])
    json_needed = [q.requirements.json_mode for q in queries]
    add(NO_JSON, json_needed, [not c.json_mode for c in capabilities])
    if any(c.context_window is not None for c in capabilities):
        checks[TOO_LONG] = _too_long(queries, capabilities)
    mask = np.ones(shape, dtype=np.bool_)
    for hit in checks.values():
        mask &= ~hit
    return Eligibility(mask, tuple(checks.items()))


def _too_long(queries: Sequence[Query], capabilities: Sequence[Capabilities]) -> Bool:
    """Prompt tokens (estimated) and the request's own answer cap must fit the window."""
    needed = np.array(
        [estimate_tokens(q.total_chars) + (q.requirements.max_output_tokens or 0) for q in queries],
        dtype=np.float64,
    )
    windows = np.array([c.context_window or np.inf for c in capabilities], dtype=np.float64)
    too_long: Bool = needed[:, None] > windows[None, :]
    return too_long
