from __future__ import annotations

import json

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from router_training.config import load_training_config
from router_training.pipeline import Walk
from router_training.tiny_bases import write_text_base, write_vision_base

TEXTS = ["Which day is free?", "Open the second claim", "How many circles are there?"] * 5


def test_equal_seeds_give_equal_weights(tmp_path):
    one, same = (write_text_base(tmp_path / name, TEXTS) for name in ("one", "same"))
    other = write_text_base(tmp_path / "other", TEXTS, seed=1)
    weights = [(folder / "model.safetensors").read_bytes() for folder in (one, same, other)]
    assert weights[0] == weights[1] != weights[2]


def test_a_tokenizer_knows_the_words_that_it_was_given(tmp_path):
    import transformers

    reader = transformers.AutoTokenizer.from_pretrained(write_text_base(tmp_path / "b", TEXTS))
    assert reader.tokenize("which circles") == ["which", "circles"]


@pytest.mark.parametrize(
    "looks",
    [
        {"predictor": {"kind": "sequence", "base": "text", "epochs": 1, "max_tokens": 32}},
        {"predictor": {"kind": "adapter", "base": "vision", "epochs": 1, "max_side": 32}},
        {"features": {"encoders": [{"kind": "vision-language", "model": "vision"}]}},
    ],
    ids=["sequence", "adapter", "hidden-states"],
)
def test_every_kind_of_router_on_a_base_learns_on_a_tiny_one(looks, workload, tmp_path):
    pytest.importorskip("peft")
    write_text_base(tmp_path / "text", TEXTS)
    write_vision_base(tmp_path / "vision", TEXTS)
    content = json.dumps({**looks, "encoder": {"device": "cpu"}, "output": "out"})
    for name in ("text", "vision"):
        content = content.replace(f'"{name}"', f'"{tmp_path / name}"')
    (tmp_path / "c.yml").write_text(content)
    few = {"data.path": str(workload / "records.jsonl"), "data.limit": 40}
    walk = Walk(load_training_config(tmp_path / "c.yml", overrides=few))
    P = walk.P(walk.split.test)
    assert P.shape == (len(walk.split.test), 4)
    assert P.std(axis=0).max() > 0  # what it says depends on what it sees
