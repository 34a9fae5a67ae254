from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from router_training.fine_tuning.checkpoints import Checkpoints
from router_training.fine_tuning.figures import measure
from router_training.sequence.targets import Texts

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")


def texts_of(path):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    labels = ["code", "math", "science"]
    Y = np.array([[float(row["category"] == label) for label in labels] for row in rows])
    return Texts(tuple(row["query"] for row in rows), Y)


@pytest.fixture
def tuning(base, files, settings_of, tmp_path):
    """A function of changes to a fine-tuning on 48 rows, with checkpoints."""
    from router_runtime.prediction.sequence_network import Reader, pad_id_of
    from router_training.sequence.base_model import load_base
    from router_training.sequence.fine_tuning import FineTuning

    train, validation = texts_of(files / "train.jsonl"), texts_of(files / "val.jsonl")
    few = Texts(train.texts[:48], train.Y[:48])

    def make(*, checkpoints=None, recorder=None, Y=None, objective="one", **changes):
        config = settings_of(base, **{"epochs": 3, "batch_size": 16, **changes})
        found = load_base(str(base), labels=("code", "math", "science"), max_tokens=32, seed=0)
        reader = Reader(found.tokenizer, max_tokens=32, pad_id=pad_id_of(found.config))
        return FineTuning(
            found.model,
            reader,
            train=few if Y is None else replace(few, Y=Y),
            validation=validation,
            config=config,
            objective=objective,
            seed=7,
            device=torch.device("cpu"),
            checkpoints=None if checkpoints is None else Checkpoints(checkpoints, inputs="x"),
            recorder=recorder,
        )

    return make


def interrupt_at(step):
    def progress(done, total):
        if done == step:
            raise KeyboardInterrupt

    return progress


def quiet(done, total):
    pass


def weights(tuned):
    return {name: t.numpy().copy() for name, t in tuned.model.state_dict().items()}


@pytest.mark.parametrize("step", [1, 3, 5, 9])
def test_an_interrupted_fine_tuning_ends_with_the_bits_of_a_whole_one(tuning, tmp_path, step):
    whole = tuning().run(quiet)
    with pytest.raises(KeyboardInterrupt):
        tuning(checkpoints=tmp_path / "kept").run(interrupt_at(step))
    steps = []
    again = tuning(checkpoints=tmp_path / "kept").run(lambda done, total: steps.append(done))
    assert steps[0] == (9 if step == 9 else step + 1)
    for name, value in weights(whole).items():
        np.testing.assert_array_equal(weights(again)[name], value)
    assert again.history == whole.history
    np.testing.assert_array_equal(again.logits, whole.logits)


def test_an_interruption_within_an_update_keeps_the_checkpoint_before(tuning, tmp_path):
    one = tuning(checkpoints=tmp_path / "kept")
    real = one._optimizer.step
    calls = []

    def torn():
        real()
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt

    one._optimizer.step = torn
    with pytest.raises(KeyboardInterrupt):
        one.run(quiet)
    steps = []
    again = tuning(checkpoints=tmp_path / "kept").run(lambda done, total: steps.append(done))
    assert steps[0] == 4  # the end of the first epoch was kept, the fourth update is repeated
    assert again.history == tuning().run(quiet).history


def test_the_rate_rises_linearly_and_falls_to_nothing(tuning):
    one = tuning(warmup_ratio=0.34)
    shares = [one._share(step) for step in range(9)]
    assert shares[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert shares[3:] == pytest.approx([1.0, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    assert tuning(warmup_ratio=0.0)._share(0) == 1.0


def test_gradients_are_cut_to_their_greatest_length(tuning):
    def length(most):
        one = tuning(max_grad_norm=most)
        one._update(np.arange(16))
        grads = [p.grad.norm() for p in one._model.parameters() if p.grad is not None]
        return float(torch.stack(grads).norm())

    assert length(1e-3) == pytest.approx(1e-3, rel=1e-3)
    assert length(1e3) > 1e-2


def test_it_stops_when_validation_no_longer_improves(tuning):
    found = tuning(epochs=10, patience=2, learning_rate=1e-12).run(quiet)
    assert found.best_epoch == 1
    assert len(found.history) == 3


def test_the_weights_of_the_best_epoch_are_kept(tuning):
    # so high a rate destroys what was learned, again and again
    one = tuning(epochs=6, patience=6, learning_rate=0.5, warmup_ratio=0.0)
    found = one.run(quiet)
    told = found.history[found.best_epoch - 1]
    assert told == max(found.history, key=lambda e: (e["macro_f1"], -e["loss"]))
    kept = measure(found.logits, one._validation.Y, objective="one")
    assert kept.loss == pytest.approx(told["loss"])
    assert len({round(entry["loss"], 6) for entry in found.history}) > 1


def test_a_recorder_hears_figures_of_every_epoch(tuning):
    heard = []
    tuning(recorder=lambda figures, step: heard.append((step, figures))).run(quiet)
    assert [step for step, _ in heard] == [3, 6, 9]
    assert set(heard[0][1]) == {
        "epoch",
        "train/loss",
        "validation/loss",
        "validation/accuracy",
        "validation/macro_f1",
    }


def test_unscored_cells_teach_nothing(tuning):
    from router_training.sequence.fine_tuning import _several

    logits = torch.tensor([[1.0, -2.0], [0.5, 3.0]], requires_grad=True)
    Y = torch.tensor([[1.0, float("nan")], [float("nan"), 0.0]])
    loss = _several(logits, Y)
    loss.backward()
    assert loss.item() == pytest.approx((np.log1p(np.exp(-1)) + np.log1p(np.exp(3))) / 2)
    assert logits.grad[0, 1] == logits.grad[1, 0] == 0
    assert logits.grad[0, 0] != 0


def test_a_fine_tuning_does_not_disturb_the_random_numbers_of_others(tuning):
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    tuning(epochs=1).run(quiet)
    assert torch.equal(torch.rand(3), wanted)
