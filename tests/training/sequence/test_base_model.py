from __future__ import annotations

import json
import shutil

import pytest

from router_runtime.errors import ConfigError, EncoderError

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

LABELS = ("a", "b", "c")


def load(folder, *, max_tokens=32, seed=0):
    from router_training.sequence.base_model import load_base

    return load_base(str(folder), labels=LABELS, max_tokens=max_tokens, seed=seed)


@pytest.fixture
def copy(base, tmp_path):
    return shutil.copytree(base, tmp_path / "copy")


def edit(folder, name, change):
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))


def test_a_base_gets_a_fresh_classifier_of_one_output_per_label(base):
    one, two = load(base), load(base)
    assert one.name == "tiny-distilbert"
    assert one.model.classifier.out_features == 3
    assert one.config["model_type"] == "distilbert" and "_name_or_path" not in one.config
    assert torch.equal(one.model.classifier.weight, two.model.classifier.weight)
    other = load(base, seed=1)
    assert not torch.equal(one.model.classifier.weight, other.model.classifier.weight)
    name = "distilbert.embeddings.word_embeddings.weight"
    assert torch.equal(one.model.state_dict()[name], other.model.state_dict()[name])


def test_nothing_is_printed(base, capfd):
    load(base)
    assert capfd.readouterr() == ("", "")


def test_weights_of_another_network_are_refused(base, copy):
    from safetensors.torch import load_file, save_file

    state = load_file(copy / "model.safetensors")
    foreign = {f"encoder.{name}": tensor for name, tensor in state.items()}
    save_file(foreign, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"'copy' are of another network: \d+ tensors"):
        load(copy)


def test_weights_of_another_size_are_refused(copy):
    edit(copy, "config.json", lambda c: c.update(dim=16))
    with pytest.raises(ConfigError, match="'copy' cannot be fine-tuned"):
        load(copy)


def test_pickled_weights_are_not_read(copy):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="Pickled weights are not read"):
        load(copy)


def test_code_of_a_model_is_never_run(copy):
    (copy / "evil.py").write_text("raise SystemExit('ran')\n")
    automatic = {"AutoModelForSequenceClassification": "evil.Model", "AutoConfig": "evil.Config"}
    edit(copy, "config.json", lambda c: c.update(auto_map=automatic))
    with pytest.raises(ConfigError, match="auto_map"):
        load(copy)


def test_a_tokenizer_of_another_model_is_refused(copy):
    def grow(content):
        vocabulary = content["model"]["vocab"]
        vocabulary |= {f"new{at}": len(vocabulary) + at for at in range(50)}

    edit(copy, "tokenizer.json", grow)
    with pytest.raises(ConfigError, match="They belong to different models"):
        load(copy)


def test_more_tokens_than_the_network_has_positions_for_are_refused(base):
    load(base, max_tokens=64)
    with pytest.raises(ConfigError, match=r"cannot read 100 tokens .* says 64"):
        load(base, max_tokens=100)


def test_a_folder_that_is_no_model_and_one_that_is_not_there_say_so(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"no readable config\.json"):
        load(tmp_path)
    with pytest.raises(EncoderError, match="does not exist"):
        load(tmp_path / "nowhere")


def test_an_architecture_without_a_classifier_is_refused(copy):
    edit(copy, "config.json", lambda c: c.update(model_type="clip"))
    with pytest.raises(ConfigError, match="cannot be fine-tuned as a classifier"):
        load(copy)


def test_another_architecture_of_transformers_can_be_fine_tuned(base, tmp_path):
    from transformers import BertConfig, BertModel

    folder = tmp_path / "bert"
    shutil.copytree(base, folder)
    (folder / "model.safetensors").unlink()
    vocabulary = len(json.loads((base / "tokenizer.json").read_text())["model"]["vocab"])
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    assert load(folder).config["model_type"] == "bert"
