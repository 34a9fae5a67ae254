"""What a router needs besides being right: time to train it, parameters, bytes, time to decide.

Nothing here is a judgement: what is not known is None, and shown as ``-``.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from router_runtime.model_router import ModelRouter
from router_runtime.prediction.heads.ubjson import parse_ubjson
from router_runtime.types import Image, Json, Query
from router_training.store import seconds_of

_FLOATING: Final = ("F", "BF")  # of safetensors' names of types

BATCH: Final = 32
ROUNDS: Final = 5
TIMED: Final = 64
"""Queries on which decisions are timed unless told otherwise."""


@dataclass(frozen=True)
class Latency:
    """How long ``ModelRouter.decide_batch`` takes, from queries in memory to decisions.

    Parameters
    ----------
    n_queries, rounds : int
        Every query was decided alone once a round.
    median_ms, p95_ms : float
        Of the decisions of one query.
    batch_size : int
    batch_ms : float
        A query's share of the time of a batch, the median of all batches.
    """

    n_queries: int
    rounds: int
    median_ms: float
    p95_ms: float
    batch_size: int
    batch_ms: float


@dataclass(frozen=True)
class Footprint:
    """What one router takes.

    Parameters
    ----------
    embed_s, fit_s : float or None
        Seconds that encoding and fitting took when it was trained; None where nobody measured.
    trained_parameters : int
        Numbers that were fitted for it and lie in its artifact; see ``count_parameters``.
    frozen_parameters : int or None
        Of encoders or a base that it rests on; None where somebody else runs them.
    artifact_bytes : int
        Of the artifact's folder.
    frozen_bytes : int or None
        Of memory that the frozen parameters take as loaded.
    latency : Latency or None
        None where it was not measured.
    """

    embed_s: float | None
    fit_s: float | None
    trained_parameters: int
    frozen_parameters: int | None
    artifact_bytes: int
    frozen_bytes: int | None
    latency: Latency | None = None


def footprint(router: ModelRouter, folder: Path) -> Footprint:
    """Return what a router takes, without its latency.

    Parameters
    ----------
    router : ModelRouter
    folder : Path
        Where its artifact lies.
    """
    told, frozen = router.artifact.training.get("seconds"), router.predictor.frozen
    return Footprint(
        embed_s=seconds_of(told, "embed"),
        fit_s=seconds_of(told, "fit"),
        trained_parameters=count_parameters(router.artifact.parts.to_files()),
        frozen_parameters=None if frozen is None else frozen.parameters,
        artifact_bytes=sum(file.stat().st_size for file in folder.iterdir() if file.is_file()),
        frozen_bytes=None if frozen is None else frozen.n_bytes,
    )


def count_parameters(files: Mapping[str, bytes]) -> int:
    """Return how many numbers were fitted, of the files of a predictor's parts.

    Of safetensors all floating-point numbers; of trees a feature and a bound for every split, and a
    value for every leaf.
    """
    found = 0
    for name, content in files.items():
        if name.endswith(".safetensors"):
            found += _tensor_numbers(content)
        elif name.endswith(".ubj"):
            found += _tree_numbers(parse_ubjson(content))
    return found


def _tensor_numbers(content: bytes) -> int:
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header.pop("__metadata__", None)
    return sum(
        math.prod(entry["shape"])
        for entry in header.values()
        if entry["dtype"].startswith(_FLOATING)
    )


def _tree_numbers(booster: Json) -> int:
    trees = booster["learner"]["gradient_booster"]["model"]["trees"]
    children = np.concatenate([np.asarray(tree["left_children"]) for tree in trees])
    n_splits = int(np.count_nonzero(children >= 0))
    return 2 * n_splits + (len(children) - n_splits)


def timed(router: ModelRouter, queries: Sequence[Query], *, most: int = TIMED) -> Latency | None:
    """Time the decisions of a router that is warm, on queries that it may serve.

    Nothing that an earlier decision left behind helps: a query's pictures are digested and decoded
    anew each time. A router that asks a server is timed in one round, since its calls may be paid.

    Parameters
    ----------
    router : ModelRouter
    queries : sequence of Query
    most : int
        Queries at most, evenly spread over those given.

    Returns
    -------
    Latency or None
        None where there is no query to decide.

    Raises
    ------
    TargetError
        The server does not answer.
    """
    served = np.flatnonzero(router.eligible(queries).mask.any(axis=1)) if queries else np.zeros(0)
    if not len(served) or most < 1:
        return None
    places = np.linspace(0, len(served) - 1, min(most, len(served))).round().astype(int)
    chosen = [queries[row] for row in served[places]]
    rounds = 1 if router.predictor.frozen is None else ROUNDS
    size = min(BATCH, len(chosen))
    batches = [chosen[at : at + size] for at in range(0, len(chosen) - size + 1, size)]
    router.decide_batch(chosen[:1] if rounds == 1 else chosen)  # warm
    alone, together = [], []
    for _ in range(rounds):
        alone += [_decided_ms(router, [query]) for query in chosen]
        together += [_decided_ms(router, batch) / size for batch in batches]
    return Latency(
        n_queries=len(chosen),
        rounds=rounds,
        median_ms=round(float(np.median(alone)), 3),
        p95_ms=round(float(np.percentile(alone, 95)), 3),
        batch_size=size,
        batch_ms=round(float(np.median(together)), 3),
    )


def _decided_ms(router: ModelRouter, queries: Sequence[Query]) -> float:
    fresh = [
        replace(query, images=tuple(Image(one.data, one.media_type) for one in query.images))
        for query in queries
    ]
    start = time.perf_counter()
    router.decide_batch(fresh)
    return 1000 * (time.perf_counter() - start)


def machine() -> str:
    """Return what decisions are timed on: cores that this process may use, and threads."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parts = [f"{cores} cores", f"OMP_NUM_THREADS {os.environ.get('OMP_NUM_THREADS', 'not set')}"]
    torch = sys.modules.get("torch")
    if torch is not None:
        gpu = f" and {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
        parts.append(f"torch threads {torch.get_num_threads()}{gpu}")
    return ", ".join(parts)
