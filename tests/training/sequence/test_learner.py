from __future__ import annotations

import numpy as np
import pytest

from router_runtime.config import EncoderRuntime
from router_runtime.errors import DataError
from router_runtime.messages import TextRule

pytest.importorskip("torch")
pytest.importorskip("transformers")

from router_training.learners import base_digest
from router_training.sequence.learner import Lesson, learn
from router_training.sequence.targets import Texts


def lesson(n=24, texts=("sum", "cell")):
    rows = [texts[at % 2] for at in range(n)]
    Y = np.eye(2)[np.arange(n) % 2]
    return Lesson(
        ("a", "b"), (0, 1), Texts(tuple(rows), Y), Texts(tuple(rows[:4]), Y[:4]), TextRule()
    )


def run(given, base, settings_of, tmp_path, progress=lambda done, total: None, **changes):
    return learn(
        given,
        settings_of(base, epochs=1, **changes),
        seed=0,
        runtime=EncoderRuntime(device="cpu"),
        checkpoints=tmp_path / "kept",
        progress=progress,
    )


def of(train, validation):
    return Lesson(("a", "b"), (0, 1), train, validation, TextRule())


def test_checkpoints_are_kept_while_it_learns_and_removed_when_it_is_done(
    base, settings_of, tmp_path
):
    def stop(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(lesson(), base, settings_of, tmp_path, stop)
    assert (tmp_path / "kept").is_dir()
    steps = []
    learned = run(lesson(), base, settings_of, tmp_path, lambda done, total: steps.append(done))
    assert steps[0] == 3
    assert not (tmp_path / "kept").exists()
    assert learned.log["parameters"] > 10_000


def test_another_seed_or_setting_starts_anew(base, settings_of, tmp_path):
    def stop(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(lesson(), base, settings_of, tmp_path, stop)
    steps = []
    run(lesson(), base, settings_of, tmp_path, lambda d, t: steps.append(d), weight_decay=0.5)
    assert steps[0] == 1


def test_nothing_to_learn_is_said(base, settings_of, tmp_path):
    empty = Texts((), np.zeros((0, 2)))
    given = lesson()
    with pytest.raises(DataError, match="No training row"):
        run(
            Lesson(("a", "b"), (0, 1), empty, given.validation, TextRule()),
            base,
            settings_of,
            tmp_path,
        )
    with pytest.raises(DataError, match="No validation row"):
        run(of(given.train, empty), base, settings_of, tmp_path)
    alike = Texts(("x",) * 4, np.eye(2)[np.zeros(4, dtype=int)])
    with pytest.raises(DataError, match="fewer than two labels"):
        run(
            Lesson(("a", "b"), (0, 1), alike, given.validation, TextRule()),
            base,
            settings_of,
            tmp_path,
        )


def test_the_files_of_a_local_base_are_told_apart(base, base_maker, tmp_path):
    assert set(base_digest(str(base))) >= {"config.json", "model.safetensors", "tokenizer.json"}
    other = base_maker(tmp_path / "other", positions=32)
    assert base_digest(str(other)) != base_digest(str(base))
    assert base_digest("org/name") == {}
