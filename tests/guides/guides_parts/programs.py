"""The folder of programs that a page finds in its PATH."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from guides_parts import forking

_MODULES: Final = {
    "model-router": ("router_runtime.cli", "router_runtime.model_router"),
    "router-train": (
        "router_training.__main__",
        "router_training.cli",
        "router_training.pipeline",
        "router_training.plot_files",
        "torch._inductor.config",  # what torch's optimisers import when they are first used
    ),
}
"""By program: where its ``main`` is, and what that imports when it is needed."""


class Programs:
    """``model-router`` and ``router-train`` as stubs before a process each that has imported them.

    Parameters
    ----------
    folder : Path
        Where the stubs and their sockets are; a short path, as sockets need.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def path(self) -> str:
        """The value of PATH: the stubs, this environment's programs, and the system's."""
        here = Path(sys.executable).parent
        return os.pathsep.join([str(self.folder), str(here), os.environ["PATH"]])

    def start(self, text: str) -> None:
        """Start what a text calls, unless it runs."""
        for name in _MODULES:
            if name in text and name not in self._processes:
                self._processes[name] = self._started(name)

    def _started(self, name: str) -> subprocess.Popen[bytes]:
        place = self.folder / f"{name}.socket"
        stub = forking.STUB.format(python=sys.executable, socket=str(place), name=name)
        (self.folder / name).write_text(stub)
        (self.folder / name).chmod(0o755)
        process = subprocess.Popen(  # noqa: S603 - our own interpreter on our own file
            [sys.executable, forking.__file__, str(place), *_MODULES[name]],
            stdin=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        ready = Path(f"{place}.ready")
        while not ready.exists():
            assert process.poll() is None, f"{name} could not be imported"
            time.sleep(0.01)
        return process

    def close(self) -> None:
        """End the processes; what they still run is killed."""
        for process in self._processes.values():
            process.stdin.close()
        for process in self._processes.values():
            process.wait(10)
