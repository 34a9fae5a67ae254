from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import pytest

from router_runtime.errors import ConfigError, DataError
from router_runtime.simulator.config import load_simulator_config
from router_training.labelled_by import read_labelled_by
from router_training.labelling.answer_store import AnswerStore
from router_training.labelling.config import load_label_config
from router_training.labelling.walk import collect, judge, kept_samples, label
from router_training.labels import read_evaluations

CONFIGS = Path(__file__).resolve().parents[3] / "configs"


def test_samples_become_records_for_exactly_what_the_provider_charged(site, records_of):
    done = label(site.config())
    asked, charged = site.ledger()
    assert done.tabulated.rows == 30
    assert done.spent_usd == done.total_usd == Decimal(charged)
    assert sum(done.asked.spent.values()) == done.spent_usd
    records = records_of(site.folder / "records.jsonl")
    pictures = [record for record in records if record["images"]]
    assert pictures and len(pictures) < 30
    for record in records:
        assert set(record["model_scores"]) == {"sees", "reads"}
        reasons = {"reads": "ineligible: does_not_accept_image"} if record["images"] else {}
        assert record["unscored"] == reasons
        assert (record["model_scores"]["reads"] is None) == bool(record["images"])
        answered = {"sees"} if record["images"] else {"sees", "reads"}
        for told in ("model_costs", "model_usage", "model_seconds"):
            assert set(record[told]) == answered
    tallies = done.asked.candidates
    assert (tallies["reads"].answered, tallies["reads"].ineligible) == (
        30 - len(pictures),
        len(pictures),
    )
    assert asked["sees"] <= 30  # equal prompts are asked once


def test_what_trains_reads_the_records_and_who_labelled_them(site):
    done = label(site.config())
    output = site.folder / "records.jsonl"
    data = read_evaluations(output)
    assert data.model_ids == ("sees", "reads")
    assert data.n_unscored == 0
    assert read_labelled_by(output).to_json() == done.tabulated.labelled_by.to_json()


def test_a_second_run_asks_nobody_and_writes_the_same_bytes(site):
    label(site.config())
    before, first = site.ledger(), (site.folder / "records.jsonl").read_bytes()
    again = label(site.config())
    assert site.ledger() == before
    assert again.spent_usd == 0
    assert (site.folder / "records.jsonl").read_bytes() == first


def test_collecting_and_then_judging_is_labelling(site):
    collected = collect(site.config())
    assert collected.tabulated is None and not (site.folder / "records.jsonl").exists()
    assert site.ledger()[0]["judge"] == 0
    judged = judge(site.config())
    before, records = site.ledger(), (site.folder / "records.jsonl").read_bytes()
    assert before[0]["judge"] > 0
    assert judged.asked.candidates == collected.asked.candidates
    label(site.config())
    assert (site.ledger(), (site.folder / "records.jsonl").read_bytes()) == (before, records)


def test_another_rubric_asks_the_judge_alone(site):
    label(site.config())
    (before, _), content = site.ledger(), site.content()
    content["judge"]["rubric"] = "quality"
    label(site.config(content))
    after, _ = site.ledger()
    assert after["judge"] > before["judge"]
    assert (after["sees"], after["reads"]) == (before["sees"], before["reads"])


def test_other_parameters_of_one_candidate_ask_it_alone(site):
    collect(site.config())
    (before, _), content = site.ledger(), site.content()
    content["candidates"][1]["target"]["parameters"] = {"temperature": 0.5}
    collect(site.config(content))
    after, _ = site.ledger()
    assert after["sees"] == before["sees"]
    assert after["reads"] > before["reads"]


def test_more_rows_ask_only_about_the_new_ones(site):
    collect(load_label_config(site.write(), overrides={"data.limit": 10}))
    before, _ = site.ledger()
    collect(site.config())
    after, _ = site.ledger()
    assert 0 < before["sees"] <= 10
    assert before["sees"] < after["sees"] <= 30


def test_one_target_that_refuses_is_stopped_and_the_others_go_on(site, records_of):
    content = site.content()
    content["candidates"][1]["target"]["model"] = "no-such-model"
    config = site.config(content)
    done = label(config)
    assert list(done.asked.stopped) == ["reads"]
    assert done.asked.candidates["sees"].answered == 30
    assert done.asked.candidates["reads"].pending > 0
    assert done.tabulated is None and not config.output.exists()
    written = label(config, partly=True)
    assert written.tabulated.pending == done.asked.candidates["reads"].pending
    reasons = {
        reason.partition(":")[0]
        for record in records_of(config.output)
        for reason in record["unscored"].values()
    }
    assert reasons == {"ineligible", "pending"}


