from __future__ import annotations

import asyncio
import hashlib
import io
import threading

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_runtime import ModelRouter
from router_runtime.errors import EncoderError, RequestError
from router_runtime.prediction.features import EmbeddingGenerator
from router_runtime.service.predictions import Predictions, content_key
from router_runtime.service_config import BatchingConfig
from router_runtime.types import Image, Query, Requirements


@pytest.fixture(scope="module")
def router(trained):
    return ModelRouter(trained[0].output)


@pytest.fixture
def encoded(monkeypatch):
    """The queries of each call of the encoder."""
    calls: list[list[Query]] = []
    encode = EmbeddingGenerator.encode

    def counting(self, queries, **more):
        calls.append(list(queries))
        return encode(self, queries, **more)

    monkeypatch.setattr(EmbeddingGenerator, "encode", counting)
    return calls


def picture(colour="red") -> Image:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (40, 30), colour).save(buffer, "PNG")
    return Image(buffer.getvalue(), "image/png")


def predictions(router, **config) -> Predictions:
    return Predictions(router, BatchingConfig(**config))


def test_what_is_predicted_is_what_the_router_predicts(router):
    queries = [Query("What is 17 + 25?"), Query("What is shown?", (picture(),))]

    async def walk():
        made = predictions(router)
        found = await asyncio.gather(*(made.of(query) for query in queries))
        made.close()
        return found

    for query, (predicted, cached) in zip(queries, asyncio.run(walk()), strict=True):
        X = router.predictor.features.encode([query])
        expected = router.predict_features(X)
        assert not cached
        np.testing.assert_array_equal(predicted.found.P, expected.P)
        np.testing.assert_array_equal(predicted.found.novelty, expected.novelty)
        assert predicted.features_sha256 == hashlib.sha256(X[0].tobytes()).hexdigest()


def test_equal_content_is_encoded_once_whatever_it_needs(router, encoded):
    plain = Query("What is 17 + 25?")
    demanding = Query("What is 17 + 25?", requirements=Requirements(tools=True))

    async def walk():
        made = predictions(router)
        assert not (await made.of(plain))[1]
        found, cached = await made.of(demanding)
        assert cached
        assert found == (await made.of(plain))[0]
        made.close()

    asyncio.run(walk())
    assert len(encoded) == 1


def test_a_longer_conversation_around_the_same_text_is_other_content(router, encoded):
    async def walk():
        made = predictions(router)
        await made.of(Query("Why?", prompt_chars=4))
        assert not (await made.of(Query("Why?", prompt_chars=5000)))[1]
        made.close()

    asyncio.run(walk())
    assert len(encoded) == 2


def test_equal_content_in_flight_is_encoded_once_even_without_a_cache(router, encoded):
    async def walk():
        made = predictions(router, cache_entries=0)
        await asyncio.gather(*(made.of(Query("the same")) for _ in range(8)))
        await made.of(Query("the same"))
        assert len(made) == 0
        made.close()

    asyncio.run(walk())
    assert [len(call) for call in encoded] == [1, 1]


def test_the_least_recently_used_is_forgotten(router, encoded):
    async def walk():
        made = predictions(router, cache_entries=2)
        for text in ("a", "b", "a", "c"):
            await made.of(Query(text))
        assert len(made) == 2
        assert (await made.of(Query("a")))[1]
        assert not (await made.of(Query("b")))[1]
        made.close()

    asyncio.run(walk())


def test_a_request_that_leaves_does_not_take_the_work_from_another(router):
    async def walk():
        made = predictions(router)
        leaving = asyncio.ensure_future(made.of(Query("shared")))
        staying = asyncio.ensure_future(made.of(Query("shared")))
        await asyncio.sleep(0)
        leaving.cancel()
        assert (await staying)[0].found.P.shape == (1, 4)
        with pytest.raises(asyncio.CancelledError):
            await leaving
        made.close()

    asyncio.run(walk())


