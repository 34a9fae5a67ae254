import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from router_runtime.errors import ArtifactError, ArtifactIntegrityError, ConfigError, RouterError
from router_runtime.experts.adapter_folder import CONFIG_FILE, WEIGHTS_FILE, read_adapter


def test_an_adapter_of_peft_is_read_with_its_ranks_and_scales(adapters):
    folder = read_adapter("calendar", adapters["calendar"])
    module = folder.modules["model.layers.0.self_attn.q_proj"]
    assert (module.rank, module.in_features, module.out_features, module.scale) == (8, 32, 32, 2.0)
    assert len(folder.modules) == 14
    assert folder.base_model.endswith("llama")
    held = load_file(adapters["calendar"] / WEIGHTS_FILE)
    assert folder.n_parameters == sum(tensor.size for tensor in held.values())


@pytest.mark.parametrize("name", ["", "../x", "a b", "-a", "a" * 65, "a/b", "é", "a\n"])
def test_a_name_that_could_mislead_is_refused(adapters, name):
    with pytest.raises(ConfigError, match="cannot be called"):
        read_adapter(name, adapters["calendar"])


@pytest.mark.parametrize(
    "file", ["optimizer.pt", "adapter_model.bin", "x.pkl", "a.tar.PTH", "m.py"]
)
def test_a_file_that_could_execute_code_is_named(changed, file):
    folder = changed()
    (folder / file).write_bytes(b"x")
    with pytest.raises(ArtifactIntegrityError, match=f"'{file}'.*could execute code"):
        read_adapter("calendar", folder)


def test_other_files_are_left_alone(changed):
    folder = changed()
    (folder / "README.md").write_text("trained yesterday")
    (folder / "tokenizer.json").write_text("{}")
    assert read_adapter("calendar", folder).modules


def test_a_missing_folder_and_a_missing_file_are_named(changed, tmp_path):
    with pytest.raises(ArtifactIntegrityError, match=r"no folder.*absent"):
        read_adapter("calendar", tmp_path / "absent")
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        folder = changed()
        (folder / file).unlink()
        with pytest.raises(ArtifactIntegrityError, match=f"has no file {file}"):
            read_adapter("calendar", folder)


def test_a_folder_outside_the_root_is_refused_also_through_links(adapters, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(adapters["calendar"])
    for path in ("../elsewhere", str(adapters["calendar"]), "link"):
        with pytest.raises(ConfigError, match="outside 'adapters_root'"):
            read_adapter("calendar", path, root=root)


def test_weights_that_are_a_link_out_of_the_folder_are_refused(changed, adapters):
    folder = changed()
    (folder / WEIGHTS_FILE).unlink()
    (folder / WEIGHTS_FILE).symlink_to(adapters["claim-window"] / WEIGHTS_FILE)
    with pytest.raises(ArtifactIntegrityError, match="link"):
        read_adapter("calendar", folder)


def test_a_relative_path_begins_at_the_root(adapters):
    folder = read_adapter("calendar", "calendar", root=adapters["calendar"].parent)
    assert folder.path == adapters["calendar"].resolve()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_weights_never_pass_as_others(adapters, tmp_path_factory, data):
    whole = (adapters["calendar"] / WEIGHTS_FILE).read_bytes()
    at = data.draw(st.integers(0, 3000), label="at")
    cut = data.draw(st.booleans(), label="cut")
    header = 8 + int.from_bytes(whole[:8], "little")
    folder = tmp_path_factory.mktemp("damaged")
    os.link(adapters["calendar"] / CONFIG_FILE, folder / CONFIG_FILE)
    damaged = whole[:at] if cut else whole[:at] + bytes([whole[at] ^ 0x5A]) + whole[at + 1 :]
    (folder / WEIGHTS_FILE).write_bytes(damaged)
    try:
        found = read_adapter("calendar", folder)
    except RouterError as error:
        assert "calendar" in str(error)
    else:  # a changed number, or a character of the header that means nothing
        assert not cut
        assert found.modules
        assert at >= header or len(found.data) == len(whole)


def test_corrupt_weights_are_named(changed):
    folder = changed()
    (folder / WEIGHTS_FILE).write_bytes(b"\x10" * 200)
    with pytest.raises(ArtifactIntegrityError, match=f"{WEIGHTS_FILE} is corrupt"):
        read_adapter("calendar", folder)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"peft_type": "IA3"}, "'IA3'"),
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, "whole modules"),
        ({"bias": "all"}, "trained biases"),
        ({"r": 4}, "rank 8 and 8, but adapter_config.json says 4"),
        ({"lora_alpha": "nan"}, "lora_alpha"),
        ({"lora_alpha": 0}, "lora_alpha"),
        ({"rank_pattern": {"(a+)+$": 4}}, "regular expression"),
    ],
)
def test_what_cannot_be_served_is_said(changed, config, words):
    with pytest.raises(ArtifactError) as caught:
        read_adapter("calendar", changed(**config))
    assert words in str(caught.value)


def test_patterns_and_rank_stabilised_scales_are_those_of_peft(making, llama, tmp_path):
    settings = {
        "r": 4,
        "use_rslora": True,
        "target_modules": ["q_proj", "v_proj"],
        "rank_pattern": {"layers.1.self_attn.v_proj": 2},
        "alpha_pattern": {"q_proj": 6},
    }
    modules = settings.pop("target_modules")
    folder = making.random_adapter(llama, tmp_path / "a", modules=modules, **settings)
    model = making.peft.PeftModel.from_pretrained(making.load(llama), folder)
    found = read_adapter("a", folder)
    assert len(found.modules) == 4
    for name, module in found.modules.items():
        layer = model.base_model.model.get_submodule(name)
        assert module.rank == layer.lora_A["default"].weight.shape[0]
        assert module.scale == pytest.approx(layer.scaling["default"])


def test_half_of_a_pair_is_named(changed):
    folder = changed()
    tensors = load_file(folder / WEIGHTS_FILE)
    lost = "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"
    save_file({k: v for k, v in tensors.items() if k != lost}, folder / WEIGHTS_FILE)
    with pytest.raises(ArtifactIntegrityError, match=r"mlp.up_proj' has no lora_B"):
        read_adapter("calendar", folder)


def test_tensors_that_are_no_matrices_of_lora_are_named(changed):
    for key, value in {
        "lm_head.weight": np.zeros((2, 2), np.float32),
        "base_model.model.x.lora_A.weight": np.zeros(3, np.float32),
        "base_model.model.y.lora_A.weight": np.zeros((2, 2), np.int64),
    }.items():
        folder = changed()
        save_file(load_file(folder / WEIGHTS_FILE) | {key: value}, folder / WEIGHTS_FILE)
        with pytest.raises(ArtifactError, match=key):
            read_adapter("calendar", folder)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 10_000, json.dumps({"peft_type": 3})])
def test_a_config_that_is_none_is_refused(changed, text):
    folder = changed()
    (folder / CONFIG_FILE).write_text(text)
    with pytest.raises(ArtifactError, match="calendar"):
        read_adapter("calendar", folder)
