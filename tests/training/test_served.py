from __future__ import annotations

from collections import Counter

import pytest

from router_runtime import ModelRouter
from router_runtime.config import RuntimeConfig
from router_runtime.policy import Utility, WithFallback
from router_training.pipeline import Walk
from router_training.served import Served, read_records


@pytest.fixture(scope="module")
def test_rows(trained):
    walk = Walk(trained[0])
    return walk.data.take(walk.split.test)


def router_with(trained, **policy):
    content = {"artifact": trained[0].output, "policies": {"own": policy}}
    return ModelRouter.from_config(RuntimeConfig.model_validate(content))


FALLBACK = {"model": "sim-large-vl", "novelty_above": 0.5}


@pytest.mark.parametrize("fallback", [None, FALLBACK])
def test_the_evaluated_policy_is_the_served_one(trained, test_rows, monkeypatch, fallback):
    router = router_with(trained, kind="utility", lambda_per_usd=40.0, fallback=fallback)
    kind = Utility if fallback is None else WithFallback
    rank, rankings = kind.rank, []

    def recorded(self, *arguments, **named):
        rankings.append(rank(self, *arguments, **named))
        return rankings[-1]

    monkeypatch.setattr(kind, "rank", recorded)
    report = Served(router, test_rows).report()
    evaluated = [router.model_ids[column] for column in rankings[0][:, 0]]
    decisions = router.decide_batch(test_rows.queries)
    assert evaluated == [decision.model_id for decision in decisions]
    assert report.reasons == Counter(str(decision.reason) for decision in decisions)
    fell_back = report.reasons.get("novel_query_fallback", 0)
    assert fell_back > 0 if fallback else fell_back == 0
    chosen = Counter(evaluated)
    assert {m.model_id: m.share for m in report.models} == {
        model: chosen[model] / len(test_rows) for model in router.model_ids
    }


def test_the_evaluated_policy_comes_first_among_the_honest_points(trained, test_rows):
    router = router_with(trained, kind="utility", lambda_per_usd=40.0)
    report = Served(router, test_rows).report()
    assert [point.name for point in report.honest] == [
        "own",
        "recommended",
        "90 %",
        "95 %",
        "98 %",
        "100 %",
    ]
    assert report.honest[0].outcome == report.strategy("router").outcome
    assert report.honest[0].policy["lambda_per_usd"] == 40.0


def test_points_that_were_tuned_in_another_unit_are_left_out(trained, test_rows):
    costs = {model: 1.0 for model in trained[1].artifact.model_ids}
    router = ModelRouter(trained[0].output, model_costs=costs, threshold_config="quality")
    assert [point.name for point in Served(router, test_rows).report().honest] == ["quality"]


def test_regrets_lead_to_rows_of_the_records(trained, test_rows):
    router = ModelRouter(trained[0].output)
    found = Served(router, test_rows).regrets(limit=3)
    assert len(found) == 3
    for regret in found:
        decision = router.decide(test_rows.queries[regret.row])
        assert decision.model_id == regret.chosen
        assert decision.probabilities[regret.chosen] == pytest.approx(regret.chosen_probability)
        assert decision.novelty == pytest.approx(regret.novelty, abs=1e-3)  # its step


def test_records_are_read_as_in_training(trained, workload):
    router = ModelRouter(trained[0].output)
    records = read_records(router, workload / "records.jsonl")
    assert records.model_ids == router.model_ids
    assert records.fingerprint == trained[1].evaluations.fingerprint
