from __future__ import annotations

import json
from decimal import Decimal

import pytest

from router_training.labelling.answer_store import AnswerStore
from router_training.labelling.estimate import ASSUMED_OUTPUT_TOKENS, ENOUGH, estimate
from router_training.labelling.spending import IMAGE_TOKENS
from router_training.labelling.walk import collect, kept_samples, label


def estimated(config, **options):
    samples = kept_samples(config)
    with AnswerStore.read(config.work_dir) as store:
        return estimate(config, samples, store, **options)


def named(found):
    return {model.model_id: model for model in found.models}


@pytest.fixture
def questions(site):
    """The config's content for three questions of 40 characters, one without an answer."""
    rows = [{"idx": at, "prompt": str(at) * 40, "answer": "7"} for at in range(2)]
    rows.append({"idx": 2, "prompt": "2" * 40})
    (site.folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return site.content() | {"data": {"path": "rows.jsonl"}}


def test_nothing_is_asked_and_figures_follow_from_characters_and_max_tokens(site, questions):
    found = estimated(site.config(questions), judging=False)
    sees = named(found)["sees"]
    assert (sees.calls, sees.kept, sees.ineligible) == (3, 0, 0)
    per_call = 40 / 4 + 8  # a token for four characters, and the turn
    assert sees.input_tokens == 3 * per_call
    assert (sees.output_tokens, sees.output_basis) == (3 * 200, "max_tokens")
    assert sees.cost_usd == (Decimal(54) * 3 + Decimal(600) * 12) / 10**6
    assert sum(site.ledger()[0].values()) == 0


def test_a_length_that_nothing_limits_is_assumed_and_a_price_that_is_missing_is_told(
    site, questions
):
    questions["ask"] = {}
    del questions["candidates"][1]["price"]
    found = estimated(site.config(questions))
    sees, judge = named(found)["sees"], named(found)["judge"]
    assert sees.output_tokens == 3 * ASSUMED_OUTPUT_TOKENS["candidate"]
    assert sees.output_basis == "assumed"
    assert judge.output_tokens == judge.calls * ASSUMED_OUTPUT_TOKENS["judge"]
    assert named(found)["reads"].cost_usd is None
    assert found.unpriced == ("reads",)
    assert found.cost_usd == sees.cost_usd + judge.cost_usd


def test_each_answer_with_a_reference_is_expected_at_every_judge_and_repeat(site, questions):
    questions["judge"]["repeats"] = 3
    found = estimated(site.config(questions))
    assert named(found)["judge"].calls == 2 * 2 * 3  # samples with an answer, candidates, repeats


def test_comparing_takes_both_orders_and_not_the_baseline(site, questions):
    questions["judge"] |= {"rubric": "pairwise", "baseline": "reads"}
    found = estimated(site.config(questions))
    assert named(found)["judge"].calls == 3 * 2


def test_what_no_judge_decides_costs_no_judge(site, questions):
    questions["scoring"] = {"scorers": {"same": "exact"}, "default": ["same"]}
    assert named(estimated(site.config(questions)))["judge"].calls == 0


def test_pictures_count_and_those_who_cannot_see_are_not_asked(site):
    found = estimated(site.config())
    sees, reads = named(found)["sees"], named(found)["reads"]
    assert (sees.calls, sees.ineligible) == (30, 0)
    assert reads.calls + reads.ineligible == 30 and reads.ineligible > 0
    assert sees.input_tokens > reads.ineligible * IMAGE_TOKENS


def test_what_is_kept_costs_nothing_and_tells_how_long_the_next_answers_are(site):
    collect(site.config())
    found = estimated(site.config())
    assert {named(found)[name].calls for name in ("sees", "reads")} == {0}
    assert named(found)["sees"].kept == 30 >= ENOUGH
    other = site.content()
    other["ask"]["system"] = "Be brief."
    again = named(estimated(site.config(other)))["sees"]
    assert (again.calls, again.output_basis) == (30, "observed")
    assert 0 < again.output_tokens < 30 * 200


def test_a_finished_run_has_nothing_left_and_says_what_was_spent(site):
    done = label(site.config())
    found = estimated(site.config())
    assert found.calls == 0 and found.cost_usd == 0
    assert found.spent_usd == done.total_usd
    assert named(found)["judge"].kept == done.asked.judged.by["judge"]


def test_judges_alone_have_only_the_answers_that_are_there(site):
    assert estimated(site.config(), collecting=False).calls == 0
    collect(site.config())
    found = estimated(site.config(), collecting=False)
    assert [model.model_id for model in found.models] == ["judge"]
    scored_alike = label(site.config()).asked.judged.by["same"]
    answers = sum(1 for _ in range(30)) + named(estimated(site.config()))["reads"].kept
    assert named(found)["judge"].calls == answers - scored_alike


def test_json_has_dollars_as_exact_text(site, questions):
    content = json.loads(json.dumps(estimated(site.config(questions)).to_json()))
    assert Decimal(content["models"][0]["cost_usd"]) > 0
    assert content["calls"] == sum(model["calls"] for model in content["models"])
