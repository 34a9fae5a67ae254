from __future__ import annotations

import json

import numpy as np
import pytest

from router_runtime.errors import ConfigError, DataError
from router_runtime.messages import TextRule
from router_runtime.types import Query
from router_training.adapter.conversations import read_conversations
from router_training.adapter.lessons import Lesson, Requests, check_lesson

from .conftest import NAMES, interrupt_at, quiet

torch = pytest.importorskip("torch")
pytest.importorskip("router_training.adapter.learner", exc_type=ImportError)


@pytest.fixture(scope="module")
def lesson(texts):
    return lesson_of(texts, 24)


def lesson_of(folder, n):
    rows = read_conversations(folder)
    few = rows.train.take(np.arange(n))
    return Lesson(
        NAMES,
        rows.prompt,
        Requests.of(few, rows.prompt),
        Requests.of(rows.validation.take(np.arange(9)), rows.prompt),
        TextRule(),
    )


@pytest.fixture
def tuning(llama, lesson, settings_of):
    """A function of changes to a fine-tuning on 24 rows, with checkpoints."""
    from router_runtime.config import EncoderRuntime
    from router_runtime.prediction.adapter_network import PromptReader
    from router_training.adapter.fine_tuning import EpochFolders, FineTuning
    from router_training.adapter.learner import load_own_base
    from router_training.adapter.lora import add_lora
    from router_training.fine_tuning.checkpoints import Checkpoints

    def make(*, base=llama, given=lesson, checkpoints=None, folders=None, recorder=None, **changes):
        config = settings_of(base, **changes)
        own = load_own_base(config, EncoderRuntime(device="cpu"))
        reader = PromptReader(own, given.prompt, labels=NAMES, max_tokens=400, max_side=64)
        adapter = add_lora(own, config, seed=7)
        return FineTuning(
            reader,
            given,
            adapter=adapter,
            config=config,
            seed=7,
            checkpoints=checkpoints and Checkpoints(checkpoints, inputs="x"),
            recorder=recorder,
            epochs=folders and EpochFolders(folders, 2),
        )

    return make


def weights(tuning):
    return {name: t.detach().numpy().copy() for name, t in tuning._current().items()}


def grads(tuning, rows):
    tuning._update(np.asarray(rows))
    return {name: t.grad.clone() for name, t in tuning._current().items()}


@pytest.mark.parametrize("kind", ["llama", "qwen"])
def test_the_answer_alone_is_learned(kind, request, tuning, making):
    """Labels are the answer's tokens and its end; prompt, pictures and padding are -100."""
    folder = request.getfixturevalue("texts" if kind == "llama" else "pictures")
    one = tuning(base=request.getfixturevalue(kind), given=lesson_of(folder, 6))
    reader, train = one._reader, one._lesson.train
    prompts = [reader.read(query) for query in train.queries]
    answers = [reader.answers[at % 3] for at in range(6)]
    batch, taught = one.batch(prompts, answers)
    assert taught.shape == batch["input_ids"].shape
    for at, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        end = prompt.n_tokens + len(answer)
        assert taught[at, prompt.n_tokens : end].tolist() == list(answer)
        assert answer[-1] == making.END
        assert set(taught[at, : prompt.n_tokens].tolist()) == {-100}
        assert set(taught[at, end:].tolist()) <= {-100}
        assert batch["input_ids"][at, : prompt.n_tokens].tolist() == (
            prompt.tensors["input_ids"][0].tolist()
        )


@pytest.mark.parametrize("kind", ["llama", "qwen"])
def test_the_loss_is_what_names_are_scored_by(kind, request, tuning):
    from router_runtime.experts.batches import score_all

    folder = request.getfixturevalue("texts" if kind == "llama" else "pictures")
    one = tuning(base=request.getfixturevalue(kind), given=lesson_of(folder, 6), dropout=0.0)
    loss = float(one._loss(np.arange(6)).detach())
    prompts = [one._reader.read(query) for query in one._lesson.train.queries]
    one._model.eval()
    scores = score_all(one._base, prompts, one._reader.answers)
    assert loss == pytest.approx(-scores[np.arange(6), np.arange(6) % 3].mean(), rel=1e-4)


