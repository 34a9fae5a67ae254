from __future__ import annotations

import threading
from contextlib import closing
from io import BytesIO

import numpy as np
import PIL.Image
import pytest

from router_runtime.errors import EncoderError, QueryError
from router_runtime.images import OpenPicture, load_image
from router_runtime.prediction.encoders import pictures_ahead
from router_runtime.prediction.encoders.pictures_ahead import (
    decoders_beside,
    encode_pictures,
    map_ahead,
)


def pictures(n: int) -> list:
    return [load_image(PIL.Image.new("RGB", (4, 4), (i, 0, 0))) for i in range(n)]


def prepare(image) -> np.ndarray:
    return OpenPicture(image).pixels()[..., :3].astype(np.float32)


def redness(pixels) -> np.ndarray:
    return pixels[:, :1, 0, :1].reshape(len(pixels), 1)


@pytest.mark.parametrize("n", [0, 1, 2, 7, 40])
@pytest.mark.parametrize("threads", [1, 3, None])
def test_vectors_come_in_the_order_of_the_pictures(n, threads):
    found = encode_pictures(pictures(n), prepare, redness, dim=1, batch_size=4, threads=threads)
    np.testing.assert_array_equal(found, np.arange(n, dtype=np.float32)[:, None])


def test_equal_pictures_are_prepared_and_encoded_once():
    images = pictures(5)
    order = [3, 1, 1, 4, 3, 0, 2, 2, 4]
    prepared, batches = [], []

    def recorded(image):
        prepared.append(image.sha256)
        return prepare(image)

    def encode(pixels):
        batches.append(len(pixels))
        return redness(pixels)

    found = encode_pictures(
        [images[i] for i in order], recorded, encode, dim=1, batch_size=2, threads=2
    )
    assert found.ravel().tolist() == order
    assert len(prepared) == len(set(prepared)) == 5
    assert batches == [2, 2, 1]


def test_no_more_than_the_bound_is_read_ahead():
    read: list[int] = []

    def items():
        for i in range(100):
            read.append(i)
            yield i

    with closing(map_ahead(str, items(), threads=2, ahead=5)) as found:
        for taken in range(1, 31):
            assert next(found) == str(taken - 1)
            assert len(read) <= taken + 5 + 2


def test_pictures_are_prepared_while_others_are_encoded():
    images = pictures(8)
    prepared = threading.Semaphore(0)

    def recorded(image):
        found = prepare(image)
        prepared.release()
        return found

    def encode(pixels):
        for _ in range(4):  # as many again as this batch has, before it is done
            assert prepared.acquire(timeout=30)
        return redness(pixels)

    found = encode_pictures(images, recorded, encode, dim=1, batch_size=4, threads=2)
    assert len(found) == 8


def test_a_damaged_picture_ends_it_with_its_error_and_no_thread_stays():
    buffer = BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    PIL.Image.fromarray(noise).save(buffer, "PNG")
    damaged = load_image(buffer.getvalue()[:2000])
    with pytest.raises(QueryError):
        encode_pictures(
            [*pictures(9), damaged, *pictures(200)[9:]],
            prepare,
            redness,
            dim=1,
            batch_size=4,
            threads=2,
        )
    assert not [one for one in threading.enumerate() if one.name.startswith("ahead")]


@pytest.mark.parametrize("error", [KeyboardInterrupt, EncoderError])
def test_an_interrupt_while_encoding_ends_the_threads(error):
    def encode(pixels):
        raise error("stop")

    with pytest.raises(error):
        encode_pictures(pictures(50), prepare, encode, dim=1, batch_size=4, threads=3)
    assert not [one for one in threading.enumerate() if one.name.startswith("ahead")]


def test_one_picture_needs_no_thread():
    def here(image):
        assert threading.current_thread() is threading.main_thread()
        return prepare(image)

    assert encode_pictures(pictures(1), here, redness, dim=1, batch_size=4).shape == (1, 1)


def test_an_error_of_the_source_comes_after_the_items_before_it():
    def items():
        yield from range(3)
        raise ValueError("no more")

    with closing(map_ahead(str, items(), threads=2, ahead=10)) as found:
        assert [next(found), next(found), next(found)] == ["0", "1", "2"]
        with pytest.raises(ValueError, match="no more"):
            next(found)


@pytest.mark.parametrize(
    ("processors", "encoding", "decoding"),
    [(1, 1, 1), (2, 1, 1), (2, 2, 1), (8, 2, 6), (16, 16, 4), (64, 8, 16)],
)
def test_decoding_takes_the_processors_that_encoding_leaves(
    monkeypatch, processors, encoding, decoding
):
    monkeypatch.setattr(pictures_ahead, "processors", lambda: processors)
    assert decoders_beside(encoding) == decoding