def test_the_budget_ends_a_run_below_it_and_a_higher_one_continues(site):
    whole = Decimal("0.02")
    content = {**site.content(), "max_cost_usd": float(whole)}
    done = label(site.config(content))
    assert done.asked.budget_reached and done.asked.pending
    assert 0 < done.total_usd <= whole
    assert done.tabulated is None
    asked, charged = site.ledger()
    assert Decimal(charged) == done.total_usd
    rest = label(site.config({**content, "max_cost_usd": 5}))
    assert not rest.asked.pending
    assert rest.total_usd == done.total_usd + rest.spent_usd == Decimal(site.ledger()[1])
    assert sum(site.ledger()[0].values()) > sum(asked.values())


def test_judging_before_collecting_writes_nothing(site):
    done = judge(site.config())
    assert done.asked.pending and done.tabulated is None
    assert sum(site.ledger()[0].values()) == 0


def test_failures_are_retried_and_a_cell_that_keeps_failing_has_its_reason(open_site, records_of):
    from_tests = {"modalities": ["text", "image"], "errors": {"rate": 0.3, "sticky": True}}
    judging = {"role": "judge", "modalities": ["text", "image"]}
    site = open_site(models={"sees": from_tests, "reads": {}, "judge": judging})
    done = label(site.config())
    failed = done.asked.candidates["sees"].failed
    assert 0 < failed < 30
    records = records_of(site.folder / "records.jsonl")
    silent = [r for r in records if r["unscored"].get("sees", "").startswith("failed: ")]
    assert len(silent) == failed
    assert all(r["model_scores"]["sees"] is None for r in silent)


def test_a_second_run_at_the_same_time_is_refused_with_the_holders_name(site):
    with AnswerStore.open(site.folder / "work", holder="router-train collect"):
        with pytest.raises(ConfigError, match="router-train collect"):
            label(site.config())
    assert sum(site.ledger()[0].values()) == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"output": "records.txt"}, "records.txt"),
        ({"scoring": {"scorers": {"odd": {"kind": "regex", "pattern": "("}}}}, "odd"),
        (None, "NO_SUCH_VARIABLE"),
    ],
)
def test_what_cannot_end_well_is_said_before_anybody_is_asked(site, change, said):
    content = site.content() | (change or {})
    if change is None:
        content["judge"]["models"][0]["target"]["api_key_env"] = "NO_SUCH_VARIABLE"
    with pytest.raises(ConfigError, match=said):
        label(site.config(content))
    assert sum(site.ledger()[0].values()) == 0


def test_a_scorer_that_a_late_sample_asks_for_in_vain_is_said_before_anybody_is_asked(site):
    path = site.folder / "data" / "samples.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[-1]["scorer"] = ["exakt"]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    with pytest.raises(DataError, match=r"asks for the scorer 'exakt'.*known: same, judge"):
        label(site.config())
    assert sum(site.ledger()[0].values()) == 0
    assert collect(site.config()).asked.candidates["reads"].answered  # which needs no scorer


def test_collecting_needs_no_key_of_the_judge(site):
    content = site.content()
    content["judge"]["models"][0]["target"]["api_key_env"] = "NO_SUCH_VARIABLE"
    assert collect(site.config(content)).asked.pending == 0


def test_a_candidate_that_judges_by_leave_is_named_beside_the_records(site):
    content = site.content()
    content["judge"] = {
        "models": [
            {"id": "sees", "target": site.target(), "price": {"input_mtok": 3, "output_mtok": 12}}
        ],
        "allow_candidates": True,
    }
    label(site.config(content))
    beside = json.loads((site.folder / "records.jsonl.labels.json").read_text())
    assert beside["judge"]["candidates"] == ["sees"]


def test_samples_are_read_once(site):
    config = site.config()
    assert kept_samples(config) == kept_samples(config)
    assert len(list((site.folder / "work").glob("samples-*"))) == 1


def test_the_demo_asks_models_that_the_simulator_has_at_its_prices():
    demo = load_label_config(CONFIGS / "label-demo.yml")
    simulated = load_simulator_config(CONFIGS / "simulator.yml").models
    for entry in (*demo.candidates, *demo.judge.models):
        assert entry.price == simulated[entry.id].price
    for candidate in demo.candidates:
        assert candidate.modalities == simulated[candidate.id].modalities


def test_the_example_config_is_valid():
    assert load_label_config(CONFIGS / "label.yml").judging_candidates == ()
