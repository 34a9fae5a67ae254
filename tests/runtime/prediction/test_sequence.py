from __future__ import annotations

import json

import numpy as np
import pytest

from router_runtime.artifacts import Artifact, load_artifact, read_manifest, save_artifact
from router_runtime.config import EncoderRuntime
from router_runtime.errors import ArtifactError, ArtifactIntegrityError, ConfigError
from router_runtime.model_router import ModelRouter
from router_runtime.prediction.calibration import Calibrator, SigmoidMap
from router_runtime.prediction.parts import predictor_facts
from router_runtime.prediction.sequence import (
    TOKENIZER,
    WEIGHTS,
    SequenceDescription,
    SequenceParts,
    SequencePredictor,
    label_probabilities,
    model_probabilities,
)
from router_runtime.types import Image, Query

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

LABELS = ("math", "code", "physics", "prose")
MODELS = ("stem", "coder", "writer")
COLUMNS = (0, 1, 0, 2)
CONFIG = {
    "model_type": "distilbert",
    "vocab_size": 30,
    "dim": 16,
    "hidden_dim": 32,
    "n_layers": 1,
    "n_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
TEXTS = ["what is a sum", "sort the array in place please", "a", "tell me of rivers " * 20]


def described(**changes):
    told = {
        "base": "tiny",
        "labels": LABELS,
        "columns": COLUMNS,
        "objective": "one",
        "temperature": 0.8,
        "max_tokens": 16,
        "base_rates": (0.5, 0.25, 0.25),
        "config": {**CONFIG, "num_labels": len(LABELS)},
    }
    return SequenceDescription.model_validate(told | changes)


def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = ["[PAD]", "[UNK]", *"abcdefghijklmnopqrstuvwxyz"]
    made = Tokenizer(
        models.WordLevel(
            {word: at for at, word in enumerate(vocabulary)},
            unk_token="[UNK]",  # noqa: S106
        )
    )
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return made.to_str().encode()


def tiny(**changes):
    """Parts of a tiny DistilBERT with drawn weights."""
    from router_runtime.prediction.sequence_network import make_network, write_weights

    description = described(**changes)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = make_network(description.config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    return SequenceParts.of(description, write_weights(model), tokenizer())


def artifact(parts, **changes):
    maps = tuple(SigmoidMap(slope=0.5 + 0.1 * at, intercept=0.1) for at in range(len(MODELS)))
    return Artifact(model_ids=MODELS, parts=parts, calibrator=Calibrator(maps), **changes)


def saved(made, folder):
    return save_artifact(made, folder, created_by="test", card="# card\n")


def queries():
    return [Query(text) for text in TEXTS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    target = tmp_path_factory.mktemp("sequence") / "artifact"
    saved(artifact(tiny()), target)
    return target


def test_what_is_saved_predicts_the_same_to_the_bit(folder):
    before = artifact(tiny()).predictor(EncoderRuntime(device="cpu")).predict(queries())
    after = ModelRouter(folder, device="cpu").predict(queries())
    np.testing.assert_array_equal(before.P, after.P)
    assert before.P.shape == (4, 3) and before.P.std(axis=0).min() > 1e-3
    assert after.novelty is None


def test_a_router_decides_by_the_text_and_knows_no_features(folder):
    router = ModelRouter(folder, device="cpu")
    decision = router.decide("sort the array in place please")
    assert decision.model_id == max(decision.probabilities, key=decision.probabilities.get)
    assert router.features(queries()) is None
    with pytest.raises(ConfigError, match="kind 'sequence'"):
        router.predict_features(np.zeros((1, 3), dtype=np.float32))
    info = router.get_model_info()
    assert info["encoders"] == [] and info["router_config"]["base"] == "tiny"
    assert json.dumps(info)


def test_the_network_reads_the_end_of_a_long_text(folder):
    network = load_artifact(folder).parts.network(EncoderRuntime(device="cpu"))
    end = "zyx wvu tsr qpo nml"
    longer = network.logits(["abc " * 50 + end, "def " * 50 + end])
    np.testing.assert_array_equal(longer[0], longer[1])
    assert not np.array_equal(network.logits([end + " abc" * 50])[0], longer[0])


def test_batches_of_any_size_agree(folder):
    parts = load_artifact(folder).parts
    one, many = (
        parts.network(EncoderRuntime(device="cpu", batch_size=size)).logits(TEXTS)
        for size in (1, 4)
    )
    np.testing.assert_allclose(one, many, atol=1e-5)


def test_label_probabilities_of_one_sum_to_1_and_those_of_several_do_not():
    logits = np.array([[2.0, 0.0, -1.0, 800.0], [0.0, 0.0, 0.0, 0.0]])
    one = label_probabilities(logits, described(temperature=2.0))
    np.testing.assert_allclose(one.sum(axis=1), 1.0)
    np.testing.assert_allclose(one[1], 0.25)
    assert label_probabilities(logits, described(temperature=1.0))[0, 3] == 1.0
    several = described(
        objective="several",
        temperature=1.0,
        labels=MODELS,
        columns=(0, 1, 2),
    )
    np.testing.assert_allclose(
        label_probabilities(logits[:, :3], several)[0], [0.880797, 0.5, 0.268941], atol=1e-6
    )


def test_a_model_has_the_sum_of_its_labels():
    P = model_probabilities(np.array([[0.1, 0.2, 0.3, 0.4]]), described())
    np.testing.assert_allclose(P, [[0.4, 0.2, 0.4]])


class Constant:
    """A network that says the same of every text, and remembers what it was asked."""

    def __init__(self, logits):
        self.asked = []
        self._logits = np.array(logits)

    def logits(self, texts):
        self.asked += texts
        return np.tile(self._logits, (len(texts), 1))


def test_of_a_query_without_text_the_base_rates_are_known():
    network = Constant([0.0, 0.0, 0.0, 0.0])
    calibrator = Calibrator((SigmoidMap(slope=1.0, intercept=3.0),) * 3)
    predictor = SequencePredictor(MODELS, described(), network, calibrator)
    picture = Image(b"\x89PNG", "image/png")
    P = predictor.probabilities([Query("", (picture,)), Query("words"), Query("", (picture,))])
    np.testing.assert_array_equal(P[0], [0.5, 0.25, 0.25])
    np.testing.assert_array_equal(P[2], P[0])
    assert P[1, 0] > 0.9
    assert network.asked == ["words"]
    assert predictor.predict([]).P.shape == (0, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ("math", "math", "physics", "prose")}, "listed twice"),
        ({"columns": (0, 1, 2)}, "3 columns for 4 labels"),
        ({"columns": (0, 1, 0, 1)}, "not those of the models"),
        ({"columns": (0, 1, 0, 3)}, "not those of the models"),
        ({"objective": "several", "temperature": 1.0}, "labels are the models"),
        ({"temperature": 0.0}, "temperature"),
        ({"base_rates": (0.5, 0.5, 1.5)}, "base_rates"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
def test_a_description_that_contradicts_itself_is_refused(changes, message):
    told = {**described().model_dump(), **changes}
    with pytest.raises(ArtifactError, match=message):
        SequenceParts.from_files(told, {WEIGHTS: b"", TOKENIZER: b""})


def test_parts_for_another_number_of_models_are_not_saved(tmp_path):
    made = Artifact(model_ids=("a", "b"), parts=tiny(), calibrator=Calibrator.identity(2))
    with pytest.raises(ArtifactError, match="models of the classifier: 3, expected 2"):
        saved(made, tmp_path / "new")


def test_the_manifest_tells_what_it_is_without_weights(folder):
    manifest = read_manifest(folder)
    facts = predictor_facts(manifest.predictor)
    assert facts["predictor"] == "sequence" and facts["base"] == "tiny"
    assert facts["labels"] == "math, code, physics, prose"
    assert sorted(manifest.files) == ["README.md", TOKENIZER, WEIGHTS]


@pytest.mark.parametrize("name", [WEIGHTS, TOKENIZER])
def test_a_changed_file_is_refused(folder, tmp_path, name):
    target = tmp_path / "copy"
    saved(load_artifact(folder), target)
    content = bytearray((target / name).read_bytes())
    content[-3] ^= 1
    (target / name).write_bytes(content)
    with pytest.raises(ArtifactIntegrityError, match=f"'{name}' was changed"):
        load_artifact(target)


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 0.5},
        {"max_tokens": 12},
        {"labels": ("code", "math", "physics", "prose")},
        {"config": {**CONFIG, "num_labels": 4, "n_heads": 4}},
        {"fingerprint": "0" * 64},
    ],
)
def test_a_changed_description_is_refused_by_its_fingerprint(folder, change):
    loaded = load_artifact(folder).parts
    told = {**loaded.describe(), **change}
    with pytest.raises(ArtifactIntegrityError, match="not the one that was trained"):
        SequenceParts.from_files(told, loaded.to_files())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": {**CONFIG, "num_labels": 3}}, "3 outputs for 4 labels"),
        ({"config": {**CONFIG, "num_labels": 4, "dim": 8}}, "weights are not those"),
        ({"config": {**CONFIG, "num_labels": 4, "model_type": "nonsense"}}, "type 'nonsense'"),
        ({"config": {**CONFIG, "num_labels": 4, "auto_map": {"x": "evil.py"}}}, "auto_map"),
        ({"config": {"num_labels": 4}}, "type None"),
    ],
)
def test_a_network_that_does_not_fit_its_files_is_refused(change, message):
    made = tiny()
    other = SequenceParts.of(
        made.description.model_copy(update=change), made.weights, made.tokenizer
    )
    with pytest.raises(ArtifactIntegrityError, match=message):
        other.network(EncoderRuntime(device="cpu"))


