import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router_runtime.errors import EncoderError, QueryError
from router_runtime.images import load_image
from router_runtime.prediction.encoders.embedded import (
    TAIL_CHARS,
    EmbeddedEncoder,
    clip_text,
    state_layout,
    text_views,
    weighted_ngrams,
)
from router_runtime.prediction.encoders.pixels import PIXEL_NAMES
from router_runtime.prediction.encoders.specs import EmbeddedSpec
from router_runtime.prediction.encoders.surface import SURFACE_NAMES
from router_runtime.types import Image

SPEC = EmbeddedSpec(
    text_components=12,
    hash_bits=10,
    max_chars=2000,
    thumbnail_side=6,
    thumbnail_components=5,
)
PREAMBLE = "Answer like the examples below. " * 400  # about 2,000 tokens


def some_state(spec=SPEC, seed=0):
    """A state as a fit could have left it, without fitting."""
    rng = np.random.default_rng(seed)
    state = {}
    for name, (shape, dtype) in state_layout(spec).items():
        values = rng.uniform(0.5, 1.5, shape) if name.endswith("gain") else rng.normal(size=shape)
        state[name] = (np.abs(values) if name == "idf" else values).astype(dtype)
    state["fitted_on"] = np.array([100, 20])
    return state


def encoder(spec=SPEC, **changes):
    return EmbeddedEncoder(spec, some_state(spec) | changes)


def picture(seed=0, size=(20, 30)):
    pixels = np.random.default_rng(seed).integers(256, size=(*size, 3), dtype=np.uint8)
    return load_image(PIL.Image.fromarray(pixels))


def test_dimensions_follow_the_spec():
    assert encoder().text_dim == 2 * 12 + len(SURFACE_NAMES)
    assert encoder().image_dim == len(PIXEL_NAMES) + 5
    assert encoder().kind == "embedded"


def test_vectors_are_float32_rows():
    texts = encoder().encode_texts(["one", "", "three"])
    images = encoder().encode_images([picture(1), picture(2)])
    assert (texts.dtype, texts.shape) == (np.float32, (3, encoder().text_dim))
    assert (images.dtype, images.shape) == (np.float32, (2, encoder().image_dim))


def test_features_that_never_varied_leave_their_weight_to_the_others():
    state = some_state()
    gain = np.zeros_like(state["surface_gain"])
    gain[SURFACE_NAMES.index("question_marks")] = 1
    vector = encoder(surface_gain=gain, surface_mean=gain * 0).encode_texts(["Why?"])[0]
    assert vector[2 * 12 :].sum() == pytest.approx(np.log(2))


def test_nothing_gives_no_rows():
    assert encoder().encode_texts([]).shape == (0, encoder().text_dim)
    assert encoder().encode_images([]).shape == (0, encoder().image_dim)


@settings(deadline=None, max_examples=30)
@given(
    texts=st.lists(st.text(alphabet=st.characters(), max_size=900), min_size=1, max_size=6),
    data=st.data(),
)
def test_a_text_has_the_same_bits_alone_and_among_others(texts, data):
    several = encoder().encode_texts(texts)
    index = data.draw(st.integers(0, len(texts) - 1))
    assert np.isfinite(several).all()
    np.testing.assert_array_equal(encoder().encode_texts([texts[index]])[0], several[index])


def test_a_picture_has_the_same_bits_alone_and_among_others():
    pictures = [picture(seed, size=(10 + seed, 300)) for seed in range(4)]
    several = encoder().encode_images(pictures)
    for row, one in zip(several, pictures, strict=True):
        np.testing.assert_array_equal(encoder().encode_images([one])[0], row)


def test_ngrams_have_norm_one_and_surface_features_are_bounded():
    vector = encoder().encode_texts(["Which of these? " * 80])[0]
    assert np.linalg.norm(vector[: 2 * 12]) == pytest.approx(1, abs=1e-5)
    assert np.abs(vector[2 * 12 :]).max() <= 4 / np.sqrt(len(SURFACE_NAMES)) + 1e-6


def test_an_empty_text_has_no_ngrams():
    np.testing.assert_array_equal(encoder().encode_texts([""])[0, : 2 * 12], 0)


def test_clipping_keeps_a_quarter_from_the_start_and_the_rest_from_the_end():
    text = "".join(chr(ord("a") + i) for i in range(20))
    assert clip_text(text, max_chars=8) == "ab" + "opqrst"
    assert clip_text(text, max_chars=20) == text


def test_views_are_the_whole_and_its_end():
    assert text_views("short", max_chars=2000) == ("short", "short")
    whole, tail = text_views("x" * 3000 + "end", max_chars=2000)
    assert (len(whole), len(tail)) == (2000, TAIL_CHARS)
    assert tail.endswith("xend")


