"""A Ray cluster to work on: one that is started here, or one that runs already.

Ray is quiet here: no dashboard, no usage statistics, no workers' output and no progress of its own.
What goes wrong in a worker comes back as a value and is raised here as what it is.
"""

from __future__ import annotations

import logging
import os
import pickle
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Final

from router_runtime.errors import ConfigError, MissingDependencyError, RouterError

_QUIET: Final[Mapping[str, str]] = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
_HERE: Final = "local"
_CLIENT: Final = "ray://"


def ray_module() -> ModuleType:
    """Return ``ray`` with ``ray.data`` loaded.

    Raises
    ------
    MissingDependencyError
        It is not installed.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("ray", "pyarrow", "pandas"):
            raise
        raise MissingDependencyError("ray", "ray") from error
    for name in ("ray", "ray.data", "ray.serve"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return ray


@contextmanager
def connected(address: str | None) -> Iterator[ModuleType]:
    """Give ``ray``, connected to a cluster.

    A cluster that is started here ends with the block; one that was joined goes on. Where this
    process is connected already, that connection is used and kept.

    Parameters
    ----------
    address : str or None
        Of a running cluster; ``auto`` finds one on this machine. None starts one here, with all
        its CPUs and GPUs.

    Raises
    ------
    MissingDependencyError
        Ray is not installed.
    ConfigError
        The cluster cannot be reached or started.
    """
    ray = ray_module()
    if (address or "").startswith(_CLIENT):
        raise ConfigError(
            f"ray_address '{address}' is that of a Ray Client. Run on a node of the cluster, with "
            "'ray_address: auto'."
        )
    if ray.is_initialized():
        yield ray
        return
    own = {"include_dashboard": False} if address is None else {}
    try:
        ray.init(address=address or _HERE, log_to_driver=False, logging_level=logging.ERROR, **own)
    except (ConnectionError, RuntimeError, TimeoutError, ValueError) as error:
        words = " ".join(str(error).split())[:200].rstrip(".")
        where = "started here" if address is None else f"reached at '{address}'"
        raise ConfigError(f"A Ray cluster cannot be {where}: {words}.") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def worked_on(
    ray: ModuleType,
    work: type,
    job: object,
    *,
    parts: int,
    workers: int,
    num_gpus: float = 0,
    ordered: bool = True,
) -> Iterator[Any]:
    """Have numbered parts worked on by actors, and yield the results; errors are among them.

    Every actor works on one part at a time; a part whose actor was lost is worked on again. Ending
    the iteration early ends the actors where they are.

    Parameters
    ----------
    ray : module
        From ``connected``.
    work : type
        Made once per actor as ``work(job)``; called with a part's number, it returns the result.
    job : object
        Sent to every actor.
    parts : int
        How many there are.
    workers : int
        Actors.
    num_gpus : float
        Of every actor; without any it takes a CPU.
    ordered : bool
        Yield in the order of the parts, not as they are done.
    """
    numbers = ray.data.from_items(
        [{"part": part} for part in range(parts)], override_num_blocks=parts
    )
    context = numbers.context
    context.enable_progress_bars = False
    context.execution_options.preserve_order = ordered
    context.execution_options.verbose_progress = False
    done = numbers.map_batches(
        _Actor,
        fn_constructor_args=(work, job),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
        num_cpus=0 if num_gpus else 1,
        num_gpus=num_gpus or None,
    )
    for row in done.iter_rows():
        yield pickle.loads(row["result"])  # noqa: S301 - our own workers'


class _Actor:
    """Works on parts; an error is a result, so that it ends no other part and stays what it is."""

    def __init__(self, work: Callable[[Any], Callable[[int], Any]], job: Any) -> None:
        self._work = work(job)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        parts = [int(part) for part in batch["part"]]
        return {"part": parts, "result": [self._result(part) for part in parts]}

    def _result(self, part: int) -> bytes:
        try:
            return pickle.dumps(self._work(part), protocol=5)
        except RouterError as error:
            return pickle.dumps(error)
        except Exception as error:  # a bug, told with its place
            return pickle.dumps(RuntimeError(f"{error!r}\n{traceback.format_exc()}"))


def node_id(ray: ModuleType) -> str:
    """Return the id of the node that this process runs on."""
    return str(ray.get_runtime_context().get_node_id())


def cpus(ray: ModuleType) -> int:
    """Return how many CPUs the cluster has, one at least."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def gpus(ray: ModuleType) -> int:
    """Return how many GPUs the cluster has."""
    return int(ray.cluster_resources().get("GPU", 0))
