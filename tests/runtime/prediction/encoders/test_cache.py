import logging
import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router_runtime.errors import EncoderError
from router_runtime.prediction.encoders.cache import CachedEncoder
from router_runtime.types import Image

FINGERPRINT = "ab" * 32


class Counting:
    """A real if modest encoder, of lengths and sums of bytes, that remembers what it was asked."""

    kind = "counting"
    text_dim = 2
    image_dim = 3

    def __init__(self, fingerprint=FINGERPRINT, fail_after=None):
        self.fingerprint = fingerprint
        self.fail_after = fail_after
        self.texts = []
        self.images = []

    def encode_texts(self, texts):
        if self.fail_after is not None and len(self.texts) >= self.fail_after:
            raise KeyboardInterrupt
        self.texts.extend(texts)
        return np.array(
            [[len(t), sum(t.encode("utf-8", "replace"))] for t in texts], dtype=np.float32
        ).reshape(-1, 2)

    def encode_images(self, images):
        self.images.extend(images)
        rows = [[len(i.data), sum(i.data), 0.1] for i in images]
        return np.array(rows, dtype=np.float32).reshape(-1, 3)


def cached(folder, encoder=None, **options):
    encoder = encoder or Counting()
    return encoder, CachedEncoder(encoder, folder, **options)


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_it_looks_like_the_encoder_that_it_wraps(tmp_path):
    encoder, cache = cached(tmp_path)
    for name in ("kind", "text_dim", "image_dim", "fingerprint"):
        assert getattr(cache, name) == getattr(encoder, name)


def test_only_what_is_new_is_encoded(tmp_path):
    encoder, cache = cached(tmp_path)
    first = cache.encode_texts(["a", "bb", "a", "", "\ud83d", "naïve 日本"])
    assert encoder.texts == ["a", "bb", "", "\ud83d", "naïve 日本"]
    encoder, cache = cached(tmp_path)
    second = cache.encode_texts(["naïve 日本", "a", "new", "\ud83d"])
    assert encoder.texts == ["new"]
    assert np.array_equal(second[[0, 1, 3]], first[[5, 0, 4]])
    assert second.dtype == np.float32


def test_pictures_are_told_apart_by_content(tmp_path):
    encoder, cache = cached(tmp_path)
    one, other = Image(b"one", "image/png"), Image(b"other", "image/png")
    rows = cache.encode_images([one, other, Image(b"one", "image/png")])
    assert encoder.images == [one, other]
    assert np.array_equal(rows[0], rows[2])
    assert np.array_equal(cache.encode_images([other, one]), rows[[1, 0]])
    assert len(encoder.images) == 2


@given(st.lists(st.text(max_size=3), max_size=30), st.integers(1, 9))
@settings(deadline=None, max_examples=25)
def test_the_cache_never_changes_a_vector(tmp_path_factory, texts, batch_size):
    encoder, cache = cached(tmp_path_factory.mktemp("cache"), batch_size=batch_size)
    expected = Counting().encode_texts(texts)
    assert np.array_equal(cache.encode_texts(texts), expected)
    assert np.array_equal(cache.encode_texts(texts[::-1]), expected[::-1])
    assert len(encoder.texts) == len(set(texts))


def test_encoders_and_halves_do_not_meet(tmp_path):
    cached(tmp_path)[1].encode_texts(["a"])
    cached(tmp_path)[1].encode_images([Image(b"a", "image/png")])
    other, cache = cached(tmp_path, Counting("cd" * 32))
    cache.encode_texts(["a"])
    assert other.texts == ["a"]
    assert files(tmp_path) == [
        f"{FINGERPRINT}-image.sqlite",
        f"{FINGERPRINT}-text.sqlite",
        f"{'cd' * 32}-text.sqlite",
    ]


def test_an_absent_half_is_not_kept(tmp_path):
    encoder = Counting()
    encoder.image_dim = 0
    done = []
    _, cache = cached(tmp_path, encoder, on_batch=done.append)
    assert cache.encode_images([Image(b"a", "image/png")] * 2).shape == (2, 0)
    assert (encoder.images, files(tmp_path), done) == ([], [], [2])


def test_neither_texts_nor_pictures_are_on_disk(tmp_path):
    _, cache = cached(tmp_path)
    cache.encode_texts(["canary text " * 3])
    cache.encode_images([Image(b"canary picture", "image/png")])
    for path in tmp_path.iterdir():
        assert b"canary" not in path.read_bytes()


def test_on_batch_hears_of_every_input_once(tmp_path):
    done = []
    _, cache = cached(tmp_path, batch_size=2, on_batch=done.append)
    cache.encode_texts(["a", "b", "a", "c"])
    assert done == [3, 1]
    done.clear()
    cache.encode_texts(["a", "d", "c", "c"])
    assert done == [3, 1]
    done.clear()
    cache.encode_texts([])
    assert done == []


def test_an_interrupted_run_goes_on_where_it_was(tmp_path):
    texts = [str(i) for i in range(10)]
    first, cache = cached(tmp_path, Counting(fail_after=6), batch_size=3)
    with pytest.raises(KeyboardInterrupt):
        cache.encode_texts(texts)
    second, cache = cached(tmp_path, batch_size=3)
    assert np.array_equal(cache.encode_texts(texts), Counting().encode_texts(texts))
    assert first.texts + second.texts == texts


