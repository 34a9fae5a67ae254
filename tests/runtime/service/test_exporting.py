"""Feedback becomes records that training reads."""

import asyncio
import base64
import io
import math

import PIL.Image
import pytest

from router_runtime.pricing import Usage
from router_runtime.service.exporting import export_feedback
from router_runtime.service.feedback import Feedbacks
from router_runtime.service.values import Attempt, Caller, Feedback
from router_training.labels import read_evaluations

NOON = 1_790_000_000.0


def picture():
    file = io.BytesIO()
    PIL.Image.new("RGB", (4, 4), "red").save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def asked(text, *parts):
    return ({"role": "user", "content": [{"type": "text", "text": text}, *parts]},)


@pytest.fixture
def store(opened, url):
    return opened(url, content=True)


def score(store, **scores):
    feedbacks = Feedbacks(store)
    for decision_id, value in scores.items():
        caller = Caller(str(store.decision_owner(decision_id)))
        asyncio.run(feedbacks.give(caller, Feedback(decision_id, value)))


def test_training_reads_the_served_models_score_and_nothing_of_the_others(
    store, make_event, tmp_path
):
    shown = {"type": "image_url", "image_url": {"url": picture()}}
    store.record(make_event("d1", messages=asked("What is 1 + 1?", shown), failed=("large",)))
    store.record(make_event("d2", messages=asked("Name a river."), model="large", at=NOON + 1))
    score(store, d1=1.0, d2=0.25)
    done = export_feedback(store.engine, tmp_path / "records.jsonl")
    assert (done.records, done.without_content, done.not_served) == (2, 0, 0)

    read = read_evaluations(tmp_path / "records.jsonl")
    assert [sample.id for sample in read.samples] == ["d1", "d2"]
    assert read.samples[0].query.text == "What is 1 + 1?"
    assert len(read.samples[0].query.images) == 1
    at = {model: n for n, model in enumerate(read.labels.model_ids)}
    Y = read.labels.Y
    assert (Y[0, at["small"]], Y[1, at["large"]]) == (1.0, 0.25)
    assert math.isnan(Y[0, at["large"]])
    assert math.isnan(Y[1, at["small"]])
    assert read.labels.cost_usd[0, at["small"]] == 0.01
    assert read.labels.input_tokens[0, at["small"]] == 100
    assert read.labels.seconds[0, at["small"]] == 0.5


def test_turns_of_one_conversation_are_one_group(store, make_event, tmp_path):
    for name in ("d1", "d2"):
        store.record(make_event(name, messages=asked(f"turn {name}")))
    score(store, d1=1.0, d2=1.0)
    export_feedback(store.engine, tmp_path / "records.jsonl")
    groups = {s.group for s in read_evaluations(tmp_path / "records.jsonl").samples}
    assert groups == {"session-1"}


def test_estimated_tokens_are_not_told_as_reported_ones(store, make_event, tmp_path):
    guessed = Attempt("small", None, 0.5, 0.2, Usage(100, 20), True)
    store.record(make_event("d1", messages=asked("hello"), attempts=(guessed,)))
    score(store, d1=1.0)
    export_feedback(store.engine, tmp_path / "records.jsonl")
    labels = read_evaluations(tmp_path / "records.jsonl").labels
    assert all(map(math.isnan, [*labels.input_tokens[0], *labels.cost_usd[0]]))


def test_what_has_no_messages_or_no_answer_is_left_out_and_counted(store, make_event, tmp_path):
    failed = (Attempt("small", "timeout", 1.0),)
    store.record(make_event("bare"))
    store.record(make_event("failed", messages=asked("x"), attempts=failed, status=502))
    store.record(make_event("vectors", endpoint="embeddings"))
    store.record(make_event("unjudged", messages=asked("x")))
    score(store, bare=1.0, failed=0.0, vectors=1.0)
    done = export_feedback(store.engine, tmp_path / "records.jsonl")
    assert (done.records, done.without_content, done.not_served) == (0, 1, 2)
    assert (tmp_path / "records.jsonl").read_bytes() == b""


def test_a_key_and_a_time_narrow_what_is_written(store, make_event, tmp_path):
    store.record(make_event("d1", messages=asked("a"), key_id="k1", at=NOON))
    store.record(make_event("d2", messages=asked("b"), key_id="k2", at=NOON + 10))
    score(store, d1=1.0, d2=1.0)
    output = tmp_path / "records.jsonl"
    assert export_feedback(store.engine, output, key_id="k1").records == 1
    assert b'"d1"' in output.read_bytes()
    assert export_feedback(store.engine, output, since=NOON + 5).records == 1
    assert b'"d2"' in output.read_bytes()


def test_users_words_are_readable_by_their_owner_only(store, tmp_path):
    export_feedback(store.engine, tmp_path / "records.jsonl")
    assert (tmp_path / "records.jsonl").stat().st_mode & 0o077 == 0
