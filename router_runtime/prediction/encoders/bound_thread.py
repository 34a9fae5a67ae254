"""Calls that run on chosen CPUs: in one thread of its own, which is bound to these.

A binding belongs to a thread, and threads that it starts inherit it. The hand-over to the thread
and back costs some tens of microseconds a call; without chosen CPUs there is none.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from router_runtime.errors import EncoderError

P = ParamSpec("P")
T = TypeVar("T")


class BoundThread:
    """Where calls run: in a thread that is bound to ``cpus``, or with None in the caller's own.

    Raises
    ------
    EncoderError
        There is no such CPU, or this system binds no threads.
    """

    def __init__(self, cpus: Sequence[int] | None) -> None:
        self._own: ThreadPoolExecutor | None = None
        if cpus is not None:
            self._own = ThreadPoolExecutor(1, thread_name_prefix="encoder")
            self._own.submit(_bind, frozenset(cpus)).result()

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what ``function`` returns there."""
        if self._own is None:
            return function(*args, **kwargs)
        return self._own.submit(function, *args, **kwargs).result()


def _bind(cpus: frozenset[int]) -> None:
    """Bind the calling thread."""
    if not hasattr(os, "sched_setaffinity"):
        raise EncoderError("'cpus' needs Linux; leave it out.")
    try:
        os.sched_setaffinity(0, cpus)
    except OSError as error:
        raise EncoderError(
            f"'cpus' {sorted(cpus)} cannot be used; this process may run on "
            f"{sorted(os.sched_getaffinity(0))}. Name some of these."
        ) from error
