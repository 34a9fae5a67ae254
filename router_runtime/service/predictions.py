"""What is predicted of a query, made once for equal content of one tenant.

Equal content is equal text, equal pictures and an equal length of the whole request: all that
features are made of. What a request needs and what it may cost is not predicted and not kept here.
A ``Predictions`` belongs to one router and so to one artifact; another artifact brings another.

Queries with pictures and those without have a queue and a thread each, so that a text, which is
encoded in a fraction of a picture's time, never waits behind pictures. Encoders that PyTorch runs
share one: two threads that call it have two pools of threads, which spin against each other.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeAlias

from router_runtime.model_router import ModelRouter
from router_runtime.service.microbatch import MicroBatcher
from router_runtime.service_config import BatchingConfig
from router_runtime.types import Prediction, Query

_THREADLESS: Final = frozenset({"embedded", "remote"})
_HASHED_ON_LOOP: Final = 256 * 1024  # bytes of pictures; SHA-256 takes about 0.2 ms for them


@dataclass(frozen=True, slots=True)
class Predicted:
    """The prediction of one query.

    Parameters
    ----------
    found : Prediction
        Of one row.
    features_sha256 : str
        Hex digest of the row of ``X``, little-endian float32; of the row of ``P``, float64, where
        the predictor has no features.
    """

    found: Prediction
    features_sha256: str


class _Shared:
    """A prediction that is being made, and how many wait for it."""

    __slots__ = ("answer", "lane", "waiting")

    def __init__(
        self, lane: MicroBatcher[Query, Predicted], answer: asyncio.Future[Predicted]
    ) -> None:
        self.lane = lane
        self.answer = answer
        self.waiting = 0


LaneWatch: TypeAlias = Callable[[str, int, float, float], None]


class Predictions:
    """Predicts off the event loop, in batches, and remembers the newest ``cache_entries``.

    Parameters
    ----------
    router : ModelRouter
    config : BatchingConfig
        ``cache_entries: 0`` remembers nothing; equal queries in flight are still predicted once.
    watch : callable, optional
        Told of each batch: its queue (``text``, ``image``, or ``all`` where there is one), then as
        ``MicroBatcher`` tells.
    """

    def __init__(
        self, router: ModelRouter, config: BatchingConfig, *, watch: LaneWatch | None = None
    ) -> None:
        self._router = router
        self._most = config.cache_entries
        self._kept: OrderedDict[bytes, Predicted] = OrderedDict()
        self._flying: dict[bytes, _Shared] = {}
        names = ("text", "image") if _independent(router) else ("all",)
        self._lanes: dict[str, MicroBatcher[Query, Predicted]] = {
            name: MicroBatcher(
                self._predict,
                config,
                name=f"encoding-{name}",
                watch=None if watch is None else partial(watch, name),
            )
            for name in names
        }
        self._text, self._image = self._lanes[names[0]], self._lanes[names[-1]]

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def queued(self) -> dict[str, int]:
        """Queries that wait to be encoded, by queue."""
        return {name: lane.queued for name, lane in self._lanes.items()}

    async def of(self, query: Query, *, tenant: str = "") -> tuple[Predicted, bool]:
        """Return what is predicted of a query, and whether it was predicted before.

        Parameters
        ----------
        query : Query
        tenant : str
            Whose query it is. What one has asked is not known before to another, who could else
            find out by asking the same.

        Raises
        ------
        RequestError
            503 ``overloaded``: too many wait.
        QueryError, EncoderError
            As ``ModelRouter.predict``.
        """
        if sum(len(image.data) for image in query.images) > _HASHED_ON_LOOP:
            key = await asyncio.to_thread(content_key, query)
        else:
            key = content_key(query)
        key += tenant.encode()
        kept = self._kept.get(key)
        if kept is not None:
            self._kept.move_to_end(key)
            return kept, True
        shared = self._flying.get(key)
        if shared is None:
            lane = self._image if query.images else self._text
            shared = _Shared(lane, lane.put(query))
            self._flying[key] = shared
            shared.answer.add_done_callback(partial(self._keep, key, shared))
        return await self._joined(key, shared), False

    def close(self) -> None:
        """End the worker; what waits is refused."""
        for lane in self._lanes.values():
            lane.close()
        self._kept.clear()

    async def _joined(self, key: bytes, shared: _Shared) -> Predicted:
        """Wait with others; one that leaves does not take the work from them."""
        shared.waiting += 1
        try:
            return await asyncio.shield(shared.answer)
        finally:
            shared.waiting -= 1
            if not shared.waiting and not shared.answer.done():
                self._land(key, shared)
                shared.lane.drop(shared.answer)

    def _land(self, key: bytes, shared: _Shared) -> None:
        if self._flying.get(key) is shared:  # and not one that came after it
            del self._flying[key]

    def _keep(self, key: bytes, shared: _Shared, answer: asyncio.Future[Predicted]) -> None:
        self._land(key, shared)
        if answer.cancelled() or answer.exception() is not None or not self._most:
            return
        self._kept[key] = answer.result()
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)

    def _predict(self, queries: list[Query]) -> Sequence[Predicted]:
        X = self._router.features(queries)
        found = self._router.predict(queries) if X is None else self._router.predict_features(X)
        known = found.P if X is None else X
        little = known.astype(known.dtype.newbyteorder("<"), copy=False)
        return [
            Predicted(
                Prediction(
                    found.P[row : row + 1],
                    None if found.novelty is None else found.novelty[row : row + 1],
                ),
                hashlib.sha256(little[row].tobytes()).hexdigest(),
            )
            for row in range(len(queries))
        ]


def content_key(query: Query) -> bytes:
    """Return a digest of all of a query that its features depend on."""
    text = query.text.encode("utf-8", "surrogatepass")
    digest = hashlib.sha256(b"%d %d %d\n" % (query.total_chars, len(query.images), len(text)))
    digest.update(text)
    for image in query.images:
        digest.update(bytes.fromhex(image.sha256))
    return digest.digest()


def _independent(router: ModelRouter) -> bool:
    """Whether two threads may encode at a time without taking each other's processors."""
    kinds = set(router.artifact.parts.encoders)
    return bool(kinds) and (kinds <= _THREADLESS or router.config.encoder.exported)