def test_a_question_after_a_long_preamble_changes_the_vector():
    one, other, again = encoder().encode_texts(
        [
            PREAMBLE + "Question: what is the boiling point of mercury in kelvin?",
            PREAMBLE + "Question: write a function that reverses a linked list.",
            PREAMBLE + "Question: what is the boiling point of mercury in kelvin?",
        ]
    )
    np.testing.assert_array_equal(one, again)
    tail = slice(12, 24)  # the end on its own
    cosine = one[tail] @ other[tail] / np.linalg.norm(one[tail]) / np.linalg.norm(other[tail])
    assert cosine < 0.9
    assert np.linalg.norm(one - other) > 0.3


def test_a_short_text_is_its_own_end():
    vector = encoder().encode_texts(["just this"])[0]
    np.testing.assert_array_equal(vector[:12], vector[12:24])


def test_words_and_characters_weigh_the_same():
    buckets = np.array([0, 3, 4, 5, 6, 7])
    weights = weighted_ngrams(
        buckets, np.array([3, 4, 1, 1, 1, 1], np.float32), idf=np.ones(8, np.float32)
    )
    np.testing.assert_allclose(weights, [0.6, 0.8, 0.5, 0.5, 0.5, 0.5], rtol=1e-6)


def test_rare_buckets_weigh_more():
    idf = np.array([1, 2, 1, 1], np.float32)
    weights = weighted_ngrams(np.array([0, 1]), np.ones(2, np.float32), idf=idf)
    np.testing.assert_allclose(weights[1] / weights[0], 2, rtol=1e-6)


def test_zero_gains_make_every_picture_zero():
    state = some_state()
    silent = {name: np.zeros_like(state[name]) for name in ("pixel_gain", "thumbnail_projection")}
    np.testing.assert_array_equal(encoder(**silent).encode_images([picture()]), 0)


def test_a_damaged_picture_is_a_query_error():
    with pytest.raises(QueryError):
        encoder().encode_images([Image(b"\x89PNG\r\n\x1a\n", "image/png")])


def test_the_fingerprint_is_that_of_spec_and_state():
    same = encoder().fingerprint
    assert len(same) == 64
    assert encoder().fingerprint == same
    assert encoder(SPEC.model_copy(update={"max_chars": 3000})).fingerprint != same
    for name, array in some_state().items():
        changed = array.copy()
        changed.flat[0] += 1
        assert encoder(**{name: changed}).fingerprint != same, name


def test_the_state_makes_the_same_encoder_again():
    first = encoder()
    second = EmbeddedEncoder(SPEC, first.state)
    assert second.fingerprint == first.fingerprint
    np.testing.assert_array_equal(second.encode_texts(["a b c"]), first.encode_texts(["a b c"]))


def test_changing_the_returned_or_given_arrays_changes_nothing():
    given_state = some_state()
    built = EmbeddedEncoder(SPEC, given_state)
    before = built.encode_texts(["a b c"])
    given_state["idf"][:] = 9
    with pytest.raises(ValueError, match="read-only"):
        built.state["idf"][:] = 9
    np.testing.assert_array_equal(built.encode_texts(["a b c"]), before)


@pytest.mark.parametrize("name", sorted(state_layout(SPEC)))
def test_a_state_without_an_array_is_refused_by_name(name):
    state = some_state()
    del state[name]
    with pytest.raises(EncoderError, match=f"lacks the array '{name}'"):
        EmbeddedEncoder(SPEC, state)


@pytest.mark.parametrize("name", sorted(state_layout(SPEC)))
def test_a_state_of_another_shape_or_dtype_is_refused_by_name(name):
    for wrong in (some_state()[name][:-1], some_state()[name].astype(np.float64)):
        with pytest.raises(EncoderError, match=f"array '{name}' is"):
            encoder(**{name: wrong})


def test_an_unknown_or_infinite_array_is_refused_by_name():
    with pytest.raises(EncoderError, match="unknown array 'vocabulary'"):
        encoder(vocabulary=np.zeros(3))
    idf = some_state()["idf"]
    idf[5] = np.nan
    with pytest.raises(EncoderError, match="'idf' holds values that are not finite"):
        encoder(idf=idf)


def test_a_repeated_picture_is_decoded_once(monkeypatch):
    from router_runtime.prediction.encoders import embedded

    made, pictures = encoder(), [picture(seed) for seed in range(3)]
    expected = made.encode_images([*pictures, *pictures])
    calls = []
    real = embedded.describe_picture
    monkeypatch.setattr(
        embedded, "describe_picture", lambda *a, **k: (calls.append(1), real(*a, **k))[1]
    )
    np.testing.assert_array_equal(made.encode_images([*pictures, *pictures]), expected)
    np.testing.assert_array_equal(expected[:3], expected[3:])
    assert len(calls) == 3
