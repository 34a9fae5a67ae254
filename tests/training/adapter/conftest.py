"""Tiny bases of real classes, and conversations that words or colours tell apart."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

NAMES = ("calendar", "claim-window", "provider-select")
WORDS = {
    "calendar": "day month",
    "claim-window": "open field",
    "provider-select": "doctor list",
}
COLOURS = {"calendar": "red", "claim-window": "lime", "provider-select": "blue"}
SYSTEM = "Name one."


@pytest.fixture(scope="session")
def making():
    for package in ("torch", "router_runtime.experts.attaching"):
        pytest.importorskip(package, exc_type=ImportError)
    from experts_parts import making

    return making


@pytest.fixture(scope="session")
def llama(making, tmp_path_factory) -> Path:
    return with_words(making, making.make_llama, tmp_path_factory.mktemp("bases") / "tiny-llama")


@pytest.fixture(scope="session")
def qwen(making, tmp_path_factory) -> Path:
    return with_words(making, making.make_qwen, tmp_path_factory.mktemp("bases") / "tiny-qwen")


def with_words(making, make, folder, **changed):
    """Make a base whose tokenizer knows the names' words, as large ones do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(making, "CORPUS", [*NAMES] * 9 + [*WORDS.values(), SYSTEM] * 5)
        return make(folder, **changed)


def request_of(name, rng):
    return " ".join([*rng.choice(WORDS[name].split(), 4), str(rng.integers(10))])


def text_rows(n, *, seed):
    rng = np.random.default_rng(seed)
    for at in range(n):
        name = NAMES[at % 3]
        human = f"Which one?\n\n{request_of(name, rng)}"
        yield {"id": f"{seed}-{at}", "conversations": turns(human, name)}


def picture_rows(n, *, seed, folder):
    """Rows whose text tells nothing; the picture's colour does."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(exist_ok=True)
    for at in range(n):
        name = NAMES[at % 3]
        size = (int(rng.integers(2, 5)) * 16, 32)
        picture = PIL.Image.new("RGB", size, COLOURS[name])
        picture.putpixel((at % 16, seed % 16), (at % 256, seed, 77))  # no two are equal
        file = f"images/{seed}-{at}.png"
        picture.save(folder / file)
        human = f"<image>\nWhich one?\n\nlook {rng.integers(100)}"
        yield {"id": f"{seed}-{at}", "image": file, "conversations": turns(human, name)}


def turns(human, name):
    told = {"system": SYSTEM, "human": human, "gpt": name}
    return [{"from": speaker, "value": value} for speaker, value in told.items()]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def texts(tmp_path_factory) -> Path:
    """A folder of conversations without pictures."""
    folder = tmp_path_factory.mktemp("texts")
    for part, n, seed in (("train", 96, 0), ("val", 30, 1)):
        write_jsonl(folder / f"{part}-classification.jsonl", text_rows(n, seed=seed))
    return folder


@pytest.fixture(scope="session")
def few_texts(tmp_path_factory) -> Path:
    """The same, for what need not be learned."""
    folder = tmp_path_factory.mktemp("few-texts")
    for part, n, seed in (("train", 16, 0), ("val", 6, 1)):
        write_jsonl(folder / f"{part}-classification.jsonl", text_rows(n, seed=seed))
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """A folder of conversations about pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    for part, n, seed in (("train", 96, 0), ("val", 18, 1)):
        rows = picture_rows(n, seed=seed, folder=folder)
        write_jsonl(folder / f"{part}-classification.jsonl", rows)
    return folder


QUICK = {
    "epochs": 2,
    "batch_size": 4,
    "accumulation": 1,
    "eval_batch_size": 16,
    "learning_rate": 1e-2,
    "rank": 8,
    "alpha": 16.0,
    "dropout": 0.05,
    "patience": 4,
    "max_tokens": 400,
    "max_side": 64,
}


def settings(base, **changes):
    from router_training.predictor_configs import AdapterConfig

    return AdapterConfig.model_validate({"base": str(base), **QUICK, **changes})


def quiet(done, total):
    pass


def fit(base, data, output, *, progress=quiet, recorder=None, keep_epochs=2, **changes):
    from router_runtime.config import EncoderRuntime
    from router_training.adapter.conversations import read_conversations
    from router_training.adapter.fitting import fit_conversations

    return fit_conversations(
        read_conversations(data),
        output,
        settings(base, **changes),
        seed=3,
        runtime=EncoderRuntime(device="cpu"),
        progress=progress,
        keep_epochs=keep_epochs,
        recorder=recorder,
    )


@pytest.fixture(scope="session")
def fitting():
    """The function that fits an adapter on a folder of conversations."""
    return fit


@pytest.fixture(scope="session")
def settings_of():
    return settings


@pytest.fixture(scope="session")
def on_texts(llama, texts, tmp_path_factory):
    """An adapter on the Llama, trained for real: (folder, artifact, learned)."""
    folder = tmp_path_factory.mktemp("trained") / "router"
    return folder, *fit(llama, texts, folder)


@pytest.fixture(scope="session")
def on_pictures(qwen, pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "router"
    return folder, *fit(qwen, pictures, folder, epochs=3)


def interrupt_at(step, error=KeyboardInterrupt):
    def progress(done, total):
        if done == step:
            raise error

    return progress
