"""What callers say of answers: bound to a decision that their own key was given, one per decision.

Saying the same again changes nothing; saying something else replaces it. So a caller who repeats
itself weighs no more than one who does not, and nobody speaks of another's answers.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import Final, Literal, TypeAlias

from sqlalchemy import select, update

from router_runtime.errors import RequestError
from router_runtime.service.store import Store
from router_runtime.service.store.engine import insert_new
from router_runtime.service.store.tables import feedback as table
from router_runtime.service.values import Caller, Feedback

Became: TypeAlias = Literal["created", "unchanged", "replaced"]

_LONGEST_COMMENT: Final = 4096


class Feedbacks:
    """Takes feedback into the store.

    Parameters
    ----------
    store : Store
    clock : callable
        Seconds since the epoch.
    """

    def __init__(self, store: Store, *, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock

    async def give(self, caller: Caller, feedback: Feedback) -> Became:
        """Keep what a caller says of an answer; the comment only where the store keeps content.

        Raises
        ------
        RequestError
            400 ``invalid_feedback``; 404 ``decision_not_found``, in the same words for another
            key's decision; 503 ``store_unavailable``.
        """
        if not (math.isfinite(feedback.score) and 0 <= feedback.score <= 1):
            raise RequestError(
                f"score is {feedback.score}; it must be from 0 to 1.",
                status=400,
                code="invalid_feedback",
                param="score",
            )
        if feedback.comment is not None and len(feedback.comment) > _LONGEST_COMMENT:
            raise RequestError(
                f"comment has {len(feedback.comment):,} characters; at most {_LONGEST_COMMENT:,} "
                "are kept.",
                status=400,
                code="invalid_feedback",
                param="comment",
            )
        return await asyncio.to_thread(self._give, caller.key_id, feedback)

    def _give(self, key_id: str, feedback: Feedback) -> Became:
        # What no database takes as text cannot be an id that was given out.
        known = feedback.decision_id.isprintable() and feedback.decision_id.isascii()
        owner = self._store.decision_owner(feedback.decision_id) if known else None
        if owner != key_id:
            raise RequestError(
                "This key was given no decision with that id; it stands in the response's "
                "x-router-decision-id.",
                status=404,
                code="decision_not_found",
                param="decision_id",
            )
        return self._store.ask(lambda: self._keep(key_id, feedback))

    def _keep(self, key_id: str, feedback: Feedback) -> Became:
        comment = _kept(feedback.comment) if self._store.keeps_content else None
        said = {"score": feedback.score, "comment": comment}
        row = {"decision_id": feedback.decision_id, "key_id": key_id, "at": self._clock(), **said}
        here = table.c.decision_id == feedback.decision_id
        with self._store.engine.begin() as connection:
            # Writing first, so that SQLite need not turn a reader into a writer.
            insert = insert_new(self._store.engine, table).returning(table.c.decision_id)
            if connection.execute(insert, row).first() is not None:
                return "created"
            query = select(table.c.score, table.c.comment).where(here).with_for_update()
            before = connection.execute(query).one()
            if before._mapping == said:
                return "unchanged"
            connection.execute(update(table).where(here).values(at=row["at"], **said))
            return "replaced"


def _kept(comment: str | None) -> str | None:
    """Replace what PostgreSQL cannot hold."""
    if comment is None:
        return None
    return comment.encode("utf-8", "replace").decode().replace("\0", "\ufffd")
