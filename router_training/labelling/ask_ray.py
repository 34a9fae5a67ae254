"""Ask candidates and judges from the workers of a Ray cluster, as ``ask_local`` does from here.

Every worker walks an even share of the samples. Answers, limits per target and the budget are kept
where the run was started, so they hold for the cluster as for one process, and a run can go on with
either engine.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from router_training.labelling import ray_asker
from router_training.labelling.answer_store import AnswerStore
from router_training.labelling.ask_local import COLLECT, JUDGE, Asked, Listener, Stage
from router_training.labelling.config import LabelConfig
from router_training.labelling.progress import Watch
from router_training.labelling.ray_asker import Job, Piece, RayAsker
from router_training.labelling.ray_desk import Desk
from router_training.labelling.responses import Tally
from router_training.labelling.samples_stage import read_manifest
from router_training.labelling.scoring import JudgeSummary
from router_training.labelling.spending import total
from router_training.ray_cluster import connected, cpus, node_id, worked_on
from router_training.ray_mail import Server, open_mailbox
from router_training.sharded import part_name

_GRACE_S: Final = 90.0  # the workers' own, and a little
_END: Final = object()


def ask_ray(
    config: LabelConfig,
    folder: Path,
    store: AnswerStore,
    *,
    stages: Collection[Stage],
    watch: Watch,
) -> Asked:
    """Ask what the stages need and is not kept, from a worker on every CPU of a Ray cluster.

    Parameters
    ----------
    config : LabelConfig
        ``ray_address`` says which cluster.
    folder : Path
        The samples; on this machine's disk. Workers elsewhere are sent what they need of it.
    store : AnswerStore
        Open to write.
    stages : collection of str
        ``collect``, ``judge`` or both.
    watch : Watch

    Raises
    ------
    MissingDependencyError
        Ray is not installed.
    ConfigError
        The cluster cannot be had; a key is not set on a worker's machine.
    RouterError
        A sample cannot be read, or an answer not be kept.
    KeyboardInterrupt
        After calls in flight have ended, or at once at a second Ctrl-C.
    """
    with connected(config.ray_address) as ray:
        return asyncio.run(_asked(ray, config, folder, store, stages=stages, watch=watch))


async def _asked(
    ray: ModuleType,
    config: LabelConfig,
    folder: Path,
    store: AnswerStore,
    *,
    stages: Collection[Stage],
    watch: Watch,
) -> Asked:
    rows = read_manifest(folder).shards
    heard = {stage: Listener(watch) for stage in (COLLECT, JUDGE)}
    files = tuple(folder / part_name(at) for at in range(len(rows)))
    desk = Desk(config, store, files=files, watches=heard, ray=ray)
    home = node_id(ray)
    mailbox = open_mailbox(ray, home)
    job = Job(config, stages, shares(rows, parts=cpus(ray)), mailbox, home, folder)
    async with Server(mailbox, desk.handle) as server:
        desk.notify = server.notify
        results = _Results(ray, job)
        try:
            done = await results.all()
        except BaseException:
            desk.interrupt()
            if in_flight := desk.in_flight:
                watch.draining(in_flight)
            await results.wait(_GRACE_S)
            raise
    judged = [part.judged for part in done if part.judged is not None]
    calls = heard[JUDGE].calls
    return Asked(
        candidates=_tallies([part.collected.tallies for part in done]),
        judged=_judged(judged) if JUDGE in stages else None,
        judges={model_id: entry.tally() for model_id, entry in calls.items()},
        spent=_spent(heard.values()),
        stopped=desk.stopped,
        budget_reached=any(listener.budget_reached for listener in heard.values()),
    )


def shares(rows: Sequence[int], *, parts: int) -> tuple[tuple[Piece, ...], ...]:
    """Divide samples evenly and in order.

    Parameters
    ----------
    rows : sequence of int
        Samples per shard.
    parts : int
        As many as are wanted; there are fewer where there are fewer samples.
    """
    n_samples = sum(rows)
    parts = max(1, min(parts, n_samples))
    ends = [n_samples * part // parts for part in range(parts + 1)]
    return tuple(tuple(_pieces(rows, start, stop)) for start, stop in pairwise(ends))


def _pieces(rows: Sequence[int], start: int, stop: int) -> Iterator[Piece]:
    first = 0
    for shard, count in enumerate(rows):
        own = max(start, first) - first, min(stop, first + count) - first
        if own[0] < own[1]:
            yield Piece(shard, *own)
        first += count


class _Results:
    """What the workers return; a thread waits for it, so that the event loop can serve them."""

    def __init__(self, ray: ModuleType, job: Job) -> None:
        self._ray = ray
        self._job = job
        self._loop = asyncio.get_running_loop()
        self._came: asyncio.Queue[Any] = asyncio.Queue()
        self._ended = False
        threading.Thread(target=self._work, name="ray-results", daemon=True).start()

    async def all(self) -> list[ray_asker.Asked]:
        """Return all results; raise the first error as it comes."""
        results = []
        while not self._ended:
            result = await self._next()
            if isinstance(result, BaseException):
                raise result
            if isinstance(result, ray_asker.Asked):
                results.append(result)
        return results

    async def wait(self, seconds: float) -> None:
        """Let the workers end."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not self._ended:
                    await self._next()

    async def _next(self) -> Any:
        result = await self._came.get()
        self._ended |= result is _END
        return result

    def _work(self) -> None:
        parts = len(self._job.parts)
        try:
            for result in worked_on(
                self._ray, RayAsker, self._job, parts=parts, workers=parts, ordered=False
            ):
                self._put(result)
        except BaseException as error:  # raised where it is waited for
            self._put(error)
        self._put(_END)

    def _put(self, result: object) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self._came.put_nowait, result)


def _tallies(parts: Iterable[Mapping[str, Tally]]) -> dict[str, Tally]:
    tallies: dict[str, Tally] = {}
    for part in parts:
        for model_id, tally in part.items():
            tallies[model_id] = _sum(tallies[model_id], tally) if model_id in tallies else tally
    return tallies


def _sum(one: Tally, other: Tally) -> Tally:
    return Tally(
        answered=one.answered + other.answered,
        refused=one.refused + other.refused,
        failed=one.failed + other.failed,
        pending=one.pending + other.pending,
        ineligible=one.ineligible + other.ineligible,
        cost_usd=total([one.cost_usd, other.cost_usd]),
        unpriced=one.unpriced + other.unpriced,
        reasons=_counted([one.reasons, other.reasons]),
    )


def _judged(parts: Sequence[JudgeSummary]) -> JudgeSummary:
    return JudgeSummary(
        scored=_counted([part.scored for part in parts]),
        unscored=_counted([part.unscored for part in parts]),
        reasons=_counted([part.reasons for part in parts]),
        by=_counted([part.by for part in parts]),
    )


def _counted(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for part in parts:
        counts.update(part)
    return dict(counts.most_common())


def _spent(heard: Iterable[Listener]) -> dict[str, Decimal]:
    spent: dict[str, Decimal] = {}
    for listener in heard:
        for model_id, cost in listener.spent.items():
            spent[model_id] = total([spent.get(model_id), cost])
    return spent
