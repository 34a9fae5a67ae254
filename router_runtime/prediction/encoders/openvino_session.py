"""One compiled OpenVINO model: the same graph files as ONNX Runtime's, in fp32 or bfloat16.

In bfloat16 the matrices of an fp32 export are rounded to 8 bits of mantissa when they are loaded,
and multiplied by the processor's own instructions for it (AVX512-BF16, AMX): half of fp32's time,
without int8's calibration. ONNX Runtime has no such products on x86.

OpenVINO's Python package tells its maker of every import. That is done by its model converter,
which nothing here needs, so the package is imported without it.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from router_runtime.errors import EncoderError
from router_runtime.prediction.encoders.bound_thread import BoundThread
from router_runtime.prediction.encoders.specs import EncoderRuntime
from router_runtime.types import F32

_CONVERTER = "openvino.tools.ovc"


@contextmanager
def _without_converter() -> Iterator[None]:
    """Make the model converter look uninstalled, which the package expects and passes over."""
    loaded = _CONVERTER in sys.modules
    if not loaded:
        sys.modules[_CONVERTER] = None  # type: ignore[assignment]  # what import takes for absent
    try:
        yield
    finally:
        if not loaded:
            del sys.modules[_CONVERTER]


with _without_converter():
    import openvino

HINTS = {"fp32": "f32", "bf16": "bf16"}


class OpenvinoSession:
    """A graph, ready to run. Threads may share it; they take turns.

    Parameters
    ----------
    path : Path
        The graph.
    precision : {"fp32", "bf16"}
        In which it computes. Inputs and outputs stay as they are.
    threads : int
        Threads of one run, the calling one included.
    cpus : sequence of int, optional
        CPUs that it may run on, with one thread: OpenVINO's other threads cannot be bound.

    Raises
    ------
    EncoderError
        This OpenVINO cannot run the file, the processor has no bfloat16, or there is no such CPU.
    """

    def __init__(
        self,
        path: Path,
        *,
        precision: str,
        threads: int,
        cpus: Sequence[int] | None = None,
    ) -> None:
        core = openvino.Core()
        if precision == "bf16" and not computes_bf16(core):
            raise EncoderError(
                "'precision: bf16' needs a processor with bfloat16 instructions (AVX512-BF16 or "
                f"AMX), which {core.get_property('CPU', 'FULL_DEVICE_NAME')} has not. Use "
                "'precision: fp32', or int8 with 'engine: onnx'."
            )
        if cpus is not None and threads > 1:
            raise EncoderError("'cpus' with 'engine: openvino' needs 'threads: 1'.")
        settings = {
            "INFERENCE_PRECISION_HINT": HINTS[precision],
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,  # the system's scheduler knows what else there is to run
        }
        self._thread = BoundThread(cpus)
        self._turn = threading.Lock()
        try:
            self._request = self._thread.call(_open, core, path, settings)
        except Exception as error:  # OpenVINO raises RuntimeError and its own kinds of it
            reason = " ".join(str(error).split())[:200]
            raise EncoderError(
                f"OpenVINO {openvino.__version__} cannot run '{path}': {reason}. Serve it with "
                "'engine: onnx'."
            ) from error

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> F32:
        """Return the graph's first output.

        Raises
        ------
        EncoderError
            The run failed, for want of memory for example.
        """
        try:
            with self._turn:
                return self._thread.call(self._infer, inputs)
        except Exception as error:  # as above
            reason = " ".join(str(error).split())[:200]
            raise EncoderError(
                f"OpenVINO failed to encode: {reason}. Reduce 'batch_size', or serve the encoder "
                "with 'engine: onnx'."
            ) from error

    def _infer(self, inputs: Mapping[str, npt.NDArray[Any]]) -> F32:
        self._request.infer(dict(inputs))
        return np.array(self._request.get_output_tensor(0).data, dtype=np.float32)


def open_session(path: Path, runtime: EncoderRuntime) -> OpenvinoSession:
    """Return a graph's session as ``engine: openvino`` runs it."""
    return OpenvinoSession(
        path, precision=runtime.precision, threads=runtime.threads, cpus=runtime.cpus
    )


def computes_bf16(core: Any = None) -> bool:
    """Return whether this processor multiplies in bfloat16.

    OpenVINO accepts the precision on processors that only simulate it as well, which is slower
    than fp32; its list of capabilities names it where there are instructions for it.
    """
    core = openvino.Core() if core is None else core
    return "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _open(core: Any, path: Path, settings: Mapping[str, Any]) -> Any:
    compiled = core.compile_model(core.read_model(str(path)), "CPU", dict(settings))
    return compiled.create_infer_request()
