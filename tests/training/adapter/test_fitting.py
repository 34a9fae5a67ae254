from __future__ import annotations

import numpy as np
import pytest

from router_runtime.artifacts import load_artifact, read_manifest
from router_runtime.config import EncoderRuntime, RuntimeConfig
from router_runtime.errors import ArtifactIntegrityError, ConfigError
from router_runtime.model_router import ModelRouter
from router_training.adapter.conversations import read_conversations

from .conftest import NAMES, interrupt_at, with_words

pytest.importorskip("router_training.adapter.learner", exc_type=ImportError)

CPU = EncoderRuntime(device="cpu")


def accuracy(folder, data, **encoder):
    router = ModelRouter.from_config(
        RuntimeConfig(artifact=folder, encoder={"device": "cpu"} | encoder)
    )
    P = router.predict(data.queries).P
    return P, float((P.argmax(axis=1) == data.labels.Y.argmax(axis=1)).mean())


@pytest.mark.parametrize(("trained", "rows"), [("on_texts", "texts"), ("on_pictures", "pictures")])
def test_it_learns_and_serves_what_it_learned(trained, rows, request):
    """Three names on separable rows: chance is a third."""
    folder, _, learned = request.getfixturevalue(trained)
    data = read_conversations(request.getfixturevalue(rows)).validation
    assert learned.log["validation"]["accuracy"] > 0.9
    first, last = learned.log["epochs"][0], learned.log["epochs"][-1]
    assert last["train_loss"] < first["train_loss"]
    P, found = accuracy(folder, data)
    assert found == pytest.approx(learned.log["validation"]["accuracy"])
    np.testing.assert_allclose(P.sum(axis=1), 1.0, rtol=1e-12)
    scores = learned.validation_scores / learned.parts.description.temperature
    odds = np.exp(scores - scores.max(axis=1, keepdims=True))
    np.testing.assert_allclose(P, odds / odds.sum(axis=1, keepdims=True), atol=1e-5)


def test_what_was_saved_is_loaded_to_the_bit(on_texts, texts):
    folder, artifact, learned = on_texts
    loaded = load_artifact(folder)
    assert loaded.parts == learned.parts
    assert loaded.artifact_id == artifact.artifact_id
    data = read_conversations(texts).validation
    again = learned.parts.build(
        NAMES, calibrator=loaded.calibrator, novelty=None, runtime=CPU
    ).probabilities(data.queries)
    np.testing.assert_array_equal(accuracy(folder, data)[0], again)


def test_the_manifest_and_the_card_say_how_it_was_made(on_texts, texts):
    folder, *_ = on_texts
    manifest = read_manifest(folder)
    told = manifest.predictor
    assert (told["kind"], told["labels"]) == ("adapter", list(NAMES))
    assert told["adapter"]["peft_type"] == "LORA"
    assert told["adapter"]["base_model_name_or_path"] == "tiny-llama"
    assert len(told["base_sha256"]) == len(told["prompts_sha256"]) == 64
    assert (told["dtype"], told["prompt"]["shows"]) == ("float32", "request")
    assert manifest.training["predictor"]["rows"] == {"train": 96, "validation": 30}
    assert manifest.training["validation_rows"] == "a file"
    assert np.array(manifest.metrics["validation"]["confusion"]).sum() == 30
    card = (folder / "README.md").read_text()
    assert "Router adapter" in card and "tiny-llama" in card and "text alone" in card
    assert str(texts) not in card
    files = {path.name for path in folder.iterdir() if path.is_file()}
    assert files == {"manifest.json", "README.md", "adapter.safetensors"}


def test_a_base_of_another_seed_is_refused(on_texts, making, tmp_path):
    other = with_words(making, making.make_llama, tmp_path / "tiny-llama", seed=9)
    runtime = EncoderRuntime(device="cpu", base=str(other))
    with pytest.raises(ArtifactIntegrityError, match="was trained on"):
        load_artifact(on_texts[0]).predictor(runtime)


def test_an_interrupted_fit_ends_with_the_bits_of_a_whole_one(fitting, llama, few_texts, tmp_path):
    output = tmp_path / "router"
    with pytest.raises(KeyboardInterrupt):
        fitting(llama, few_texts, output, progress=interrupt_at(5))
    assert (output / ".checkpoints").is_dir() and not (output / "manifest.json").exists()
    steps = []
    _, learned = fitting(llama, few_texts, output, progress=lambda done, total: steps.append(done))
    assert steps[0] == 6
    assert learned.parts == fitting(llama, few_texts, tmp_path / "whole")[1].parts
    assert not (output / ".checkpoints").exists()


def test_another_setting_starts_anew(fitting, llama, few_texts, tmp_path):
    output = tmp_path / "router"
    with pytest.raises(KeyboardInterrupt):
        fitting(llama, few_texts, output, progress=interrupt_at(5))
    steps = []

    def stop(done, total):
        steps.append(done)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitting(llama, few_texts, output, progress=stop, learning_rate=1e-3)
    assert steps == [1]


def test_pictures_need_a_base_that_sees(fitting, llama, pictures, tmp_path):
    with pytest.raises(ConfigError, match="tiny-llama' reads text only"):
        fitting(llama, pictures, tmp_path / "router")


def test_a_base_in_bfloat16_is_learned_on_and_served_in_it(fitting, llama, few_texts, tmp_path):
    from safetensors.torch import load

    heard = []
    _, learned = fitting(
        llama,
        few_texts,
        tmp_path / "r",
        dtype="bfloat16",
        recorder=lambda figures, step: heard.append(step),
    )
    assert heard == [4, 8]
    assert learned.parts.description.dtype == "bfloat16"
    tensors = load(learned.parts.weights)
    assert {str(tensor.dtype) for tensor in tensors.values()} == {"torch.bfloat16"}
    P, _ = accuracy(tmp_path / "r", read_conversations(few_texts).validation)
    scores = learned.validation_scores / learned.parts.description.temperature
    odds = np.exp(scores - scores.max(axis=1, keepdims=True))
    np.testing.assert_allclose(P, odds / odds.sum(axis=1, keepdims=True), atol=0.1)
