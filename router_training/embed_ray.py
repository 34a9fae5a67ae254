"""Encode queries on a Ray cluster: the same chunks, in the same order, by actors.

Where the cluster has GPUs and an encoder can use one, every actor has a GPU to itself; otherwise a
CPU. Chunks are sent as actors become free and features come back in order, so that neither end
holds more than a few of them. What needs fitting was fitted before and is sent along; pretrained
encoders are built by every actor, from weights that its machine has or gets.

The ``embedded`` encoder gives equal bits on machines of one kind. Vectors of networks may differ in
their last bits with the hardware, and with what they are batched with.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np

from router_runtime.config import EncoderRuntime
from router_runtime.prediction.encoders import build_encoder
from router_runtime.prediction.encoders.cache import CachedEncoder
from router_runtime.prediction.encoders.embedded import EmbeddedEncoder
from router_runtime.prediction.features import EmbeddingGenerator, FeatureSpec
from router_runtime.types import F32, Encoder, Query
from router_training.embed import chunks_of
from router_training.ray_cluster import connected, cpus, gpus, node_id, ray_module, worked_on
from router_training.ray_mail import Client, Server, open_mailbox

_ON_GPU: Final = frozenset({"clip", "huggingface", "sentence", "vision-language"})
_END_S: Final = 30.0


@dataclass(frozen=True)
class Job:
    """What every actor is told.

    Parameters
    ----------
    spec : FeatureSpec
    states : tuple of (mapping or None)
        Fitted arrays of the encoders that have them.
    caches : tuple of (Path or None)
        Where encoders keep vectors, on the disk of ``home``.
    runtime : EncoderRuntime
    mailbox : actor
    home : str
        The node where the run was started.
    """

    spec: FeatureSpec
    states: tuple[Mapping[str, np.ndarray] | None, ...]
    caches: tuple[Path | None, ...]
    runtime: EncoderRuntime
    mailbox: Any
    home: str


def encode_on_ray(
    generator: EmbeddingGenerator,
    queries: Sequence[Query],
    *,
    runtime: EncoderRuntime,
    address: str | None = None,
) -> Iterator[F32]:
    """Yield the features of one chunk of queries after the other, as ``embed.encode_chunks`` does.

    Parameters
    ----------
    generator : EmbeddingGenerator
        With fitted encoders; what it is made of is built again in every actor.
    queries : sequence of Query
    runtime : EncoderRuntime
        Device and batch size; with ``device: cpu`` no GPU is taken.
    address : str, optional
        Of a running Ray cluster; without one, a cluster is started on this machine.

    Raises
    ------
    MissingDependencyError
        Ray, or an encoder's library, is not installed.
    ConfigError
        The cluster cannot be had.
    EncoderError
        An encoder cannot be had on a worker's machine.
    """
    chunks = list(chunks_of(queries))
    if not chunks:
        return
    with connected(address) as ray:
        home = node_id(ray)
        mailbox = open_mailbox(ray, home)
        job = Job(
            spec=generator.spec,
            states=tuple(_state(encoder) for encoder in generator.encoders),
            caches=tuple(_cache(encoder) for encoder in generator.encoders),
            runtime=runtime,
            mailbox=mailbox,
            home=home,
        )
        on_gpu = runtime.device != "cpu" and any(e.kind in _ON_GPU for e in generator.encoders)
        n_gpus = gpus(ray) if on_gpu else 0
        workers = min(n_gpus or cpus(ray), len(chunks))
        with _served(ray, mailbox, chunks):
            for X in worked_on(
                ray, RayEncoder, job, parts=len(chunks), workers=workers, num_gpus=min(n_gpus, 1)
            ):
                if isinstance(X, BaseException):
                    raise X
                yield X


class RayEncoder:
    """Encodes chunks, one after the other."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._ray = ray_module()
        self._generator: EmbeddingGenerator | None = None

    def __call__(self, part: int) -> F32:
        """Return a chunk's features.

        Raises
        ------
        RouterError
            An encoder cannot be had here, or cannot encode a query.
        """
        if self._generator is None:  # not before: what fails now is told as what it is
            self._generator = _generator(self._job, here=node_id(self._ray) == self._job.home)
        queries = self._ray.get(asyncio.run(self._chunk(part)))
        return self._generator.encode(queries)

    async def _chunk(self, part: int) -> Any:
        async with Client(self._job.mailbox, notice=lambda _: None) as client:
            return await client.request("chunk", part)


def _generator(job: Job, *, here: bool) -> EmbeddingGenerator:
    encoders = []
    for spec, state, cache in zip(job.spec.encoders, job.states, job.caches, strict=True):
        encoder = build_encoder(spec, runtime=job.runtime, state=state)
        encoders.append(encoder if cache is None or not here else CachedEncoder(encoder, cache))
    return EmbeddingGenerator(job.spec, encoders)


def _state(encoder: Encoder) -> Mapping[str, np.ndarray] | None:
    return dict(encoder.state) if isinstance(encoder, EmbeddedEncoder) else None


def _cache(encoder: Encoder) -> Path | None:
    return encoder.folder.absolute() if isinstance(encoder, CachedEncoder) else None


@contextmanager
def _served(ray: ModuleType, mailbox: Any, chunks: Sequence[Sequence[Query]]) -> Iterator[None]:
    """Answer requests for chunks, from a thread, while the block runs."""

    async def handle(_client: str, _number: int | None, _name: str, values: tuple[Any, ...]) -> Any:
        return await asyncio.to_thread(ray.put, chunks[values[0]])

    async def serve() -> None:
        async with Server(mailbox, handle):
            await ended.wait()

    loop = asyncio.new_event_loop()
    ended = asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(_END_S)
        loop.close()
