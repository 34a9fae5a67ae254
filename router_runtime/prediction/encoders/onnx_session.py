"""One ONNX Runtime session: a fixed number of threads that wait without spinning.

ONNX Runtime's threads spin for work by default. Two pools in one process, its own and a BLAS's,
then take each other's cores; what spinning gains on an idle machine is lost many times over.

What a run needs between operators is kept for the next one (ONNX Runtime's arena). Asking the
system for it anew at each run costs page faults: of an int8 text 5 % of the time, of 64 long ones
20 %. It never shrinks, so callers run as little at a time as is quick; see ``onnx_encoder``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnxruntime

from router_runtime.errors import EncoderError
from router_runtime.prediction.encoders.bound_thread import BoundThread
from router_runtime.prediction.encoders.specs import EncoderRuntime
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
        CPUs that they may run on: the session is made and run in a thread that is bound to these,
        and its other threads inherit the binding.

    Raises
    ------
    EncoderError
        The file is no graph that this ONNX Runtime can run, or there is no such CPU.
    """

    def __init__(self, path: Path, *, threads: int, cpus: Sequence[int] | None = None) -> None:
        self._thread = BoundThread(cpus)
        try:
            self._session = self._thread.call(_open, path, threads)
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
            outputs: list[F32] = self._thread.call(self._session.run, None, dict(inputs))
        except Exception as error:  # as above
            reason = " ".join(str(error).split())[:200]
            raise EncoderError(
                f"ONNX Runtime failed to encode: {reason}. Reduce 'batch_size', or export the "
                "encoder again."
            ) from error
        return outputs


def open_session(path: Path, runtime: EncoderRuntime) -> OnnxSession:
    """Return a graph's session as ``engine: onnx`` runs it."""
    return OnnxSession(path, threads=runtime.threads, cpus=runtime.cpus)


def _open(path: Path, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    # The graph is written as it shall run. ONNX Runtime would fuse each sum and its norm into one
    # operator that takes eight times as long as the two.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_mem_pattern = False  # inputs differ in shape
    options.log_severity_level = _ERRORS_ONLY
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    # Weights stay out of the arena, whose pieces double in size.
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