def test_only_the_adapter_learns(tuning):
    one = tuning()
    before = {n: p.clone() for n, p in one._model.named_parameters() if not p.requires_grad}
    assert before and all(".lora_" in name for name in one._current())
    start = weights(one)
    one.run(quiet)
    after = dict(one._model.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert any(not np.array_equal(start[name], w) for name, w in weights(one).items())


def test_accumulated_gradients_are_those_of_the_whole_step(tuning):
    whole = grads(tuning(dropout=0.0, batch_size=6, max_grad_norm=1e6), range(6))
    parts = grads(tuning(dropout=0.0, batch_size=4, accumulation=2, max_grad_norm=1e6), range(6))
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-3, atol=1e-5)


def test_checkpointed_gradients_are_the_same_numbers(tuning):
    kept = grads(tuning(), range(4))
    for name, value in grads(tuning(gradient_checkpointing=True), range(4)).items():
        torch.testing.assert_close(value, kept[name], rtol=1e-4, atol=1e-6)


def test_the_rate_follows_a_cosine_after_its_rise(tuning):
    one = tuning(epochs=3, warmup_ratio=0.34)  # 18 steps, 6 of them rise
    assert [one._share(step) for step in (0, 5)] == pytest.approx([1 / 6, 1.0])
    assert [one._share(step) for step in (6, 12, 18)] == pytest.approx([1.0, 0.5, 0.0])
    assert tuning(schedule="constant", warmup_ratio=0.0)._share(17) == 1.0
    assert tuning(schedule="linear", warmup_ratio=0.0)._share(6) == pytest.approx(0.5)


@pytest.mark.parametrize("step", [1, 6, 8])
def test_an_interrupted_fine_tuning_ends_with_the_bits_of_a_whole_one(tuning, tmp_path, step):
    whole = tuning()
    told = whole.run(quiet)
    with pytest.raises(KeyboardInterrupt):
        tuning(checkpoints=tmp_path / "kept").run(interrupt_at(step))
    steps = []
    again = tuning(checkpoints=tmp_path / "kept")
    told_again = again.run(lambda done, total: steps.append(done))
    assert steps[0] == step + 1
    for name, value in weights(whole).items():
        np.testing.assert_array_equal(weights(again)[name], value)
    assert told_again.history == told.history
    np.testing.assert_array_equal(told_again.logits, told.logits)


def test_a_killed_fine_tuning_continues_at_its_checkpoint(tuning, tmp_path, monkeypatch):
    monkeypatch.setattr("router_training.adapter.fine_tuning.CHECKPOINT_STEPS", 4)
    whole = tuning()
    told = whole.run(quiet)
    with pytest.raises(SystemExit):  # nothing is kept on the way out, as when it is killed
        tuning(checkpoints=tmp_path / "kept").run(interrupt_at(5, SystemExit))
    steps = []
    again = tuning(checkpoints=tmp_path / "kept")
    assert again.run(lambda done, total: steps.append(done)).history == told.history
    assert steps[0] == 5
    for name, value in weights(whole).items():
        np.testing.assert_array_equal(weights(again)[name], value)


def test_the_newest_epochs_are_kept_as_adapters_that_experts_serve(tuning, tmp_path, llama):
    from router_runtime.experts.base_model import load_base
    from router_runtime.experts.batches import score_all
    from router_runtime.experts.config import BaseConfig
    from router_runtime.experts.pool import AdapterPool

    one = tuning(epochs=3, patience=3, folders=tmp_path / "epochs")
    one.run(quiet)
    folders = sorted(folder.name for folder in (tmp_path / "epochs").iterdir())
    assert folders == ["epoch-002", "epoch-003"]
    pool = AdapterPool(load_base(BaseConfig(model=str(llama))))
    pool.add(pool.read("router", tmp_path / "epochs" / "epoch-003"))
    prompts = [one._reader.read(query) for query in one._lesson.validation.queries]
    with pool.using(["router"]):
        served = score_all(pool.base, prompts, one._reader.answers)
    last = one._state.history[-1]["loss"]
    shares = one._lesson.validation.shares
    log_p = served - np.log(np.exp(served).sum(axis=1, keepdims=True))
    assert -(shares * log_p).sum(axis=1).mean() == pytest.approx(last, rel=1e-4)


