"""All kinds of faults that the simulator knows, below the service: whole answers or said errors.

Whatever a candidate does, a client gets an answer that is whole, or an error in OpenAI's envelope,
or a stream that ends with an error event and without ``[DONE]``. The next candidate answers only
while nothing has been passed on, and nothing waits for ever.
"""

from __future__ import annotations

import json
import time

import pytest
import yaml

from router_runtime.simulator.faults import FAULT_KINDS

TIMEOUT_S = 0.8
BOUND_S = 20.0
FIRST, SECOND = "sim-small-text", "sim-large-text"
BOTH = {"allow": [FIRST, SECOND], "policy": "small_first"}

USABLE = {"usage_missing", "usage_nonsense", "duplicate_ids", "content_filter"}
"""Answers that can be passed on as they are."""

ABOUT_THE_REQUEST = {"status_400", "status_413", "status_422"}
"""Refusals of the request itself; others would refuse it too, so they are passed on."""

BEGUN = {"short_body", "chunked_cut_off", "truncated_json", "reset_midway"}
"""Streams of these say something before they break."""

MAY_HAVE_BEGUN = {"reset_midway"}
"""A reset may overtake what was sent before it."""


@pytest.fixture(scope="module")
def faulty(site_maker, tmp_path_factory):
    """A site with a model for each kind, and each way of asking, that has no other fault."""
    from contextlib import ExitStack

    def with_kinds(content):
        first = next(c for c in content["candidates"] if c["id"] == FIRST)
        target = first["target"] = {**first["target"], "timeout_s": TIMEOUT_S}
        content["direct"] += [{"id": name, "target": target} for name in models]

    models = {
        f"{way}-{kind}": {"errors": {"rate": 1.0, "kinds": [kind]}}
        for kind in FAULT_KINDS
        for way in ("whole", "stream", "next-whole", "next-stream")  # breakers are by model
    }
    with ExitStack() as stack:
        yield site_maker(
            stack,
            tmp_path_factory.mktemp("faulty"),
            models=models,
            service={
                "calls": {"stream_idle_s": TIMEOUT_S, "max_answer_bytes": 2**20},
                "breaker": {"failures": 10_000},
            },
            edit=with_kinds,
        )


def asked(site, *, stream, model, **more):
    """Ask once; return (status, headers with lower-case names, bytes), in bounded time."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "Tell me of the sea."}],
        "stream": stream,
        **more,
    }
    started = time.monotonic()
    status, headers, data = site.http("POST", "/v1/chat/completions", body)
    assert time.monotonic() - started < BOUND_S
    return status, {name.lower(): value for name, value in headers.items()}, data


def events(data):
    return [event.removeprefix(b"data: ") for event in data.split(b"\n\n") if event]


def how_it_ended(status, headers, data):
    """``whole``, ``cut`` or ``refused``; fails for anything that a client could mistake."""
    if status != 200:
        error = json.loads(data)["error"]
        assert set(error) >= {"message", "type", "param", "code"}
        return "refused"
    if headers["content-type"].startswith("text/event-stream"):
        *before, last = events(data)
        if last == b"[DONE]":
            chunks = [json.loads(event) for event in before]
            assert any(c["finish_reason"] for chunk in chunks for c in chunk["choices"])
            return "whole"
        assert b"[DONE]" not in data
        assert json.loads(last)["error"]["code"]
        return "cut"
    assert json.loads(data)["choices"][0]["message"]
    return "whole"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("kind", FAULT_KINDS)
def test_a_faulty_answer_is_whole_or_a_said_error(faulty, kind, stream):
    found = asked(faulty, stream=stream, model=f"{'stream' if stream else 'whole'}-{kind}")
    ended = how_it_ended(*found)
    if kind in USABLE:
        assert ended == "whole"
    elif stream and kind in BEGUN:
        assert ended == "cut" or (ended == "refused" and kind in MAY_HAVE_BEGUN)
    else:
        assert ended == "refused", found
        assert found[0] in (400, 413, 422, 429, 502, 504)
        assert (found[0] in (400, 413, 422)) == (kind in ABOUT_THE_REQUEST)
    until(lambda: faulty.service.gateway.in_flight == 0)


def until(true, timeout_s=10):
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)


def put_first(site, model):
    """Let the first candidate be a faulty model: the config is changed and read again."""
    path = site.folder / "service.yml"
    content = yaml.safe_load(path.read_text())
    target = next(c for c in content["candidates"] if c["id"] == FIRST)["target"]
    target["model"] = model
    path.write_text(yaml.safe_dump(content))
    assert site.admin("POST", "/admin/reload")[0] == 200


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("kind", FAULT_KINDS)
def test_the_next_candidate_answers_while_nothing_was_passed_on(faulty, kind, stream):
    put_first(faulty, f"next-{'stream' if stream else 'whole'}-{kind}")
    before = faulty.ledger()["models"][SECOND]["requests"]
    status, headers, data = found = asked(faulty, stream=stream, model="auto", router=BOTH)
    ended, served = how_it_ended(*found), headers["x-router-model"]
    others = faulty.ledger()["models"][SECOND]["requests"] - before
    if kind in ABOUT_THE_REQUEST:
        assert (ended, status, others) == ("refused", int(kind.removeprefix("status_")), 0)
    elif kind in USABLE:
        assert (ended, served, others) == ("whole", FIRST, 0)
    elif stream and kind in BEGUN and (kind not in MAY_HAVE_BEGUN or served == FIRST):
        assert (ended, served, others) == ("cut", FIRST, 0), "after the first byte nobody is asked"
    else:
        assert (ended, served, others) == ("whole", SECOND, 1)
        assert headers["x-router-attempts"] == "2"
        assert kind.encode() not in data
