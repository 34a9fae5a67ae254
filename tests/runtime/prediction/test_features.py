from __future__ import annotations

import hashlib

import numpy as np
import pytest

from router_runtime.errors import ConfigError
from router_runtime.prediction.encoders.specs import ClipSpec, SentenceSpec
from router_runtime.prediction.features import EXTRA_COLUMNS, EmbeddingGenerator, FeatureSpec
from router_runtime.types import Image, Query
from router_runtime.yaml_config import validate


class DigestEncoder:
    """Deterministic vectors from content digests; counts its calls."""

    def __init__(self, kind: str, text_dim: int, image_dim: int) -> None:
        self.kind, self.text_dim, self.image_dim = kind, text_dim, image_dim
        self.fingerprint = f"{kind}-{text_dim}-{image_dim}"
        self.calls = 0

    def encode_texts(self, texts):
        return self._vectors([text.encode() for text in texts], self.text_dim)

    def encode_images(self, images):
        return self._vectors([image.data for image in images], self.image_dim)

    def _vectors(self, contents, dim):
        self.calls += 1
        seeds = [int.from_bytes(hashlib.sha256(c).digest()[:4]) for c in contents]
        rows = [np.random.default_rng(seed).normal(size=dim) for seed in seeds]
        return np.array(rows, dtype=np.float32).reshape(len(contents), dim)


def generator(**spec) -> EmbeddingGenerator:
    spec = {"encoders": (ClipSpec(),), "extra_columns": ()} | spec
    halves = {"clip": (4, 3), "sentence": (5, 0)}
    encoders = [DigestEncoder(e.kind, *halves[e.kind]) for e in spec["encoders"]]
    return EmbeddingGenerator(FeatureSpec(**spec), encoders)


class JointDigestEncoder(DigestEncoder):
    """Sees text and pictures of a query together."""

    joint_dim = 6

    def encode_queries(self, queries):
        contents = [q.text.encode() + b"".join(i.data for i in q.images) for q in queries]
        return self._vectors(contents, self.joint_dim)


A, B = Image(b"a", "image/png"), Image(b"b", "image/png")


def test_each_half_has_unit_length_and_an_absent_one_is_zeros():
    X = generator().encode([Query("hello", (A,)), Query("hello"), Query("", (A,))])
    assert X.shape == (3, 7)
    assert X.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(X[:, :4], axis=1), [1, 1, 0], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(X[:, 4:], axis=1), [1, 0, 1], atol=1e-6)
    np.testing.assert_array_equal(X[0, :4], X[1, :4])
    np.testing.assert_array_equal(X[0, 4:], X[2, 4:])


def test_every_picture_counts_and_their_order_does_not():
    X = generator().encode([Query("", (A, B)), Query("", (B, A)), Query("", (A,))])
    np.testing.assert_allclose(X[0], X[1], atol=1e-7)
    assert not np.allclose(X[0], X[2])
    assert np.linalg.norm(X[0]) == pytest.approx(1, abs=1e-6)


def test_encoders_are_concatenated_in_the_order_of_the_spec():
    both = generator(encoders=(SentenceSpec(), ClipSpec())).encode([Query("q", (A,))])
    alone = generator().encode([Query("q", (A,))])
    assert both.shape == (1, 12)
    np.testing.assert_array_equal(both[:, 5:], alone)


def test_a_joint_part_stands_behind_the_halves_of_its_encoder():
    spec = FeatureSpec(encoders=(ClipSpec(), SentenceSpec()), extra_columns=("has_text",))
    encoders = [JointDigestEncoder("clip", 4, 3), DigestEncoder("sentence", 5, 0)]
    made = EmbeddingGenerator(spec, encoders)
    X = made.encode([Query("q", (A,)), Query("q", (B,)), Query(""), Query("q", (A,))])
    assert X.shape == (4, 4 + 3 + 6 + 5 + 1) == (4, made.n_features)
    np.testing.assert_array_equal(X[0, :4], X[1, :4])
    assert not np.allclose(X[0, 7:13], X[1, 7:13])
    np.testing.assert_allclose(np.linalg.norm(X[:, 7:13], axis=1), [1, 1, 0, 1], atol=1e-6)
    np.testing.assert_array_equal(X[0], X[3])
    apart = generator(encoders=(ClipSpec(), SentenceSpec()), extra_columns=("has_text",))
    np.testing.assert_array_equal(
        np.delete(X, np.s_[7:13], axis=1)[:2], apart.encode([Query("q", (A,)), Query("q", (B,))])
    )


def test_a_joint_part_of_no_columns_is_absent():
    encoder = JointDigestEncoder("clip", 4, 3)
    encoder.joint_dim = 0
    made = EmbeddingGenerator(FeatureSpec(encoders=(ClipSpec(),), extra_columns=()), [encoder])
    assert made.encode([Query("q", (A,))]).shape == (1, 7)


def test_without_normalisation_vectors_stay_as_they_are():
    X = generator(normalise="none").encode([Query("q")])
    assert np.linalg.norm(X) != pytest.approx(1, abs=1e-3)


def test_extra_columns_say_what_is_there_and_how_long():
    names = tuple(EXTRA_COLUMNS)
    X = generator(extra_columns=names).encode(
        [Query("x" * 99, (A, B), prompt_chars=9999), Query("", (A,))]
    )
    assert X[:, 7:].tolist() == pytest.approx(
        np.array(
            [
                [1, 1, np.log(3), np.log(100) / 10, np.log(10000) / 10],
                [0, 1, np.log(2), 0, 0],
            ]
        )
    )


def test_a_batch_is_encoded_in_one_call_per_half_and_equals_one_by_one():
    made = generator(encoders=(ClipSpec(), SentenceSpec()), extra_columns=("log_chars",))
    queries = [Query(f"text {i}", (A,) * (i % 3)) for i in range(40)]
    X = made.encode(queries)
    assert [encoder.calls for encoder in made.encoders] == [2, 1]
    alone = np.vstack([made.encode([query]) for query in queries])
    np.testing.assert_array_equal(X, alone)


def test_progress_reports_every_chunk():
    seen = []
    generator().encode([Query("x")] * 1030, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(512, 1030), (1024, 1030), (1030, 1030)]


def test_no_query_gives_no_row():
    assert generator().encode([]).shape == (0, 7)


def test_the_fingerprint_changes_with_layout_and_encoder_only():
    base = generator().fingerprint
    assert base == generator(encoders=(ClipSpec(pretrained="other"),)).fingerprint
    assert base != generator(normalise="none").fingerprint
    assert base != generator(extra_columns=("has_image",)).fingerprint
    assert base != generator(encoders=(SentenceSpec(),)).fingerprint


def test_encoders_that_do_not_match_the_spec_are_refused():
    with pytest.raises(ConfigError, match="clip"):
        EmbeddingGenerator(FeatureSpec(encoders=(ClipSpec(),)), [DigestEncoder("sentence", 5, 0)])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"encoders": []}, "at least one encoder"),
        ({"extra_columns": ["colour"]}, "unknown extra column 'colour'"),
        ({"extra_columns": ["has_image", "has_image"]}, "twice"),
        ({"encoders": [{"kind": "clipp"}]}, "encoders"),
        ({"encoders": [{"kind": "clip", "modle": "x"}]}, "unknown key"),
    ],
)
def test_a_wrong_spec_is_refused(content, expected):
    with pytest.raises(ConfigError, match=expected):
        validate(FeatureSpec, content, source="features")