def test_peft_itself_reads_an_epoch(tuning, tmp_path, llama, making):
    one = tuning(epochs=1, folders=tmp_path / "epochs")
    one.run(quiet)
    folder = tmp_path / "epochs" / "epoch-001"
    model = making.peft.PeftModel.from_pretrained(making.load(llama), folder).eval()
    prompt = one._reader.read(one._lesson.validation.queries[0])
    with torch.inference_mode():
        wanted = model(input_ids=prompt.tensors["input_ids"]).logits
        found = one._model.eval()(input_ids=prompt.tensors["input_ids"]).logits
    torch.testing.assert_close(found, wanted)
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == 8


def test_modules_that_are_adapted_can_be_chosen(tuning, qwen):
    named = {name.split(".")[-4] for name in tuning(target_modules=["q_proj", "v_proj"])._current()}
    assert named == {"q_proj", "v_proj"}
    vision = tuning(base=qwen)._current()
    assert all("language_model" in name for name in vision)
    assert any("mlp" in name for name in vision) and any("self_attn" in name for name in vision)
    with pytest.raises(ConfigError, match=r"no linear module 'query' \(known: .*q_proj"):
        tuning(target_modules=["query"])


def test_fine_tuning_does_not_disturb_the_random_numbers_of_others(tuning):
    one = tuning(epochs=1)
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    one.run(quiet)
    assert torch.equal(torch.rand(3), wanted)


def test_a_row_that_the_base_cannot_read_is_named(tuning, lesson):
    rows = lesson.train
    long = Requests(rows.queries[:3], rows.Y[:3], ("r1", "r2", "r3"))
    one = tuning(given=Lesson(NAMES, lesson.prompt, long, lesson.validation, TextRule()))
    one._reader._limit = 3
    with pytest.raises(DataError, match="cannot read row 'r2'"):
        one._loss(np.array([1]))


# --------------------------------------------------------------------------- lessons


def requests(Y):
    queries = tuple(Query(f"q{at}") for at in range(len(Y)))
    return Requests(queries, np.array(Y), tuple(str(at) for at in range(len(Y))))


def test_several_good_names_are_drawn_by_their_shares():
    rows = requests([[1.0, 0.0, float("nan")], [1.0, 0.0, 1.0], [0.2, 0.0, 0.6]])
    np.testing.assert_allclose(rows.shares, [[1, 0, 0], [0.5, 0, 0.5], [0.25, 0, 0.75]])
    draws = np.stack([rows.drawn(seed=0, epoch=epoch) for epoch in range(400)])
    assert set(draws[:, 0]) == {0} and set(draws.ravel()) == {0, 2}
    assert (draws[:, 1] == 2).mean() == pytest.approx(0.5, abs=0.08)
    assert (draws[:, 2] == 2).mean() == pytest.approx(0.75, abs=0.08)
    np.testing.assert_array_equal(draws[3], rows.drawn(seed=0, epoch=3))


def test_a_lesson_with_one_name_teaches_nothing(lesson):
    one = requests([[1.0, 0.0, 0.0]] * 3)
    with pytest.raises(DataError, match="fewer than two labels"):
        check_lesson(Lesson(NAMES, lesson.prompt, one, one, TextRule()))
    none = Requests((), np.zeros((0, 3)), ())
    with pytest.raises(DataError, match="No validation row"):
        check_lesson(Lesson(NAMES, lesson.prompt, lesson.train, none, TextRule()))
