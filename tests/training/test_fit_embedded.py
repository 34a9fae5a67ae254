import logging

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest
from safetensors.numpy import load, save

from router_runtime.errors import DataError, QueryError
from router_runtime.images import load_image
from router_runtime.prediction.encoders.embedded import EmbeddedEncoder
from router_runtime.prediction.encoders.pixels import PIXEL_NAMES
from router_runtime.prediction.encoders.specs import EmbeddedSpec
from router_runtime.types import Image
from router_training import fit_embedded as module
from router_training.fit_embedded import fit_embedded

SPEC = EmbeddedSpec(
    text_components=8, hash_bits=10, max_chars=1000, thumbnail_side=8, thumbnail_components=4
)
TOPICS = {
    "cooking": "simmer the onion soup with butter pepper garlic and fresh thyme".split(),
    "sailing": "hoist the jib sheet and tack the sloop windward past the buoy".split(),
}


def sentences(topic, n, seed):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(TOPICS[topic], size=8)) for _ in range(n)]


def texts(n=30, seed=0):
    return sentences("cooking", n, seed) + sentences("sailing", n, seed + 1)


def picture(seed, kind="dots"):
    rng = np.random.default_rng(seed)
    canvas = PIL.Image.new("RGB", (48, 48), "white")
    pen = PIL.ImageDraw.Draw(canvas)
    for x, y in rng.integers(4, 40, size=(1 + seed % 5, 2)).tolist():
        if kind == "dots":
            pen.ellipse((x, y, x + 6, y + 6), fill=(200, 30, 30))
        else:
            pen.line((x, 0, x, 47), fill="black", width=2)
    return load_image(canvas)


def pictures(n=12):
    return [picture(seed, kind) for seed in range(n) for kind in ("dots", "lines")]


def test_equal_input_and_seed_give_equal_bits():
    one = fit_embedded(texts(), pictures(), spec=SPEC, seed=3)
    other = fit_embedded(texts(), pictures(), spec=SPEC, seed=3)
    assert one.fingerprint == other.fingerprint


def test_texts_of_one_topic_lie_together():
    fitted = fit_embedded(texts(), [], spec=SPEC, seed=0)
    cooking = fitted.encode_texts(sentences("cooking", 5, seed=90))[:, : 2 * 8]
    sailing = fitted.encode_texts(sentences("sailing", 5, seed=91))[:, : 2 * 8]
    assert (cooking @ cooking.T).min() > (cooking @ sailing.T).max() + 0.2


def test_surface_features_and_statistics_are_standardised_on_the_fitted_data():
    fitted = fit_embedded(texts(), pictures(), spec=SPEC, seed=0)
    surface = fitted.encode_texts(texts())[:, 2 * 8 :]
    statistics = fitted.encode_images(pictures())[:, : len(PIXEL_NAMES)]
    for block in (surface, statistics):
        np.testing.assert_allclose(block.mean(axis=0), 0, atol=0.03)
        assert np.mean(np.sum(block**2, axis=1)) == pytest.approx(1, abs=0.1)


def test_thumbnail_scores_have_total_variance_one():
    scores = fit_embedded(["a"], pictures(), spec=SPEC, seed=0).encode_images(pictures())
    thumbnails = scores[:, len(PIXEL_NAMES) :]
    assert np.mean(np.sum(thumbnails**2, axis=1)) == pytest.approx(1, abs=0.01)


def test_repeated_texts_and_pictures_count_once():
    once = fit_embedded(texts(), pictures(), spec=SPEC, seed=0)
    often = fit_embedded(texts() * 3, pictures() + pictures(), spec=SPEC, seed=0)
    assert often.state["fitted_on"].tolist() == once.state["fitted_on"].tolist()
    assert often.fingerprint == once.fingerprint


def test_without_pictures_every_picture_is_zero():
    fitted = fit_embedded(texts(), [], spec=SPEC, seed=0)
    assert fitted.state["fitted_on"][1] == 0
    np.testing.assert_array_equal(fitted.encode_images([picture(1)]), 0)


def test_fewer_texts_than_components_leave_zeros():
    fitted = fit_embedded(["one red apple", "two green pears"], [], spec=SPEC, seed=0)
    vectors = fitted.encode_texts(["one red apple", "something else"])
    assert np.isfinite(vectors).all()
    np.testing.assert_array_equal(vectors[:, 2:8], 0)


@pytest.mark.parametrize("some", [[""], ["", " "], ["?"], ["same", "same"]])
def test_texts_with_nothing_to_learn_are_no_failure(some):
    vectors = fit_embedded(some, [], spec=SPEC, seed=0).encode_texts([*some, "a new text"])
    assert np.isfinite(vectors).all()


@pytest.mark.parametrize("some", [[picture(1)], [picture(1), picture(1)], pictures(1)])
def test_fewer_pictures_than_components_leave_zeros(some):
    vectors = fit_embedded(["a"], some, spec=SPEC, seed=0).encode_images([picture(7), *some])
    assert np.isfinite(vectors).all()
    np.testing.assert_array_equal(vectors[:, len(PIXEL_NAMES) + 2 :], 0)


def test_features_that_never_varied_stay_zero_when_they_do_later():
    fitted = fit_embedded(texts(), pictures(), spec=SPEC, seed=0)
    width = PIXEL_NAMES.index("log_width")
    larger = load_image(PIL.Image.new("RGB", (500, 500), "white"))
    assert fitted.encode_images([larger])[0, width] == 0


def test_more_texts_than_the_limit_are_sampled_with_the_seed(monkeypatch):
    monkeypatch.setattr(module, "MAX_TEXTS", 20)
    one, same, other = (fit_embedded(texts(), [], spec=SPEC, seed=seed) for seed in (1, 1, 2))
    assert one.state["fitted_on"][0] == 20
    assert one.fingerprint == same.fingerprint
    assert one.fingerprint != other.fingerprint


def test_the_state_survives_safetensors():
    fitted = fit_embedded(texts(), pictures(), spec=SPEC, seed=0)
    again = EmbeddedEncoder(SPEC, load(save(fitted.state)))
    assert again.fingerprint == fitted.fingerprint
    np.testing.assert_array_equal(again.encode_texts(texts()), fitted.encode_texts(texts()))
    np.testing.assert_array_equal(again.encode_images(pictures()), fitted.encode_images(pictures()))


def test_without_texts_every_text_is_a_zero_vector():
    encoder = fit_embedded([], pictures(), spec=SPEC, seed=0)
    assert not encoder.encode_texts(["Hello", ""]).any()
    assert encoder.encode_images(pictures()).any()


def test_nothing_to_fit_on_is_an_error():
    with pytest.raises(DataError, match="no training text or picture"):
        fit_embedded([], [], spec=SPEC, seed=0)


def test_a_damaged_picture_is_an_error():
    damaged = Image(picture(1).data[:60], "image/png")
    with pytest.raises(QueryError):
        fit_embedded(texts(), [damaged], spec=SPEC, seed=0)


def test_texts_are_neither_kept_nor_logged(caplog):
    caplog.set_level(logging.DEBUG)
    fitted = fit_embedded(["zanzibar quixotic", *texts()], [], spec=SPEC, seed=0)
    stored = save(fitted.state)
    assert b"zanzibar" not in stored
    assert "zanzibar".encode("utf-32-le") not in stored
    assert "zanzibar" not in caplog.text