def test_weights_of_another_base_and_weights_that_are_no_numbers_are_refused():
    from safetensors.torch import load, save

    made, runtime = tiny(), EncoderRuntime(device="cpu")
    state = load(made.weights)
    lacking = dict(list(state.items())[1:])
    with pytest.raises(ArtifactIntegrityError, match="Missing key"):
        SequenceParts.of(made.description, save(lacking), made.tokenizer).network(runtime)
    state["classifier.bias"][0] = float("nan")
    with pytest.raises(ArtifactIntegrityError, match=r"'classifier\.bias' is not finite"):
        SequenceParts.of(made.description, save(state), made.tokenizer).network(runtime)
    with pytest.raises(ArtifactIntegrityError, match="weights"):
        SequenceParts.of(made.description, b"\x80\x04pickle", made.tokenizer).network(runtime)


def test_a_tokenizer_that_is_none_or_knows_too_much_is_refused():
    made, runtime = tiny(), EncoderRuntime(device="cpu")
    with pytest.raises(ArtifactIntegrityError, match="tokenizer cannot be read"):
        SequenceParts.of(made.description, made.weights, b"{}").network(runtime)
    content = json.loads(made.tokenizer)
    content["model"]["vocab"] |= {f"word{at}": at for at in range(30, 60)}
    large = json.dumps(content).encode()
    with pytest.raises(ArtifactIntegrityError, match="knows 58 tokens and the network 30"):
        SequenceParts.of(made.description, made.weights, large).network(runtime)


def test_a_server_is_of_no_use(folder):
    runtime = EncoderRuntime(device="cpu", url="http://127.0.0.1:9")
    with pytest.raises(ConfigError, match="sequence classifier"):
        load_artifact(folder).predictor(runtime)


def test_what_needs_a_head_says_what_the_artifact_is(folder):
    loaded = load_artifact(folder)
    for ask in (lambda: loaded.head, lambda: loaded.features, loaded.build_encoders):
        with pytest.raises(ArtifactError, match="kind 'sequence'"):
            ask()
