from __future__ import annotations

import base64
import io

import numpy as np
import PIL.Image

from router_runtime.images import load_image
from router_runtime.types import Image, Query
from router_training import report_examples
from router_training.evaluate import Regret
from router_training.report_examples import MAX_CHARS, MAX_SIDE, examples_of, excerpt
from router_training.samples import Sample
from router_training.thumbnails import thumbnail


def regret(**fields):
    values = {
        "row": 0,
        "regret": 1.0,
        "chosen": "small",
        "best": "large",
        "chosen_probability": 0.91,
        "best_probability": 0.624,
        "chosen_expected_cost": 0.001,
        "best_expected_cost": 0.002,
        "chosen_cost": 0.0012,
        "best_cost": float("nan"),
        "novelty": None,
    }
    return Regret(**{**values, **fields})


def sample(prompt="What?", images=(), dataset="mmlu"):
    return Sample("7", Query(prompt, tuple(images)), None, "g", dataset, prompt)


def noise(side=600, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)
    return load_image(PIL.Image.fromarray(pixels))


def decoded(picture):
    return PIL.Image.open(io.BytesIO(base64.b64decode(picture.uri.split(",", 1)[1])))


def test_a_long_prompt_is_cut_and_the_rest_counted():
    assert excerpt("short") == ("short", "")
    text, note = excerpt("x" * (MAX_CHARS + 1234))
    assert text == "x" * MAX_CHARS + "…"
    assert note == "1,234 more characters are not shown."


def test_a_picture_is_encoded_anew_and_small():
    picture = thumbnail(noise(), max_side=MAX_SIDE)
    assert (picture.width, picture.height) == decoded(picture).size == (240, 240)
    assert picture.uri.startswith("data:image/jpeg;base64,")  # noise is smaller as JPEG
    flat = thumbnail(load_image(PIL.Image.new("RGB", (480, 120), "white")), max_side=MAX_SIDE)
    assert flat.uri.startswith("data:image/png;base64,")
    assert (flat.width, flat.height) == (240, 60)


def test_a_damaged_picture_is_told_and_not_shown():
    whole = noise(64)
    broken = Image(whole.data[: len(whole.data) // 2], whole.media_type)
    (example,) = examples_of([regret()], [sample(images=[broken])])
    assert example.pictures == ()
    assert example.notes == ("Damaged pictures that cannot be shown: 1.",)


def test_pictures_of_one_prompt_and_of_the_page_are_limited(monkeypatch):
    pictures = [noise(64, seed) for seed in range(6)]
    (example,) = examples_of([regret()], [sample(images=pictures)])
    assert len(example.pictures) == 4
    assert example.notes == ("Pictures left out for want of room: 2.",)
    size = len(example.pictures[0].uri)
    monkeypatch.setattr(report_examples, "MAX_PICTURE_BYTES", int(1.5 * size))
    first, second = examples_of([regret(), regret()], [sample(images=pictures[:1])])
    assert (len(first.pictures), len(second.pictures)) == (1, 0)
    assert second.notes == ("Pictures left out for want of room: 1.",)


def test_facts_tell_choice_and_alternative():
    (example,) = examples_of([regret(row=1, novelty=0.5)], [sample(), sample("Which?")])
    assert example.title == "Record 7"
    assert example.prompt == "Which?"
    assert example.facts == {
        "lost": "1.00 of a score",
        "chosen": "small (probability 0.91, 1.2 USD per 1,000 calls)",
        "better": "large (probability 0.62)",
        "data set": "mmlu",
        "novelty": "0.50",
    }
