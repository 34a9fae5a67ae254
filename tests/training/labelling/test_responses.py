from __future__ import annotations

import asyncio
from collections import Counter
from decimal import Decimal

import pytest

from router_runtime.errors import DataError, TargetStatusError
from router_runtime.pricing import Usage
from router_runtime.targets.base import Completion
from router_runtime.targets.fake import FakeTarget
from router_runtime.types import Image, Query
from router_training.labelling.answer_store import AnswerStore
from router_training.labelling.calls import Outcome, Status
from router_training.labelling.config import AskConfig, LabelConfig
from router_training.labelling.progress import Unwatched
from router_training.labelling.responses import (
    StoredAsker,
    call_for,
    cell_state,
    collect,
    ineligible_reason,
    live_asker,
    models_of,
)
from router_training.labelling.samples import LabelSample
from router_training.samples import Sample

PICTURE = Image(b"not looked into", "image/png")


def label_sample(number, *, images=()):
    text = f"question {number}"
    query = Query(text, images=images)
    return LabelSample(Sample(str(number), query, None, str(number), None, text))


def label_config(*candidates, **changes):
    target = {"kind": "compatible", "base_url": "http://h/v1", "max_concurrency": 4}
    price = {"input_mtok": 1, "output_mtok": 10}
    return LabelConfig.model_validate(
        {
            "data": {"path": "x.jsonl"},
            "candidates": [
                {"id": name, "target": {**target, **own}, "price": price, **more}
                for name, own, more in candidates
            ],
            "scoring": {"scorers": {"e": "exact"}, "default": ["e"]},
            "ask": {"attempts": 1, "max_wait_s": 0.01},
            **changes,
        }
    )


def answer(text="yes"):
    return Completion("m", text, usage=Usage(100, 20), finish_reason="stop", seconds=0.1)


def collected(tmp_path, config, targets, samples, **options):
    async def main(store):
        async with live_asker(config, {t.model_id: t for t in targets}, store) as asker:
            return await collect(lambda: iter(samples), config, asker, **options)

    with AnswerStore.open(tmp_path, holder="test") as store:
        return asyncio.run(main(store))


class Totals(Unwatched):
    def __init__(self):
        self.totals, self.not_asked = {}, Counter()

    def started(self, model_id, total):
        self.totals[model_id] = total

    def ineligible(self, model_id):
        self.not_asked[model_id] += 1


def test_every_eligible_cell_is_asked_once_and_text_only_models_see_no_picture(tmp_path):
    config = label_config(("text", {}, {}), ("eyes", {}, {"modalities": ["text", "image"]}))
    text, eyes = FakeTarget("text", lambda _: answer()), FakeTarget("eyes", lambda _: answer())
    samples = [label_sample(n, images=(PICTURE,) * (n % 2)) for n in range(70)]
    watch = Totals()
    summary = collected(tmp_path, config, [text, eyes], samples, watch=watch, n_samples=70)
    assert (text.calls, eyes.calls) == (35, 70)
    told = summary.tallies["text"]
    assert (told.answered, told.ineligible, told.pending) == (35, 35, 0)
    assert told.reasons == {"ineligible: does_not_accept_image": 35}
    assert summary.tallies["eyes"].answered == 70
    assert summary.cost_usd == 105 * Decimal("0.0003")
    assert summary.pending == 0
    assert watch.totals == {"text": 70, "eyes": 70}
    assert watch.not_asked == {"text": 35}


def test_asking_again_asks_only_what_is_new(tmp_path):
    config = label_config(("m", {}, {}))
    target = FakeTarget("m", lambda _: answer())
    collected(tmp_path, config, [target], [label_sample(n) for n in range(20)])
    moved = [label_sample(n) for n in reversed(range(25))]
    assert collected(tmp_path, config, [target], moved).tallies["m"].answered == 25
    assert target.calls == 25


def test_a_slow_candidate_holds_no_other(tmp_path):
    config = label_config(("slow", {}, {}), ("fast", {}, {}))
    left_when_fast_was_done = []

    def quick(_):
        if fast.calls == 200:
            left_when_fast_was_done.append(slow.calls)
        return answer()

    slow, fast = FakeTarget("slow", lambda _: answer(), seconds=0.1), FakeTarget("fast", quick)
    samples = [label_sample(n) for n in range(200)]

    async def main(store):
        async with live_asker(config, {"slow": slow, "fast": fast}, store) as asker:
            task = asyncio.create_task(collect(lambda: iter(samples), config, asker))
            while not left_when_fast_was_done:
                await asyncio.sleep(0.01)
            task.cancel()

    with AnswerStore.open(tmp_path, holder="test") as store:
        asyncio.run(asyncio.wait_for(main(store), 10))
    assert left_when_fast_was_done[0] < 60


