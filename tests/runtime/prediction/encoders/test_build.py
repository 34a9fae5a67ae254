import os
import subprocess
import sys

import numpy as np
import pytest

from router_runtime.errors import EncoderError, MissingDependencyError
from router_runtime.prediction.encoders import build_encoder
from router_runtime.prediction.encoders.specs import (
    ClipSpec,
    EmbeddedSpec,
    EncoderRuntime,
    HuggingFaceSpec,
    RemoteSpec,
    SentenceSpec,
    VisionLanguageSpec,
)


def python(program):
    done = subprocess.run(  # noqa: S603 - our own interpreter, our own program
        [sys.executable, "-c", program],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_and_building_a_remote_encoder_loads_no_heavy_library():
    out = python(
        "import sys\n"
        "from router_runtime.prediction.encoders import build_encoder\n"
        "from router_runtime.prediction.encoders.specs import RemoteSpec\n"
        "import router_runtime.prediction.encoders.cache\n"
        "print('httpx' in sys.modules)\n"
        "build_encoder(RemoteSpec())\n"
        "heavy = {'torch', 'open_clip', 'transformers', 'sentence_transformers', 'torchvision'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    assert out.split("\n")[:2] == ["False", "[]"]


@pytest.mark.parametrize(
    ("spec", "module", "command"),
    [
        (ClipSpec(), "open_clip", "'open-clip-torch' .* 'model-router\\[clip\\]'"),
        (ClipSpec(), "torch", "'torch' .* 'model-router\\[clip\\]'"),
        (HuggingFaceSpec(model="m"), "transformers", "'transformers' .* 'model-router\\[clip\\]'"),
        (
            VisionLanguageSpec(model="m"),
            "transformers",
            "'transformers' .* 'model-router\\[clip\\]'",
        ),
        (
            SentenceSpec(),
            "sentence_transformers",
            "'sentence-transformers' .* 'model-router\\[minilm\\]'",
        ),
        (SentenceSpec(), "torch", "'torch' .* 'model-router\\[minilm\\]'"),
        (RemoteSpec(), "httpx", "'httpx' .* 'model-router\\[remote\\]'"),
    ],
)
def test_a_missing_library_is_answered_with_the_pip_command(monkeypatch, spec, module, command):
    for name in list(sys.modules):
        if name.startswith("router_runtime.prediction.encoders.") and "specs" not in name:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)  # what an uninstalled module looks like
    with pytest.raises(MissingDependencyError, match=command):
        build_encoder(spec)


def test_an_embedded_encoder_must_have_been_fitted():
    with pytest.raises(EncoderError, match="fitted before"):
        build_encoder(EmbeddedSpec())


def test_a_fitted_state_for_another_kind_is_refused():
    with pytest.raises(EncoderError, match="takes no fitted state"):
        build_encoder(RemoteSpec(), state={"a": np.zeros(1)})


def test_the_runtime_reaches_the_encoder():
    with pytest.raises(EncoderError, match="gRPC"):
        build_encoder(RemoteSpec(), runtime=EncoderRuntime(url="grpc://127.0.0.1:51000"))
