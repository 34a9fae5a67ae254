"""One ONNX Runtime session: a fixed number of threads that wait without spinning.

ONNX Runtime's threads spin for work by default. Two pools in one process, its own and a BLAS's,
then take each other's cores; what spinning gains on an idle machine is lost many times over.

With ``cpus`` the session is made and run in one thread of its own that is bound to these; the
session's other threads are its children and inherit the binding. That costs two hand-overs a call,
some tens of microseconds.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnxruntime

from router_runtime.errors import EncoderError
from router_runtime.types import F32

_ERRORS_ONLY = 3


class OnnxSession:
    """A graph, ready to run. Any number of threads may share it.

    Parameters
    ----------
    path : Path
        The graph.
    threads : int
        Threads of one run, the calling one included.
    cpus : sequence of int, optional
        CPUs that they may run on.

    Raises
    ------
    EncoderError
        The file is no graph that this ONNX Runtime can run, or there is no such CPU.
    """

    def __init__(self, path: Path, *, threads: int, cpus: Sequence[int] | None = None) -> None:
        self._own: ThreadPoolExecutor | None = None
        if cpus is not None:
            self._own = ThreadPoolExecutor(1, thread_name_prefix="onnx")
            self._own.submit(_bind, frozenset(cpus)).result()
        try:
            self._session = self._there(_open, path, threads)
        except Exception as error:  # ONNX Runtime raises its own classes, which it does not export
            reason = " ".join(str(error).split())[:200]
            raise EncoderError(
                f"ONNX Runtime {onnxruntime.__version__} cannot run '{path}': {reason}. Export the "
                "encoder again with this version."
            ) from error

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> F32:
        """Return the graph's first output; see ``run_all``."""
        return self.run_all(inputs)[0]

    def run_all(self, inputs: Mapping[str, npt.NDArray[Any]]) -> list[F32]:
        """Return all outputs.

        Raises
        ------
        EncoderError
            The run failed, for want of memory for example.
        """
        try:
            outputs: list[F32] = self._there(self._session.run, None, dict(inputs))
        except Exception as error:  # as above
            reason = " ".join(str(error).split())[:200]
            raise EncoderError(
                f"ONNX Runtime failed to encode: {reason}. Reduce 'batch_size', or export the "
                "encoder again."
            ) from error
        return outputs

    def _there(self, call: Any, *args: Any) -> Any:
        return call(*args) if self._own is None else self._own.submit(call, *args).result()


def _open(path: Path, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    # The graph is written as it shall run. ONNX Runtime would fuse each sum and its norm into one
    # operator that takes eight times as long as the two.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_mem_pattern = False  # inputs differ in shape
    options.enable_cpu_mem_arena = False  # which never gives memory back
    options.log_severity_level = _ERRORS_ONLY
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


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