def test_calls_under_way_are_bounded_by_the_target_s_concurrency(tmp_path):
    config = label_config(("m", {"max_concurrency": 3}, {}))
    target = FakeTarget("m", lambda _: answer(), seconds=0.005)
    collected(tmp_path, config, [target], [label_sample(n) for n in range(40)])
    assert target.most_in_flight == 3


def test_what_has_no_answer_is_counted_with_its_reason(tmp_path):
    def answers(call):
        number = int(call.messages[-1]["content"].split()[-1])
        if number % 3 == 1:
            return TargetStatusError("HTTP 400", status=400, retryable=False)
        if number % 3 == 2:
            return TargetStatusError("HTTP 500", status=500, retryable=True)
        return "no usage"

    config = label_config(("m", {}, {}))
    samples = [label_sample(n) for n in range(30)]
    told = collected(tmp_path, config, [FakeTarget("m", answers)], samples).tallies["m"]
    assert (told.answered, told.refused, told.failed, told.unpriced) == (10, 10, 10, 10)
    assert told.reasons == {"refused: HTTP 400": 10, "failed: HTTP 500": 10}
    assert told.cost_usd == 0


def test_a_stopped_target_leaves_its_cells_pending(tmp_path):
    error = TargetStatusError("HTTP 401", status=401, retryable=False, whole_target=True)
    config = label_config(("m", {}, {}))
    target = FakeTarget("m", lambda _: error)
    summary = collected(tmp_path, config, [target], [label_sample(n) for n in range(30)])
    assert summary.pending == 30
    assert summary.tallies["m"].reasons == {"pending: target_stopped: HTTP 401": 30}
    assert target.calls <= 4


def test_a_sample_that_cannot_be_read_ends_it_with_that_error(tmp_path):
    def samples():
        yield label_sample(1)
        raise DataError("it is torn", file="part-00000.parquet")

    config = label_config(("a", {}, {}), ("b", {}, {}))
    targets = [FakeTarget("a", lambda _: answer()), FakeTarget("b", lambda _: answer())]
    with pytest.raises(DataError, match="it is torn"):
        collected(tmp_path, config, targets, samples())


def test_a_stored_asker_walks_the_same_cells(tmp_path):
    config = label_config(("m", {}, {}))
    samples = [label_sample(n) for n in range(5)]
    collected(tmp_path, config, [FakeTarget("m", lambda _: answer())], samples[:3])
    with AnswerStore.read(tmp_path) as store:
        asker = StoredAsker(store, models_of(config))
        summary = asyncio.run(collect(lambda: iter(samples), config, asker))
    assert (summary.tallies["m"].answered, summary.tallies["m"].pending) == (3, 2)


def test_a_call_has_system_prompt_and_parameters_the_target_s_own_first():
    [candidate] = label_config(
        ("m", {"parameters": {"temperature": 1, "top_p": 0.5}}, {})
    ).candidates
    ask = AskConfig(system="Be brief.", parameters={"temperature": 0, "max_tokens": 9})
    made = call_for(label_sample(7), candidate, ask)
    assert made.parameters == {"temperature": 1, "top_p": 0.5, "max_tokens": 9}
    assert made.messages == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "question 7"},
    )


@pytest.mark.parametrize(
    ("outcome", "state"),
    [
        (None, "pending: not_asked"),
        (Outcome("k", "m", Status.ANSWERED, text="yes"), None),
        (Outcome("k", "m", Status.REFUSED, reason="HTTP 400"), "refused: HTTP 400"),
        (Outcome("k", "m", Status.FAILED), "failed: unknown"),
        (Outcome("k", "m", Status.PENDING, reason="budget_reached"), "pending: budget_reached"),
    ],
)
def test_a_cell_without_an_answer_says_why(outcome, state):
    [candidate] = label_config(("m", {}, {})).candidates
    assert cell_state(label_sample(1), candidate, outcome) == state


def test_capability_comes_before_what_is_kept():
    [candidate] = label_config(("m", {}, {})).candidates
    shown = label_sample(1, images=(PICTURE,))
    assert ineligible_reason(shown, candidate) == "does_not_accept_image"
    assert ineligible_reason(label_sample(1), candidate) is None
    kept = Outcome("k", "m", Status.ANSWERED, text="a guess")
    assert cell_state(shown, candidate, kept) == "ineligible: does_not_accept_image"
