"""The predictor kind ``adapter``: names scored, a base that must be the right one and is shared."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from router_runtime.artifacts import Artifact, load_artifact, save_artifact
from router_runtime.config import EncoderRuntime, RuntimeConfig
from router_runtime.errors import ArtifactError, ArtifactIntegrityError, ConfigError, EncoderError
from router_runtime.images import load_image
from router_runtime.prediction.adapter import (
    QUESTION,
    TEXT_QUESTION,
    AdapterDescription,
    AdapterParts,
    AdapterPredictor,
    AdapterPrompt,
    system_prompt,
)
from router_runtime.prediction.calibration import Calibrator
from router_runtime.prediction.parts import predictor_facts
from router_runtime.types import Modality, Query

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

NAMES = ("calendar", "claim-window", "provider-select")
CPU = EncoderRuntime(device="cpu")


def picture(color="red", size=(48, 32)):
    file = io.BytesIO()
    PIL.Image.new("RGB", size, color).save(file, "PNG")
    return load_image(file.getvalue())


# --------------------------------------------------------------------------- without a network


def test_what_is_shown_and_asked_follows_the_prompt():
    both = AdapterPrompt(system="s")
    seen = Query("free day?", (picture(),))
    assert both.shown(seen) == seen
    assert both.asked(seen) == f"{QUESTION}\n\nfree day?"
    assert both.asked(Query("free day?")) == f"{TEXT_QUESTION}\n\nfree day?"
    assert both.asked(Query("", (picture(),))) == QUESTION
    alone = AdapterPrompt(system="s", shows="picture")
    assert alone.shown(seen) == Query("", seen.images)
    assert alone.shown(Query("free day?")) is None
    text = AdapterPrompt(system="s", shows="request", text_question="")
    assert text.shown(seen) == Query("free day?")
    assert text.shown(Query("", (picture(),))) is None
    assert text.asked(Query("free day?")) == "free day?"
    assert "a, b." in system_prompt(["a", "b"])


def described(**changed):
    content = {
        "base": "tiny",
        "base_sha256": "0",
        "prompts_sha256": "0",
        "dtype": "float32",
        "labels": NAMES,
        "prompt": {"system": "Name one."},
        "max_tokens": 400,
        "max_side": 64,
        "base_rates": (0.5, 0.3, 0.2),
        "adapter": {"r": 8},
    }
    return AdapterDescription.model_validate(content | changed)


class Fixed:
    """Scores made up; the last query cannot be read."""

    def scores(self, queries):
        scores = np.log(np.array([[0.5, 0.25, 0.25]])).repeat(len(queries), axis=0) - 700.0
        known = np.ones(len(queries), dtype=bool)
        known[-1] = False
        return scores, known


def test_names_are_compared_with_each_other_however_unlikely_all_are():
    predictor = AdapterPredictor(NAMES, described(), Fixed(), Calibrator.identity(3))
    told = predictor.tell([Query("a"), Query("b"), Query("c")])
    np.testing.assert_allclose(told.P[:2], [[0.5, 0.25, 0.25]] * 2, rtol=1e-9)
    assert told.known.tolist() == [True, True, False]
    np.testing.assert_allclose(predictor.probabilities([Query("a")] * 2)[1], (0.5, 0.3, 0.2))
    flat = AdapterPredictor(NAMES, described(temperature=1e6), Fixed(), Calibrator.identity(3))
    np.testing.assert_allclose(flat.tell([Query("a")] * 2).P[0], 1 / 3, atol=1e-5)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"labels": ("a", "a", "b")}, "listed twice"),
        ({"base_rates": (0.5, 0.5)}, "2 base rates for 3 labels"),
        ({"temperature": 0}, "temperature"),
        ({"dtype": "int4"}, "dtype"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_description_that_does_not_hold_together_is_refused(changed, message):
    content = AdapterParts.of(described(), b"x").describe() | changed
    with pytest.raises(ArtifactIntegrityError, match=message):
        AdapterParts.from_files(content, {"adapter.safetensors": b"x"})


def test_what_the_artifact_keeps_is_bound_by_a_fingerprint():
    parts = AdapterParts.of(described(), b"x")
    files = parts.to_files()
    assert AdapterParts.from_files(parts.describe(), files) == parts
    elsewhere = parts.describe() | {"base": "/another/place"}
    assert AdapterParts.from_files(elsewhere, files).description.base == "/another/place"
    for key, value in (("temperature", 2.0), ("prompts_sha256", "1"), ("max_side", 32)):
        with pytest.raises(ArtifactIntegrityError, match="not the one that was trained"):
            AdapterParts.from_files(parts.describe() | {key: value}, files)
    with pytest.raises(ArtifactIntegrityError, match="not the one that was trained"):
        AdapterParts.from_files(parts.describe(), {"adapter.safetensors": b"y"})
    assert predictor_facts(parts.describe()) == {
        "predictor": "adapter",
        "base": "tiny",
        "labels": "calendar, claim-window, provider-select",
        "rank": "8",
        "reads": "text and pictures, 400 tokens",
    }
    with pytest.raises(ValueError, match="3, expected 2"):
        parts.check(2, None)


def test_a_base_for_another_kind_of_predictor_is_refused(monkeypatch):
    from router_runtime.prediction.prompted import PromptedConfig, PromptedParts

    asks = {"target": {"kind": "vllm", "base_url": "http://127.0.0.1:1/v1", "model": "m"}}
    config = PromptedConfig.model_validate(asks | {"descriptions": {"a": "x", "b": "y"}})
    parts = PromptedParts.of(config, base_rates=[0.5, 0.5], text=described().text)
    artifact = Artifact(
        model_ids=("a", "b"),
        parts=parts,
        calibrator=Calibrator.identity(2),
        scored_modalities={"a": (Modality.TEXT,), "b": (Modality.TEXT,)},
    )
    with pytest.raises(ConfigError, match=r"'encoder.base' is set.*'prompted'"):
        artifact.predictor(EncoderRuntime(base="somewhere"))


# --------------------------------------------------------------------------- on a tiny base


@pytest.fixture(scope="module")
def making():
    for package in ("torch", "router_runtime.experts.attaching"):
        pytest.importorskip(package, exc_type=ImportError)
    from experts_parts import making

    return making


@pytest.fixture(scope="module")
def bases(making, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    return {
        "llama": making.make_llama(folder / "llama"),
        "qwen": making.make_qwen(folder / "qwen"),
        "other": making.make_llama(folder / "other", seed=1),
    }


@pytest.fixture(scope="module")
def saved(making, bases, tmp_path_factory):
    """Artifact folders by base, with random adapters."""
    from router_runtime.experts.base_model import load_base
    from router_runtime.experts.config import BaseConfig
    from router_runtime.prediction.adapter_network import prompts_digest
    from router_runtime.weights.base_digest import base_digest

    def save(name):
        folder = making.random_adapter(bases[name], tmp_path_factory.mktemp("adapter") / "a")
        base = load_base(BaseConfig(model=str(bases[name])))
        description = described(
            base=str(bases[name]),
            base_sha256=base_digest(bases[name]),
            prompts_sha256=prompts_digest(base),
            adapter=json.loads((folder / "adapter_config.json").read_text()),
        )
        parts = AdapterParts.of(description, (folder / "adapter_model.safetensors").read_bytes())
        artifact = Artifact(
            model_ids=NAMES,
            parts=parts,
            calibrator=Calibrator.identity(3),
            scored_modalities=dict.fromkeys(NAMES, (Modality.TEXT, Modality.IMAGE)),
            recommended_policy={"kind": "highest_probability"},
            training={"cost_unit": "unknown"},
        )
        output = tmp_path_factory.mktemp("artifacts") / name
        save_artifact(artifact, output, created_by="test", card="# card\n")
        return output

    return {name: save(name) for name in ("llama", "qwen")}


QUERIES = [
    Query("which day is free?"),
    Query("", (picture("red"),)),
    Query("open the claim", (picture("blue", (64, 32)), picture("lime"))),
    Query("a"),
    Query("which day is free?", (picture("red"),)),
]


def test_p_is_a_distribution_for_texts_and_pictures(saved):
    predictor = load_artifact(saved["qwen"]).predictor(CPU)
    told = predictor.tell(QUERIES)
    assert told.known.all()
    np.testing.assert_allclose(told.P.sum(axis=1), 1.0, rtol=1e-12)
    assert len({tuple(row) for row in told.P.round(6).tolist()}) == len(QUERIES)
    again = load_artifact(saved["qwen"]).predictor(CPU)
    np.testing.assert_array_equal(again.tell(QUERIES).P, told.P)
    np.testing.assert_array_equal(again.predict(QUERIES).P, told.P)


def test_what_a_base_cannot_read_has_the_base_rates(saved):
    predictor = load_artifact(saved["llama"]).predictor(CPU)
    told = predictor.tell(QUERIES)
    assert told.known.tolist() == [True, False, False, True, False]
    assert predictor.probabilities(QUERIES[1:2]).tolist() == [[0.5, 0.3, 0.2]]
    vision = load_artifact(saved["qwen"]).predictor(CPU)
    crowd = Query("which?", (picture("red", (64, 64)),) * 40)
    thin = Query("which?", (picture("red", (64, 1)),))
    assert not vision.tell([crowd]).known.any()
    assert vision.tell([thin]).P.shape == (1, 3)


def test_a_text_too_long_keeps_its_end(saved):
    predictor = load_artifact(saved["llama"]).predictor(CPU)
    long = "word " * 5000
    ends = predictor.tell([Query(long + "which day is free?"), Query(long + "open the claim")])
    assert ends.known.all() and not np.allclose(ends.P[0], ends.P[1])
    same = predictor.tell([Query("x" + long + "which day is free?")])
    np.testing.assert_allclose(same.P[0], ends.P[0], atol=1e-5)
    reader = predictor.network._reader
    prompt = reader.read(Query(long + "which day is free?"))
    assert 380 < prompt.n_tokens <= 400
    assert "free?" in reader.base.tokenizer.decode(prompt.tensors["input_ids"][0])


def test_it_loads_through_the_router(saved):
    router = ModelRouterOf(saved["qwen"])
    decision = router.decide_batch(QUERIES[:1])[0]
    assert sum(decision.probabilities.values()) == pytest.approx(1.0)
    assert decision.model_id == max(decision.probabilities, key=decision.probabilities.get)


def ModelRouterOf(folder, **encoder):
    from router_runtime.model_router import ModelRouter

    encoder = {"device": "cpu"} | encoder
    return ModelRouter.from_config(RuntimeConfig(artifact=folder, encoder=encoder))


def test_a_wrong_base_is_refused_with_both_digests(saved, bases):
    with pytest.raises(ArtifactIntegrityError, match=r"trained on '.*llama' with weights \w+, but"):
        ModelRouterOf(saved["llama"], base=str(bases["other"]))
    with pytest.raises(ArtifactIntegrityError, match=r"encoder\.base"):
        ModelRouterOf(saved["llama"], base=str(bases["qwen"]))


def test_the_same_base_elsewhere_serves_the_same(saved, bases, tmp_path):
    moved = shutil.copytree(bases["llama"], tmp_path / "moved")
    found = ModelRouterOf(saved["llama"], base=str(moved)).predict(QUERIES[:1]).P
    np.testing.assert_array_equal(found, ModelRouterOf(saved["llama"]).predict(QUERIES[:1]).P)


def test_a_base_with_another_template_is_refused(saved, bases, tmp_path):
    moved = shutil.copytree(bases["llama"], tmp_path / "moved")
    template = moved / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    assert ModelRouterOf(saved["llama"], base=str(bases["llama"]))
    template.write_text(template.read_text().replace("<|im_start|>", "<pad>"))
    with pytest.raises(ArtifactIntegrityError, match="another chat template"):
        ModelRouterOf(saved["llama"], base=str(moved))


def test_a_base_that_is_gone_is_named(saved, tmp_path):
    with pytest.raises(EncoderError, match="nowhere"):
        ModelRouterOf(saved["llama"], base=str(tmp_path / "nowhere"))


def test_a_changed_adapter_file_is_refused(saved, tmp_path):
    folder = shutil.copytree(saved["llama"], tmp_path / "changed")
    file = folder / "adapter.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ArtifactError, match=r"adapter\.safetensors"):
        load_artifact(folder)


@pytest.mark.parametrize("damage", ["cut", "other", "nan"])
def test_an_adapter_that_is_none_is_refused_even_if_it_was_signed(saved, damage, making, bases):
    from safetensors.torch import load, save

    parts = load_artifact(saved["llama"]).parts
    tensors = load(parts.weights)
    first = min(tensors)
    broken = {
        "cut": parts.weights[: len(parts.weights) // 2],
        "other": save({**tensors, first: tensors[first][:, :-1].contiguous()}),
        "nan": save({**tensors, first: tensors[first] * float("nan")}),
    }[damage]
    signed = AdapterParts.of(parts.description, broken)
    with pytest.raises(ArtifactIntegrityError, match="router adapter cannot be used"):
        signed.network(CPU)


def test_a_server_is_refused(saved):
    with pytest.raises(ConfigError, match="router adapter"):
        ModelRouterOf(saved["llama"], url="http://127.0.0.1:1")


def test_router_and_experts_share_one_base(saved, bases, making, tmp_path, monkeypatch):
    """Router adapter, then expert adapter: the weights are loaded once and neither disturbs."""
    from router_runtime.experts import shared
    from router_runtime.experts.config import ExpertsConfig
    from router_runtime.experts.service import Experts

    base = shutil.copytree(bases["llama"], tmp_path / "llama")
    loads = []
    real = shared.load_weights
    monkeypatch.setattr(
        shared, "load_weights", lambda *args, **kwargs: loads.append(args) or real(*args, **kwargs)
    )
    expert = making.train_adapter(base, tmp_path / "calendar", answer="March 29", steps=40)
    router = ModelRouterOf(saved["llama"], base=str(base))
    settings = {"base": {"model": str(base)}, "name": "base", "adapters": {"calendar": expert}}
    experts = Experts.load(ExpertsConfig(**settings))
    try:
        assert len(loads) == 1
        assert router.predictor.network.pool.base.model is experts.engine.pool.base.model
        body = {"model": "calendar", "messages": [{"role": "user", "content": "a"}]}
        request = experts.read(body | {"max_tokens": 8, "temperature": 0})
        before, P = asyncio.run(experts.answer(request)), router.predict(QUERIES[:1]).P

        async def together():
            answers = [asyncio.create_task(experts.answer(request)) for _ in range(8)]
            found = [await asyncio.to_thread(router.predict, QUERIES[:1]) for _ in range(8)]
            return await asyncio.gather(*answers), found

        answers, found = asyncio.run(together())
        assert {answer.text for answer in answers} == {before.text}
        assert all(np.array_equal(each.P, P) for each in found)
    finally:
        experts.close()


def test_a_request_is_routed_and_answered_on_one_base(saved, bases, making, tmp_path, monkeypatch):
    """A config whose candidates are experts in this process: decide, then call the chosen one."""
    from router_runtime.experts import shared
    from router_runtime.model_router import ModelRouter

    base = shutil.copytree(bases["llama"], tmp_path / "llama")
    loads = []
    real = shared.load_weights
    monkeypatch.setattr(
        shared, "load_weights", lambda *args, **kwargs: loads.append(args) or real(*args, **kwargs)
    )
    adapters = {
        name: str(making.train_adapter(base, tmp_path / name, answer=words, steps=40))
        for name, words in making.WORDS.items()
    }
    experts = tmp_path / "experts.yml"
    content = {"base": {"model": str(base)}, "name": "base", "adapters": adapters}
    experts.write_text(json.dumps(content))
    target = {"kind": "peft", "experts": str(experts)}
    router = ModelRouter.from_config(
        RuntimeConfig.model_validate(
            {
                "artifact": saved["llama"],
                "encoder": {"device": "cpu", "base": str(base)},
                "candidates": [{"id": name, "target": target} for name in NAMES],
            }
        )
    )
    asked = [{"role": "user", "content": "which day is free?"}]

    async def ask():
        try:
            return await router.acomplete(asked, max_tokens=8, temperature=0)
        finally:
            await router.aclose()

    answer = asyncio.run(ask())
    chosen = router.decide_batch([Query("which day is free?")])[0].model_id
    assert answer.model_id == chosen
    assert answer.text.startswith(making.WORDS[chosen][:4])
    assert len(loads) == 1