def test_work_that_all_have_left_is_dropped_and_can_be_asked_for_anew(router, monkeypatch):
    seen, may_end = [], threading.Event()
    encode = EmbeddingGenerator.encode

    def held(self, queries, **more):
        seen.append([query.text for query in queries])
        assert may_end.wait(10)
        return encode(self, queries, **more)

    monkeypatch.setattr(EmbeddingGenerator, "encode", held)

    async def walk():
        made = predictions(router)
        first = asyncio.ensure_future(made.of(Query("first")))
        while not seen:
            await asyncio.sleep(0.001)
        leaving = asyncio.ensure_future(made.of(Query("left")))
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        assert made.queued == {"text": 0, "image": 0}
        again = asyncio.ensure_future(made.of(Query("left")))
        await asyncio.sleep(0)
        may_end.set()
        await asyncio.gather(first, again)
        made.close()

    asyncio.run(walk())
    assert seen == [["first"], ["left"]]


def test_a_text_does_not_wait_behind_pictures(router, monkeypatch):
    began, may_end = threading.Event(), threading.Event()
    encode = EmbeddingGenerator.encode

    def held(self, queries, **more):
        if queries[0].images:
            began.set()
            assert may_end.wait(10)
        return encode(self, queries, **more)

    monkeypatch.setattr(EmbeddingGenerator, "encode", held)

    async def walk():
        told = []
        made = Predictions(router, BatchingConfig(), watch=lambda *batch: told.append(batch))
        seeing = asyncio.ensure_future(made.of(Query("What is shown?", (picture(),))))
        await asyncio.to_thread(began.wait)
        await made.of(Query("What is 17 + 25?"))
        assert not seeing.done()
        may_end.set()
        await seeing
        made.close()
        return told

    told = asyncio.run(walk())
    assert [batch[:2] for batch in told] == [("text", 1), ("image", 1)]
    assert all(waited_s >= 0 and seconds > 0 for *_, waited_s, seconds in told)


def test_encoders_that_pytorch_runs_share_one_queue(router, monkeypatch):
    monkeypatch.setattr(type(router.artifact.parts), "encoders", ("clip", "embedded"))
    made = predictions(router)
    assert made.queued == {"all": 0}
    made.close()


def test_a_failure_is_told_to_all_who_wait_and_not_remembered(router, monkeypatch):
    encode = EmbeddingGenerator.encode

    def failing(self, queries, **more):
        raise EncoderError("no server")

    async def walk():
        made = predictions(router)
        monkeypatch.setattr(EmbeddingGenerator, "encode", failing)
        found = await asyncio.gather(
            *(made.of(Query("x")) for _ in range(3)), return_exceptions=True
        )
        assert [type(error) for error in found] == [EncoderError] * 3
        monkeypatch.setattr(EmbeddingGenerator, "encode", encode)
        assert not (await made.of(Query("x")))[1]
        made.close()
        with pytest.raises(RequestError):
            await made.of(Query("x"))

    asyncio.run(walk())


def test_large_pictures_are_hashed_too(router):
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(noise).save(buffer, "PNG")
    assert len(buffer.getvalue()) > 256 * 1024

    async def walk():
        made = predictions(router)
        for expected in (False, True):
            query = Query("", (Image(buffer.getvalue(), "image/png"),))
            assert (await made.of(query))[1] is expected
        made.close()

    asyncio.run(walk())


_QUERIES = st.builds(
    Query,
    st.text(max_size=4),
    st.lists(st.binary(max_size=2).map(lambda data: Image(data, "image/png")), max_size=2).map(
        tuple
    ),
    prompt_chars=st.integers(0, 3),
)


@given(one=_QUERIES, other=_QUERIES)
def test_keys_are_equal_exactly_where_content_is(one, other):
    def content(query):
        return query.text, [image.data for image in query.images], query.total_chars

    assert (content_key(one) == content_key(other)) == (content(one) == content(other))
