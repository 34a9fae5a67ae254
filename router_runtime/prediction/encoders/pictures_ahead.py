"""Many pictures: decoded by threads while others are being encoded, a bounded number ahead.

Decoders and NumPy release the interpreter's lock, so that threads suffice. What waits to be encoded
is bounded, so that memory does not grow with the number of pictures; whatever ends the loop, a
defect, a Ctrl-C or a caller who stops, also ends the threads.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from typing import Final, TypeVar

import numpy as np

from router_runtime.prediction.encoders.base import encode_distinct
from router_runtime.types import F32, Image

S = TypeVar("S")
T = TypeVar("T")

_MOST_THREADS: Final = 16


def encode_pictures(
    images: Sequence[Image],
    prepare: Callable[[Image], F32],
    encode: Callable[[F32], F32],
    *,
    dim: int,
    batch_size: int,
    threads: int | None = None,
) -> F32:
    """Prepare and encode every distinct picture once, and answer in the given order.

    While one batch is encoded, the next one is prepared.

    Parameters
    ----------
    images : sequence of Image
        Perhaps repeated.
    prepare : callable
        Decodes a picture into a tensor; called by several threads at a time.
    encode : callable
        Turns tensors, float32 (n, ...) with n at most ``batch_size``, into float32 (n, dim); called
        by this thread.
    dim : int
        Columns that every answer must have.
    batch_size : int
        Most pictures of one call of ``encode``.
    threads : int, optional
        How many prepare; as many as there are processors by default. With one picture there is
        no thread.

    Returns
    -------
    ndarray of shape (n_images, dim), float32, finite

    Raises
    ------
    QueryError
        A picture does not decode.
    EncoderError
        An answer has another shape or holds NaN or infinity.
    """
    distinct = list({image.sha256: image for image in images}.values())
    if threads is None:
        threads = min(_MOST_THREADS, processors())
    with closing(map_ahead(prepare, distinct, threads=threads, ahead=batch_size)) as prepared:
        return encode_distinct(
            images,
            # Distinct pictures are encoded in the order in which they come first, as prepared.
            lambda batch: encode(np.stack(list(islice(prepared, len(batch))))),
            dim=dim,
            batch_size=batch_size,
            key=lambda image: image.sha256,
        )


def decoders_beside(encoding: int) -> int:
    """Return how many threads should prepare while ``encoding`` others encode on the processors.

    A file of 1280 x 800 pixels takes about a fifth of the time to prepare that ViT-B-32 takes to
    encode it in int8, a fifteenth in fp32, and threads that share the encoder's processors cost it
    several percent.
    """
    return min(_MOST_THREADS, max(1, processors() - encoding, encoding // 4))


def processors() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def map_ahead(
    function: Callable[[S], T], items: Iterable[S], *, threads: int, ahead: int
) -> Generator[T, None, None]:
    """Yield ``function`` of every item in order, worked out by threads before it is asked for.

    Parameters
    ----------
    function : callable
        Its error is raised where its result would have come.
    items : iterable
        Read by the caller's thread, no further than need be.
    threads : int
        At least 1.
    ahead : int
        Most results that wait, beside those that are being worked out.

    Notes
    -----
    Close the generator (``contextlib.closing``) where it may not be read to its end: what has not
    begun is then dropped, and what has is waited for.
    """
    source = iter(items)
    first = list(islice(source, 2))
    if len(first) < 2:
        yield from map(function, first)
        return
    waiting: deque[Future[T]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="ahead")
    try:
        for item in first:
            waiting.append(pool.submit(function, item))
        while waiting:
            while len(waiting) < ahead + threads and (more := _next(pool, function, source)):
                waiting.append(more)
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _next(
    pool: ThreadPoolExecutor, function: Callable[[S], T], source: Iterator[S]
) -> Future[T] | None:
    """Hand the next item to a thread; what ``source`` raises is raised in that item's turn."""
    try:
        for item in source:
            return pool.submit(function, item)
    except Exception as error:  # whatever it is, those before it come first
        failed: Future[T] = Future()
        failed.set_exception(error)
        return failed
    return None
