from __future__ import annotations

import signal
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router_runtime.errors import (
    ArtifactError,
    ArtifactIntegrityError,
    MissingDependencyError,
    QueryError,
)
from router_runtime.prediction.heads.base import (
    check_features,
    chunks,
    import_optional,
    load_head,
    logit,
    read_tensors,
    sigmoid,
    write_tensors,
)


def test_sigmoid_at_points_known_by_heart_and_at_the_ends():
    Z = np.array([0.0, np.log(3), -np.log(3), 1e9, -1e9], np.float32)
    np.testing.assert_allclose(sigmoid(Z), [0.5, 0.75, 0.25, 1.0, 0.0], atol=1e-7)
    assert sigmoid(Z).dtype == np.float64


@settings(deadline=None, max_examples=50)
@given(st.floats(-13, 13))
def test_logit_undoes_sigmoid(z):
    assert logit(sigmoid(np.array([z])))[0] == pytest.approx(z, abs=1e-6)


def test_logit_is_clipped_at_certainty():
    np.testing.assert_allclose(logit(np.array([0.0, 1.0])), [-13.8155, 13.8155], atol=1e-4)


def test_chunks_cover_all_rows_and_no_more():
    assert [(part.start, part.stop) for part in chunks(10, 4)] == [(0, 4), (4, 8), (8, 10)]
    assert list(chunks(0, 4)) == []


def test_a_list_is_not_a_feature_matrix():
    with pytest.raises(QueryError, match="2-D float32 array, not list"):
        check_features([[1.0]], 1)


def test_finite_features_of_any_size_pass_and_the_first_row_that_is_not_is_named():
    X = np.full((5000, 2), 1e30, np.float32)  # the sum of their squares is infinite
    check_features(X, 2)
    X[4200, 1] = np.inf
    X[4900, 0] = np.nan
    with pytest.raises(QueryError, match="query 4200 contain NaN or infinity"):
        check_features(X, 2)
    with pytest.raises(QueryError, match="query 0 contain NaN or infinity"):
        check_features(X[4900:4901], 2)


def test_an_unknown_kind_lists_the_known_ones():
    with pytest.raises(ArtifactError, match=r"'forest' \(known: joined, knn, logistic, mlp"):
        load_head({"kind": "forest"}, {})


@pytest.mark.parametrize(
    ("description", "field"),
    [
        ({"kind": "prior", "n_features": 3}, "n_models"),
        ({"kind": "prior", "n_features": "many", "n_models": 2}, "n_features"),
        ({"kind": "prior", "n_features": 3, "n_models": 2, "colour": 1}, "colour"),
        ({"kind": "mlp", "n_features": 3, "n_models": 2, "members": 0, "hidden_dims": []}, "mem"),
    ],
)
def test_a_malformed_description_names_its_field(description, field):
    with pytest.raises(ArtifactError, match=field):
        load_head(description, {})


def test_a_missing_optional_package_is_explained(monkeypatch):
    module = "router_runtime.prediction.heads.xgboost"
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "xgboost", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'model-router\[train\]'"):
        load_head({"kind": "xgboost"}, {})


def test_a_defect_in_our_own_imports_is_not_called_a_missing_package():
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        import_optional("router_runtime.no_such_module", {"xgboost": "train"})


def test_ctrl_c_waits_until_an_import_has_finished(tmp_path, monkeypatch):
    (tmp_path / "pressed_meanwhile.py").write_text(
        "import signal\nsignal.raise_signal(signal.SIGINT)\nfinished = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pressed_meanwhile", raising=False)
    with pytest.raises(KeyboardInterrupt):
        import_optional("pressed_meanwhile", {})
    assert sys.modules["pressed_meanwhile"].finished
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_light_heads_load_nothing_heavy():
    program = (
        "import sys\n"
        "from router_runtime.prediction.heads import base, knn, logistic, mlp, prior, stack\n"
        "heavy = {'torch', 'xgboost', 'sklearn', 'scipy', 'pandas'} & set(sys.modules)\n"
        "sys.exit(' '.join(heavy) or 0)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)  # noqa: S603 - our own program


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"a": (2, 3), "b": (3,), "c": (1,)}, r"holds the tensors \['a', 'b'\]"),
        ({"a": (3, 2), "b": (3,)}, r"'a' is float32 \(2, 3\), expected floats of shape \(3, 2\)"),
        ({"a": (2, 3), "b": (3, 1)}, r"'b' is float32 \(3,\)"),
        ({"a": (None, 3), "b": (None,)}, "differ in length"),
    ],
)
def test_tensors_that_differ_from_the_description_are_refused(shapes, words):
    files = write_tensors("head", {"a": np.zeros((2, 3), "f4"), "b": np.zeros(3, "f4")})
    with pytest.raises(ArtifactIntegrityError, match=words):
        read_tensors(files, "head", shapes)


def test_nan_is_allowed_only_where_it_means_missing():
    files = write_tensors("head", {"a": np.array([np.nan])})
    read_tensors(files, "head", {"a": (1,)}, may_be_nan=frozenset({"a"}))
    with pytest.raises(ArtifactIntegrityError, match="'a' is not finite"):
        read_tensors(files, "head", {"a": (1,)})


def test_integers_are_not_weights():
    files = write_tensors("head", {"a": np.array([1])})
    with pytest.raises(ArtifactIntegrityError, match="int64"):
        read_tensors(files, "head", {"a": (1,)})


def test_equal_tensors_give_equal_bytes_whatever_their_order_and_layout():
    A = np.arange(6.0).reshape(2, 3)
    first = write_tensors("head", {"a": A, "b": A.T})
    assert (
        write_tensors("head", {"b": np.ascontiguousarray(A.T), "a": np.asfortranarray(A)}) == first
    )
