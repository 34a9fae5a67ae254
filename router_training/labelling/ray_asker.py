"""A worker on a Ray cluster that asks about its part of the samples, as one process asks about all.

Walking, asking and scoring are the same functions. What there is one of in the cluster is asked for
by message at the ``Desk``. API keys come from the environment of the worker's machine.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from router_runtime.targets.base import ChatCall
from router_training.labelling.ask_local import COLLECT, JUDGE, Stage, build_targets
from router_training.labelling.asking import NOT_ASKED, LiveAsker, models_of, prices_of
from router_training.labelling.calls import Outcome, Status, call_key
from router_training.labelling.config import LabelConfig
from router_training.labelling.responses import CollectSummary, collect
from router_training.labelling.samples import LabelSample
from router_training.labelling.samples_stage import samples_in
from router_training.labelling.scoring import JudgeSummary, judge_all
from router_training.ray_cluster import node_id, ray_module
from router_training.ray_mail import Client
from router_training.sharded import part_name


class Piece(NamedTuple):
    """Rows of one shard: ``start`` counts from 0, ``stop`` is the first that is no more in it."""

    shard: int
    start: int
    stop: int


@dataclass(frozen=True)
class Job:
    """What every worker is told.

    Parameters
    ----------
    config : LabelConfig
    stages : collection of str
    parts : tuple of tuple of Piece
        The samples of every part.
    mailbox : actor
    home : str
        The node whose disk holds ``folder``.
    folder : Path
        The samples.
    """

    config: LabelConfig
    stages: Collection[Stage]
    parts: tuple[tuple[Piece, ...], ...]
    mailbox: Any
    home: str
    folder: Path


class Asked(NamedTuple):
    """How a part ended."""

    collected: CollectSummary
    judged: JudgeSummary | None


class RayAsker:
    """Works on parts of a job, one after the other."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def __call__(self, part: int) -> Asked | None:
        """Return how a part ended; None where the run was interrupted.

        Raises
        ------
        RouterError
            As ``responses.collect`` and ``scoring.judge_all``; a key is not set here.
        """
        return asyncio.run(self._worked(part))

    async def _worked(self, part: int) -> Asked | None:
        worker = _Worker(self._job, part)
        async with Client(self._job.mailbox, notice=worker.hear) as client:
            for notice in await client.request("hello", part):
                worker.hear(notice)
            try:
                return await worker.work(client)
            finally:
                await client.request("bye")


class _Worker:
    """Asks about one part."""

    def __init__(self, job: Job, part: int) -> None:
        self._job = job
        self._part = part
        self._asker: LiveAsker | None = None
        self._task: asyncio.Task[Asked] | None = None
        self._stopped: dict[str, str] = {}
        self._interrupted = False

    def hear(self, notice: tuple[str, ...]) -> None:
        """Follow what the desk notifies of."""
        kind, *values = notice
        if kind == "interrupt":
            self._interrupted = True
            if self._task is not None:
                self._task.cancel()
        elif kind == "stop":
            model_id, why = values
            self._stopped[model_id] = why
            if self._asker is not None:
                self._asker.stop(model_id, why)

    async def work(self, client: Client) -> Asked | None:
        """Go through the stages; None where that was interrupted."""
        if self._interrupted:
            return None
        self._task = asyncio.create_task(self._stages(client))
        try:
            return await self._task
        except asyncio.CancelledError:
            return None

    async def _stages(self, client: Client) -> Asked:
        job = self._job
        watch = _Watch(client)
        kept = _KeptAsker(client, models_of(job.config))
        with tempfile.TemporaryDirectory(prefix="model-router-") as scratch:
            samples = _Samples(job, self._part, client, Path(scratch))
            async with self._live(client, watch) as asker:
                n_samples = sum(piece.stop - piece.start for piece in job.parts[self._part])
                if COLLECT in job.stages:
                    collected = await collect(
                        samples, job.config, asker, watch=watch, n_samples=n_samples
                    )
                else:
                    collected = await collect(samples, job.config, kept)
                if JUDGE not in job.stages:
                    return Asked(collected, None)
                watch.stage = JUDGE
                judged = await judge_all(samples, job.config, kept, asker, watch=watch)
                return Asked(collected, judged)

    @asynccontextmanager
    async def _live(self, client: Client, watch: _Watch) -> AsyncIterator[LiveAsker]:
        config = self._job.config
        targets = build_targets(config, self._job.stages)
        asker = LiveAsker(
            targets,
            prices_of(config),
            _Store(client),
            pacers={model_id: _Pacer(client, model_id) for model_id in targets},
            budget=_Budget(client, capped=config.max_cost_usd is not None),
            ask=config.ask,
            watch=watch,
            seed=config.seed + self._part,
        )
        async with asker:
            for model_id, why in self._stopped.items():
                asker.stop(model_id, why)
            self._asker = asker
            yield asker


