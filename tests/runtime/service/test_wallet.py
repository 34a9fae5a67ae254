"""What keeps a key from costing more than it may: reservations, the clamp on dear models."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import pytest
import yaml

from router_runtime.service.keys import create_key
from router_runtime.service.values import KeyLimits

PEPPER = b"pepper-of-the-tests-0123456789"
DEAR = "sim-large-vl"


def key_of(site, name, **limits):
    made = create_key(site.service.store.engine, PEPPER, name=name, limits=KeyLimits(**limits))
    site.service.keys.refresh()
    return made.id, {"authorization": f"Bearer {made.key}"}


def most_usd(site):
    """The reservation of one request of ``ask``: 64 output tokens and a short prompt."""
    return Decimal(64 * 12) / 10**6 + Decimal(100 * 3) / 10**6


def ask(site, headers, number, *, stream=False):
    body = {
        "model": DEAR,
        "messages": [{"role": "user", "content": f"What is {number} + 25?"}],
        "max_tokens": 64,
        "stream": stream,
    }
    return site.http("POST", "/v1/chat/completions", body, headers)


@pytest.mark.parametrize("stream", [False, True])
def test_many_at_once_spend_no_more_than_the_budget(open_site, stream):
    site = open_site(models={DEAR: {"latency": {"median_s": 0.05}}})
    budget = 4 * most_usd(site)
    key_id, headers = key_of(site, "small purse", usd_per_day=budget)
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda n: ask(site, headers, n, stream=stream), range(48)))
    statuses = [status for status, _, _ in found]
    assert set(statuses) == {200, 402}
    for status, _, data in found:
        if status == 402:
            assert json.loads(data)["error"]["code"] == "budget_exceeded"
    assert 0 < site.spent(key_id) == site.ledger_usd() <= budget
    for number in range(200):
        if ask(site, headers, number)[0] == 402:
            break
    assert site.ledger_usd() <= budget


def test_no_call_is_made_that_the_budget_might_not_cover(open_site):
    site = open_site()
    _, headers = key_of(site, "nearly nothing", usd_per_day=most_usd(site) / 100)
    assert ask(site, headers, 1)[0] == 402
    assert site.ledger()["models"][DEAR]["requests"] == 0


def test_what_is_reserved_for_a_call_that_fails_comes_back(open_site):
    site = open_site(
        models={DEAR: {"errors": {"rate": 1.0, "kinds": ["status_500"]}}},
        service={"breaker": {"failures": 1000}},
    )
    _, headers = key_of(site, "one call at a time", usd_per_day=most_usd(site) * 2)
    assert [ask(site, headers, number)[0] for number in range(6)] == [502] * 6


# --------------------------------------------------------------------------- dear models

CLAMP = {"share": 0.5, "window": 10, "models": [DEAR], "action": "clamp"}


def clamping(content):
    content["policies"]["dear_first"] = {"kind": "fixed", "model": DEAR}
    content["policies"]["cheap_first"] = {"kind": "fixed", "model": "sim-small-text"}


def routed(site, headers, policy):
    return site.chat(f"auto by {policy}", model=f"auto:{policy}", headers=headers)[1][
        "x-router-model"
    ]


def test_a_key_whose_calls_all_go_dear_loses_the_dear_model_until_it_calms_down(open_site):
    site = open_site(service={"expensive": CLAMP}, edit=clamping)
    _, steered = key_of(site, "steered")
    _, usual = key_of(site, "usual")
    assert [routed(site, steered, "dear_first") for _ in range(6)] == [DEAR] * 6
    assert routed(site, steered, "dear_first") != DEAR
    told = site.post(
        "/v1/route",
        {"model": "auto:dear_first", "messages": [{"role": "user", "content": "Why not?"}]},
        steered,
    )[2]
    reasons = {c["model"]: c["reason"] for c in told["candidates"]}
    assert reasons[DEAR] == "clamped_for_key"
    assert DEAR not in told["ranking"]
    assert routed(site, usual, "dear_first") == DEAR
    status = site.admin("GET", "/admin/status")[1]["expensive"]
    assert status["alarms"] == len(status["alarmed_keys"]) == 1
    calmed = [routed(site, steered, "cheap_first") for _ in range(10)]
    assert DEAR not in calmed
    assert routed(site, steered, "dear_first") == DEAR


def test_a_prefix_that_steers_the_router_is_held_back_as_well(open_site):
    """Whatever makes the router choose dear models, the share of them is what is bounded."""
    site = open_site(service={"expensive": CLAMP}, edit=clamping)
    _, headers = key_of(site, "confounder")
    models = [routed(site, headers, "dear_first") for _ in range(40)]
    assert models[:6] == [DEAR] * 6
    assert 0 < max(models[at : at + 10].count(DEAR) for at in range(31)) <= 6


def test_an_alarm_alone_takes_no_model_away(open_site):
    site = open_site(service={"expensive": {**CLAMP, "action": "alarm"}}, edit=clamping)
    _, headers = key_of(site, "steered")
    assert [routed(site, headers, "dear_first") for _ in range(9)] == [DEAR] * 9
    assert site.admin("GET", "/admin/status")[1]["expensive"]["alarms"] == 1
    metrics = site.http("GET", "/metrics", None, headers)[2].decode()
    assert "expensive_alarms_total 1.0" in metrics


def test_a_model_that_is_asked_for_by_name_is_not_clamped(open_site):
    """The clamp holds the router back; a named model is the caller's own choice and expense."""
    site = open_site(service={"expensive": CLAMP}, edit=clamping)
    _, headers = key_of(site, "steered")
    for _ in range(7):
        routed(site, headers, "dear_first")
    assert site.chat(model=DEAR, headers=headers)[0] == 200


def test_prices_that_change_change_which_models_are_dear(open_site):
    site = open_site(service={"expensive": {"share": 0.5, "window": 10, "action": "clamp"}})
    assert site.admin("GET", "/admin/status")[1]["expensive"]["dear_models"] == [DEAR]
    path = site.folder / "service.yml"
    content = yaml.safe_load(path.read_text())
    for candidate in content["candidates"]:
        if candidate["id"] == "sim-small-text":
            candidate["price"]["output_mtok"] = 100.0
    path.write_text(yaml.safe_dump(content))
    assert site.admin("POST", "/admin/reload")[0] == 200
    assert site.admin("GET", "/admin/status")[1]["expensive"]["dear_models"] == ["sim-small-text"]
    assert site.service.metrics.baseline_model == "sim-small-text"
    assert site.admin("POST", "/admin/rollback")[0] == 200
    assert site.admin("GET", "/admin/status")[1]["expensive"]["dear_models"] == [DEAR]
