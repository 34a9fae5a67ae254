import hashlib
import json
import struct

import numpy as np
import pytest
import xgboost
from hypothesis import given, settings
from hypothesis import strategies as st

from router_runtime.errors import ArtifactIntegrityError
from router_runtime.prediction.heads import booster_json
from router_runtime.prediction.heads.base import load_head
from router_runtime.prediction.heads.booster_json import REFUSALS
from router_runtime.prediction.heads.ubjson import parse_ubjson
from router_runtime.prediction.heads.xgboost import XGBoostHead


def checked_model(buffer):
    return booster_json.checked_model(parse_ubjson(buffer)["Model"])


def rows(n=80, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 6)).astype(np.float32)


def trained():
    X = rows()
    data = xgboost.DMatrix(X, (X[:, 0] + X[:, 1] > 0).astype(np.float32))
    params = {"objective": "binary:logistic", "nthread": 1, "max_depth": 3}
    return xgboost.train(params, data, num_boost_round=4)


BOOSTER = trained()
BUFFER = bytes(BOOSTER.__getstate__()["handle"])


def ubjson(value):
    """Write UBJSON as XGBoost does, but without typed arrays."""
    if isinstance(value, dict):
        items = b"".join(ubjson(key)[1:] + ubjson(item) for key, item in value.items())
        return b"{" + items + b"}"
    if isinstance(value, list):
        return b"[" + b"".join(map(ubjson, value)) + b"]"
    if isinstance(value, str):
        return b"SL" + struct.pack(">q", len(value.encode())) + value.encode()
    if isinstance(value, float):
        return b"D" + struct.pack(">d", value)
    return b"L" + struct.pack(">q", value)


def changed(change):
    """Return the booster's buffer after ``change`` was applied to its learner."""
    model = json.loads(bytes(BOOSTER.save_raw("json")))
    change(model["learner"])
    return ubjson({"Model": model})


def tree(learner):
    return learner["gradient_booster"]["model"]["trees"][0]


def test_the_checked_model_predicts_the_same():
    again = xgboost.Booster()
    content, best_iteration = checked_model(BUFFER)
    again.load_model(bytearray(content))
    X = rows(200, seed=1)
    assert np.array_equal(again.inplace_predict(X), BOOSTER.inplace_predict(X))
    assert best_iteration is None


def test_the_models_of_this_test_are_accepted_when_nothing_is_changed():
    checked_model(changed(lambda learner: None))


def set_child(value):
    def change(learner):
        tree(learner)["left_children"][0] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_child(10**6), "form no tree"),
        (set_child(0), "form no tree"),
        (set_child(-7), "form no tree"),
        (set_child(-1), "form no tree"),
        (set_child(2), "form no tree"),
        (lambda learner: tree(learner)["split_indices"].__setitem__(0, 99), "beyond 6"),
        (lambda learner: tree(learner)["split_indices"].pop(), "differ in length"),
        (lambda learner: tree(learner)["split_type"].__setitem__(0, 1), "categories"),
        (lambda learner: tree(learner)["parents"].__setitem__(1, 77), "parents"),
        (lambda learner: tree(learner)["split_conditions"].__setitem__(0, float("nan")), "JSON"),
        (lambda learner: tree(learner)["tree_param"].update(num_nodes="-3"), "differ in length"),
        (lambda learner: learner["learner_model_param"].update(num_class="3"), "several"),
        (lambda learner: learner["learner_model_param"].update(base_score="[7]"), "base score"),
        (lambda learner: learner["objective"].update(name="reg:squarederror"), "objective"),
        (lambda learner: learner["gradient_booster"].update(name="dart"), "dart"),
        (
            lambda learner: learner["gradient_booster"]["model"].update(iteration_indptr=[0, 99]),
            "rounds",
        ),
    ],
)
def test_a_model_that_xgboost_would_trust_wrongly_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        checked_model(changed(change))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, len(BUFFER) - 1))
def test_a_cut_off_buffer_is_refused(length):
    with pytest.raises(REFUSALS):
        checked_model(BUFFER[:length])


@settings(deadline=None, max_examples=100)
@given(st.integers(0, len(BUFFER) - 1), st.integers(0, 255))
def test_a_buffer_with_a_changed_byte_is_refused_or_harmless(place, value):
    damaged = bytearray(BUFFER)
    damaged[place] = value
    try:
        content, _ = checked_model(bytes(damaged))
    except REFUSALS:
        return
    again = xgboost.Booster({"nthread": 1})
    try:
        again.load_model(bytearray(content))
    except xgboost.core.XGBoostError:
        return
    P = again.inplace_predict(rows(20))
    assert ((P >= 0) & (P <= 1)).all()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"?",
        b"{",
        b"[$d#L" + struct.pack(">q", 2**60),
        b"[$d#L" + struct.pack(">q", -1),
        b"[#L" + struct.pack(">q", 3) + b"TT]",
        b"SL" + struct.pack(">q", -5),
        b"[" * 40,
        b"TT",
        b"[" + 5_000_001 * b"Z" + b"]",
        b"{" + b"L" + struct.pack(">q", 1) + b"aT" + b"L" + struct.pack(">q", 1) + b"aT}",
    ],
)
def test_malformed_ubjson_is_refused(data):
    with pytest.raises(ValueError, match=r"."):
        parse_ubjson(data)


def test_ubjson_values():
    data = b"[ZTFi\xffU\xffI\x01\x00d\x3f\x80\x00\x00]"
    assert parse_ubjson(data) == [None, True, False, -1, 255, 256, 1.0]


def test_a_head_whose_model_would_end_the_process_is_refused():
    """Whoever writes the digests of an artifact can also write the models that they are of."""
    head = XGBoostHead([BOOSTER], n_features=6)
    model = parse_ubjson(head.to_files("head")["head-0.ubj"])
    model["learner"]["gradient_booster"]["model"]["trees"][0]["left_children"] = [10**6] * 3
    raw = ubjson(plain(model))
    description = {**head.describe(), "sha256": [hashlib.sha256(raw).hexdigest()]}
    with pytest.raises(ArtifactIntegrityError, match=r"head-0\.ubj"):
        load_head(description, {"head-0.ubj": raw})


def plain(value):
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | np.ndarray):
        return [
            plain(item) for item in (value.tolist() if isinstance(value, np.ndarray) else value)
        ]
    return value
