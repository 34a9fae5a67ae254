"""Own models on another router's columns, through the whole service."""

from __future__ import annotations


def test_headers_spend_and_models_speak_of_own_models(open_site):
    def own(content):
        large, _, _, small = content["candidates"]
        for candidate, name in ((large, "my-large"), (small, "my-small")):
            learned = candidate["id"]
            candidate["target"] = {**candidate["target"], "model": learned}
            candidate |= {"id": name, "tier": learned}
        content["candidates"] = [large, small]
        content["policies"] = {"small": {"kind": "fixed", "model": "my-small"}}
        content["policy"] = "small"

    site = open_site(edit=own)
    status, headers, body = site.chat()
    assert status == 200, body
    assert headers["x-router-model"] == "my-small"
    listed = site.http("GET", "/v1/models")[2].decode()
    assert "my-large" in listed
    assert "sim-small-text" not in listed
    assert site.chat(model="my-large")[1]["x-router-model"] == "my-large"
    assert site.spent() == site.ledger_usd()
    why = site.post("/v1/route", {"messages": [{"role": "user", "content": "hi"}]})[2]
    assert "my-small" in str(why)
