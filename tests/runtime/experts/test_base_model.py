import json
import shutil

import pytest

from router_runtime.errors import ConfigError, EncoderError
from router_runtime.experts.config import BaseConfig

torch = pytest.importorskip("torch")
base_model = pytest.importorskip("router_runtime.experts.base_model", exc_type=ImportError)


def load(folder, **settings):
    return base_model.load_base(BaseConfig(model=str(folder), **settings), own=True)


def test_a_text_and_a_vision_language_model_are_told_apart(llama, qwen):
    assert [load(folder).sees_pictures for folder in (llama, qwen)] == [False, True]
    assert load(qwen).shape.row_parts == ("model.language_model.", "lm_head")


def test_its_own_end_and_context_are_taken(llama):
    base = load(llama)
    assert (base.end_tokens, base.context) == ((2,), 512)
    assert base.n_bytes == sum(p.numel() * 4 for p in base.model.parameters()) + sum(
        b.numel() * b.element_size() for b in base.model.buffers()
    )


def test_defaults_of_the_repository_do_not_join_in(llama, tmp_path):
    folder = tmp_path / "llama"
    shutil.copytree(llama, folder)
    said = {
        "do_sample": True,
        "temperature": 0.1,
        "repetition_penalty": 9.0,
        "eos_token_id": [7, 2],
    }
    (folder / "generation_config.json").write_text(json.dumps(said))
    base = load(folder)
    assert base.end_tokens == (7, 2)
    assert base.model.generation_config.repetition_penalty in (None, 1.0)


def test_a_model_without_a_chat_template_is_named_with_the_remedy(llama, tmp_path):
    folder = tmp_path / "bare"
    shutil.copytree(llama, folder)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(
        ConfigError, match=r"bare' comes without a chat template.*base.chat_template"
    ):
        load(folder)
    template = tmp_path / "own.jinja"
    template.write_text("{{ messages[0]['content'] }}!")
    assert load(folder, chat_template=template).processor.chat_template.endswith("!")
    with pytest.raises(ConfigError, match=r"absent\.jinja"):
        load(folder, chat_template=tmp_path / "absent.jinja")


def test_a_folder_that_holds_no_model_is_named(tmp_path, llama):
    (tmp_path / "empty").mkdir()
    with pytest.raises(EncoderError, match="empty"):
        load(tmp_path / "empty")
    folder = tmp_path / "cut"
    shutil.copytree(llama, folder)
    (folder / "model.safetensors").write_bytes(b"x" * 64)
    with pytest.raises(EncoderError, match="cut"):
        load(folder)


def test_pickled_weights_are_not_read(tmp_path, llama):
    folder = tmp_path / "pickled"
    shutil.copytree(llama, folder)
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(EncoderError, match="pickled"):
        load(folder)


def test_a_type_can_be_chosen(llama):
    assert load(llama, dtype="bfloat16").dtype == torch.bfloat16