CHILD = """
import sys, time
import numpy as np
from router_runtime.prediction.encoders.cache import CachedEncoder

class Slow:
    kind, text_dim, image_dim, fingerprint = "slow", 256, 0, "ef" * 32
    def encode_texts(self, texts):
        time.sleep(float(sys.argv[2]))
        return np.array([[float(t)] * 256 for t in texts], dtype=np.float32)

def tell(count):
    print(count, flush=True)

start = int(sys.argv[3])
texts = [str(i) for i in range(start, start + 400)]
rows = CachedEncoder(Slow(), sys.argv[1], batch_size=10, on_batch=tell).encode_texts(texts)
assert rows[:, 0].tolist() == [float(t) for t in texts]
"""


def child(folder, *, pause_s, start=0):
    return subprocess.Popen(  # noqa: S603 - our own interpreter, our own program
        [sys.executable, "-c", CHILD, str(folder), str(pause_s), str(start)],
        stdout=subprocess.PIPE,
        text=True,
    )


def kept(folder):
    with sqlite3.connect(folder / f"{'ef' * 32}-text.sqlite") as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return db.execute("SELECT COUNT(*) FROM vectors").fetchone()[0]


def test_a_killed_process_loses_at_most_one_batch(tmp_path):
    process = child(tmp_path, pause_s=0.005)
    told = [process.stdout.readline() for _ in range(12)]
    process.send_signal(signal.SIGKILL)
    told += process.communicate()[0].split()
    assert sum(map(int, told)) <= kept(tmp_path) <= sum(map(int, told)) + 10
    assert 120 <= kept(tmp_path) < 400
    again = child(tmp_path, pause_s=0)
    out = again.communicate()[0].split()
    assert again.returncode == 0
    assert int(out[0]) >= 120
    assert kept(tmp_path) == 400


def test_processes_may_share_a_folder(tmp_path):
    processes = [child(tmp_path, pause_s=0.001, start=start) for start in (0, 0, 200)]
    assert [process.communicate()[0] and process.returncode for process in processes] == [0, 0, 0]
    assert kept(tmp_path) == 600


def test_threads_may_share_a_cache(tmp_path):
    _, cache = cached(tmp_path, batch_size=2)
    batches = [[str(i), str(i + 1), "same"] for i in range(30)]
    with ThreadPoolExecutor(6) as pool:
        for rows, batch in zip(pool.map(cache.encode_texts, batches), batches, strict=True):
            assert np.array_equal(rows, Counting().encode_texts(batch))


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE vectors SET vector = x'0000803f00000040' WHERE rowid = 1",
        "UPDATE vectors SET vector = x'00' WHERE rowid = 1",
        "UPDATE vectors SET checksum = checksum + 1 WHERE rowid = 1",
        "UPDATE vectors SET vector = (SELECT vector FROM vectors WHERE rowid = 2) WHERE rowid = 1",
    ],
)
def test_a_damaged_row_is_encoded_anew(tmp_path, damage, caplog):
    _, cache = cached(tmp_path)
    cache.encode_texts(["a", "bb", "ccc"])
    with sqlite3.connect(tmp_path / f"{FINGERPRINT}-text.sqlite") as db:
        db.execute(damage)
    encoder, cache = cached(tmp_path)
    expected = Counting().encode_texts(["a", "bb", "ccc"])
    assert np.array_equal(cache.encode_texts(["a", "bb", "ccc"]), expected)
    assert encoder.texts == ["a"]
    assert "1 damaged rows" in caplog.text
    encoder.texts.clear()
    assert np.array_equal(cache.encode_texts(["a", "bb", "ccc"]), expected)
    assert encoder.texts == []


@pytest.mark.parametrize("damage", ["text", "truncated", "flipped", "empty"])
def test_a_damaged_file_never_gives_a_wrong_vector(tmp_path, damage, caplog):
    caplog.set_level(logging.WARNING)
    texts = [str(i) for i in range(2000)]
    expected = Counting().encode_texts(texts)
    cached(tmp_path)[1].encode_texts(texts)
    path = tmp_path / f"{FINGERPRINT}-text.sqlite"
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        places = np.random.default_rng(0).integers(200, len(content), 300)
        for place in places:
            content[place] ^= 0xFF
    changed = {"text": b"not a database" * 99, "truncated": content[: len(content) // 2]}
    path.write_bytes(changed.get(damage, b"" if damage == "empty" else content))
    for _ in range(2):
        assert np.array_equal(cached(tmp_path)[1].encode_texts(texts), expected)
    encoder, cache = cached(tmp_path)
    cache.encode_texts(texts)
    assert encoder.texts == []


def test_a_folder_that_cannot_be_used_is_an_error_with_the_remedy(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EncoderError, match="another folder"):
        cached(tmp_path / "file" / "cache")
    (tmp_path / f"{FINGERPRINT}-text.sqlite").mkdir()
    with pytest.raises(EncoderError, match=r"cache file .* cannot be used"):
        cached(tmp_path)[1].encode_texts(["a"])
