from __future__ import annotations

import json

import pytest

from router_runtime.errors import DataError, QueryError, RouterError
from router_training.sequence import batches
from router_training.sequence.batches import route_file


class Parrot:
    """Answers with the first letter; counts what it is asked, and fails on request."""

    def __init__(self, *, fails_after=None):
        self.model_mappings = {"a": "model-a", "b": "b"}
        self.asked = []
        self._fails_after = fails_after

    def route_batch(self, queries):
        if self._fails_after is not None and len(self.asked) >= self._fails_after:
            raise KeyboardInterrupt
        self.asked += queries
        return [{"category": query[0], "confidence": 0.5} for query in queries]


def quiet(done, total):
    pass


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "_CHUNK", 4)
    path = tmp_path / "queries.jsonl"
    rows = [{"query": f"{'ab'[at % 2]} {at}", "other": at} for at in range(10)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_row_is_answered_in_order(source, tmp_path):
    done = route_file(Parrot(), source, tmp_path / "out.jsonl", progress=quiet)
    assert (done.rows, done.resumed) == (10, 0)
    told = lines(tmp_path / "out.jsonl")
    assert [row["row"] for row in told] == list(range(1, 11))
    assert [row["category"] for row in told] == ["a", "b"] * 5
    assert told[0]["model"] == "model-a" and "model" not in told[1]
    assert "query" not in told[0]  # only its digest is copied


def test_an_interrupted_batch_continues_and_asks_nothing_twice(source, tmp_path):
    target = tmp_path / "out.jsonl"
    first = Parrot(fails_after=4)
    with pytest.raises(KeyboardInterrupt):
        route_file(first, source, target, progress=quiet)
    whole = target.read_bytes()
    target.write_bytes(whole + whole[:20])  # a line that was cut off
    second = Parrot()
    done = route_file(second, source, target, progress=quiet)
    assert (done.rows, done.resumed) == (10, 4)
    assert len(second.asked) == 6
    route_file(Parrot(), source, tmp_path / "whole.jsonl", progress=quiet)
    assert target.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_finished_batch_asks_nothing(source, tmp_path):
    route_file(Parrot(), source, tmp_path / "out.jsonl", progress=quiet)
    again = Parrot()
    assert route_file(again, source, tmp_path / "out.jsonl", progress=quiet).resumed == 10
    assert again.asked == []


@pytest.mark.parametrize("line", ["precious notes\n", '{"query_sha256": "0"}\n', "[]\n"])
def test_an_output_of_something_else_is_not_continued(source, tmp_path, line):
    target = tmp_path / "out.jsonl"
    target.write_text(line)
    with pytest.raises(DataError, match="Line 1 is not the answer"):
        route_file(Parrot(), source, target, progress=quiet)
    assert target.read_text() == line


def test_an_output_with_more_rows_than_the_input_is_refused(source, tmp_path):
    target = tmp_path / "out.jsonl"
    route_file(Parrot(), source, target, progress=quiet)
    source.write_text("".join(source.read_text().splitlines(keepends=True)[:3]))
    with pytest.raises(DataError, match="Line 4"):
        route_file(Parrot(), source, target, progress=quiet)


@pytest.mark.parametrize(
    ("bad", "message"),
    [("{", "no JSON"), ('{"text": "x"}', "must be"), ('{"query": " "}', "must be"), ("3", "must")],
)
def test_a_bad_row_is_named_and_nothing_is_written_for_it(source, tmp_path, bad, message):
    rows = source.read_text().splitlines()
    source.write_text("\n".join([*rows[:5], "", bad, *rows[6:]]) + "\n")
    with pytest.raises(DataError, match=message) as caught:
        route_file(Parrot(), source, tmp_path / "out.jsonl", progress=quiet)
    assert caught.value.row == 6
    assert not (tmp_path / "out.jsonl").exists()  # the input is looked through first


def test_plain_texts_are_rows_too(tmp_path):
    (tmp_path / "in.jsonl").write_text('"a one"\n\n"b two"\n')
    route_file(Parrot(), tmp_path / "in.jsonl", tmp_path / "out.jsonl", progress=quiet)
    assert [row["category"] for row in lines(tmp_path / "out.jsonl")] == ["a", "b"]


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(RouterError, match="nowhere"):
        route_file(Parrot(), tmp_path / "nowhere", tmp_path / "out", progress=quiet)


def test_a_real_router_answers_a_file_as_it_answers_texts(router_model, files, tmp_path):
    from router_runtime.router_inference import RouterInference

    router = RouterInference.from_pretrained(router_model[0], device="cpu")
    route_file(router, files / "test.jsonl", tmp_path / "out.jsonl", progress=quiet)
    texts = [json.loads(line)["query"] for line in (files / "test.jsonl").read_text().splitlines()]
    told = lines(tmp_path / "out.jsonl")
    assert [row["category"] for row in told] == [
        found["category"] for found in router.route_batch(texts)
    ]
    with pytest.raises(QueryError, match="a list of texts"):
        router.route_batch("one text")
    assert router.route_batch([]) == []
