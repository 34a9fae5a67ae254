import subprocess
import sys

import pytest

pytest.importorskip("torch")
pytest.importorskip("torchvision", exc_type=(ImportError, RuntimeError))


def test_torchvision_imports_and_nothing_is_declared_twice():
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from router_runtime.weights import torchvision_schemas as t\n"
            "t.make_importable()\n"
            "t.make_importable()\n"
            "import torchvision.transforms\n"
            "assert len(t._libraries) <= 1\n",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