class _Samples:
    """The samples of a part; where another node's disk holds them, from copies, made once."""

    def __init__(self, job: Job, part: int, client: Client, scratch: Path) -> None:
        self._pieces = job.parts[part]
        self._client = client
        self._loop = asyncio.get_running_loop()
        self._ray = ray_module()
        self._here = node_id(self._ray) == job.home
        self._folder = job.folder if self._here else scratch
        self._turn = Lock()

    def __call__(self) -> Iterator[LabelSample]:
        for piece in self._pieces:
            yield from samples_in(self._file(piece.shard), piece.start, piece.stop)

    def _file(self, shard: int) -> Path:
        """Return a shard's file; called in threads, several at a time."""
        file = self._folder / part_name(shard)
        if self._here:
            return file
        with self._turn:
            if not file.exists():
                asked = asyncio.run_coroutine_threadsafe(
                    self._client.request("shard", shard), self._loop
                )
                file.write_bytes(self._ray.get(asked.result()).tobytes())
        return file


class _KeptAsker:
    """``StoredAsker`` from afar."""

    def __init__(self, client: Client, models: Mapping[str, str]) -> None:
        self._client = client
        self._models = models

    async def ask(self, model_id: str, call: ChatCall, *, repeat: int = 0) -> Outcome:
        key = call_key(model_id, self._models[model_id], call, repeat=repeat)
        kept: Outcome | None = await self._client.request("find", key)
        return kept or Outcome(key, model_id, Status.PENDING, reason=NOT_ASKED)


class _Store:
    """``Keeping`` from afar."""

    def __init__(self, client: Client) -> None:
        self._client = client

    @asynccontextmanager
    async def claimed(self, key: str) -> AsyncIterator[Outcome | None]:
        kept: Outcome | None = await self._client.request("claim", key)
        try:
            yield kept
        finally:
            if kept is None:
                self._client.tell("unclaim", key)

    async def append(self, outcome: Outcome, *, estimated_usd: Decimal | None = None) -> None:
        await self._client.request("append", outcome, estimated_usd)


class _Pacer:
    """``Pacing`` of one target from afar."""

    def __init__(self, client: Client, model_id: str) -> None:
        self._client = client
        self._model_id = model_id

    @asynccontextmanager
    async def slot(self, tokens: float) -> AsyncIterator[None]:
        number = await self._client.request("slot", self._model_id, tokens)
        try:
            yield
        finally:
            self._client.tell("unslot", number)

    async def used(self, extra_tokens: float) -> None:
        self._client.tell("used", self._model_id, extra_tokens)

    async def pause(self, seconds: float) -> None:
        self._client.tell("pause", self._model_id, seconds)


class _Budget:
    """``Spending`` from afar; without a cap nobody needs to be asked."""

    def __init__(self, client: Client, *, capped: bool) -> None:
        self._client = client
        self._capped = capped

    async def reserve(self, amount_usd: Decimal) -> bool:
        return not self._capped or await self._client.request("reserve", amount_usd)

    async def settle(self, amount_usd: Decimal, cost_usd: Decimal) -> None:
        if self._capped:
            self._client.tell("settle", amount_usd, cost_usd)


class _Watch:
    """``Watch`` from afar; texts stay here."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.stage: Stage = COLLECT

    def started(self, model_id: str, total: int | None) -> None:
        self._client.tell("started", self.stage, model_id, total)

    def ineligible(self, model_id: str) -> None:
        self._client.tell("ineligible", self.stage, model_id)

    def ended(self, outcome: Outcome, *, asked: bool) -> None:
        self._client.tell("ended", self.stage, replace(outcome, text=None), asked)

    def stopped(self, model_id: str, why: str) -> None:
        self._client.tell("stopped", self.stage, model_id, why)

    def draining(self, calls: int) -> None:
        """Say nothing: the desk knows how many calls of all workers are in flight."""
