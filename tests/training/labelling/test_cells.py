from __future__ import annotations

import asyncio

import pytest

from router_runtime.types import Image, Query
from router_runtime.yaml_config import validate
from router_training.labelling.calls import Outcome, Status
from router_training.labelling.cells import Cell, CellReader
from router_training.labelling.config import LabelConfig
from router_training.labelling.samples import LabelSample
from router_training.labelling.scoring import Scored
from router_training.samples import Sample

TARGET = {"kind": "vllm", "base_url": "http://127.0.0.1:9/v1"}


class Answers:
    """An asker that knows some answers by heart and remembers who was asked."""

    def __init__(self, **answers: str) -> None:
        self.answers = answers
        self.asked: list[str] = []

    async def ask(self, model_id, call, *, repeat=0):
        self.asked.append(model_id)
        text = self.answers.get(model_id)
        if text is None:
            return Outcome("key", model_id, Status.FAILED, reason="no answer in time")
        return Outcome("key", model_id, Status.ANSWERED, text=text)


def config() -> LabelConfig:
    content = {
        "data": {"path": "samples.jsonl"},
        "candidates": [
            {"id": "b", "target": TARGET, "modalities": ["text", "image"]},
            {"id": "a", "target": TARGET, "modalities": ["text"]},
        ],
        "scoring": {
            "scorers": {"match": {"kind": "exact", "decides": "both"}},
            "default": ["match"],
        },
    }
    return validate(LabelConfig, content, source="label.yml")


def sample(at=0, *, pictures=0) -> LabelSample:
    images = (Image(b"png", "image/png"),) * pictures
    return LabelSample(Sample(str(at), Query("q", images), "yes", "g", None, "q"))


def test_cells_are_in_the_configs_order_with_their_scores_or_reasons():
    (row,) = CellReader(config(), Answers(b="yes")).read([sample()])
    assert [cell.model_id for cell in row.cells] == ["b", "a"]
    assert (row.cells[0].score, row.cells[0].unscored, row.cells[0].answer) == (1.0, None, "yes")
    assert (row.cells[1].score, row.cells[1].answer) == (None, None)
    assert (row.cells[1].unscored, row.cells[1].kind) == ("failed: no answer in time", "failed")


def test_a_candidate_that_cannot_serve_is_not_even_looked_up():
    asker = Answers(a="yes", b="no")
    (row,) = CellReader(config(), asker).read([sample(pictures=1)])
    assert asker.asked == ["b"]
    assert (row.cells[1].outcome, row.cells[1].kind) == (None, "ineligible")
    assert row.cells[0].score == 0.0


def test_many_samples_come_in_order_and_one_at_a_time_inside_a_loop():
    reader = CellReader(config(), Answers(a="yes", b="yes"))
    names = [row.labelled.sample.id for row in reader.read(sample(at) for at in range(150))]
    assert names == [str(at) for at in range(150)]
    assert asyncio.run(reader.read_one(sample(7))).labelled.sample.id == "7"


def test_reading_stops_where_the_reader_stops():
    taken = []

    def endless():
        at = 0
        while True:
            taken.append(at)
            yield sample(at)
            at += 1

    rows = CellReader(config(), Answers(a="yes", b="yes")).read(endless())
    next(rows)
    rows.close()
    assert len(taken) < 200


@pytest.mark.parametrize(
    ("score", "verdict"), [(None, "none"), (0.0, "no"), (0.49, "no"), (0.5, "yes"), (1.0, "yes")]
)
def test_half_marks_count_as_yes(score, verdict):
    cell = Cell("m", None, Scored("m", score), None)
    assert cell.stratum == ("m", verdict)
