from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from decimal import Decimal

import httpx
import pytest

from router_runtime.errors import ConfigError
from router_runtime.simulator.config import SimulatorConfig
from router_runtime.simulator.serve import SimulatorServer
from router_training.labelling.answer_store import AnswerStore
from router_training.labelling.ask_ray import shares
from router_training.labelling.config import load_label_config
from router_training.labelling.ray_asker import Piece
from router_training.labelling.walk import collect, label

HTTP = httpx.Client(trust_env=False)
N_SAMPLES = 60
REQUESTS_PER_MINUTE = 1200
PRICE = {"input_mtok": 100, "output_mtok": 100}
SIMULATOR = SimulatorConfig.model_validate(
    {
        "models": {
            "paced": {
                # above what the config asks for: two workers with a limit each would meet it
                "rate_limit": {"requests_per_minute": 1500, "burst": 18},
                "price": PRICE,
            },
            "narrow": {"max_concurrency": 3, "latency": {"median_s": 0.03}, "price": PRICE},
            "slow": {"latency": {"median_s": 0.3}, "price": PRICE},
            "locked": {"errors": {"rate": 1, "kinds": ["status_401"]}},
            "judge": {"role": "judge", "price": PRICE},
        }
    }
)


@pytest.fixture(scope="module")
def simulator():
    with SimulatorServer(SIMULATOR) as server:
        yield server


@pytest.fixture
def reset(simulator):
    HTTP.post(f"{simulator.url}/simulator/reset").raise_for_status()


def ledger(simulator):
    return HTTP.get(f"{simulator.url}/simulator/ledger").json()["models"]


def requests(simulator):
    return {name: account["requests"] for name, account in ledger(simulator).items()}


def target(simulator, **more):
    return {"kind": "compatible", "base_url": simulator.base_url, **more}


def configured(folder, simulator, *names, data=None, **changes):
    """Write a config for these candidates, and samples of which the last repeats the first."""
    own = {
        "paced": {"requests_per_minute": REQUESTS_PER_MINUTE, "max_concurrency": 64},
        "narrow": {"max_concurrency": 3},
        "slow": {"max_concurrency": 3},
        "locked": {"max_concurrency": 2},
    }
    folder.mkdir(exist_ok=True)
    rows = [
        {"idx": str(n), "prompt": f"What is {n} + {n}?", "answer": str(2 * n)}
        for n in range(N_SAMPLES)
    ]
    rows.append({**rows[0], "idx": "again"})
    samples = folder / "samples.jsonl"
    samples.write_text("\n".join(map(json.dumps, rows)))
    candidates = [
        {"id": name, "target": target(simulator, **own[name]), "price": PRICE} for name in names
    ]
    judge = {"id": "judge", "target": target(simulator), "price": PRICE}
    content = {
        "data": {"path": str(data or samples)},
        "candidates": candidates,
        "judge": {"models": [judge]},
        "work_dir": str(folder / "work"),
        "output": str(folder / "records.jsonl"),
        **changes,
    }
    path = folder / "label.yml"
    path.write_text(json.dumps(content))
    return path


def records(path, *, timed):
    """Return the file's bytes, or its records without what was measured."""
    if timed:
        return path.read_bytes()
    return [
        {name: value for name, value in json.loads(line).items() if name != "model_seconds"}
        for line in path.read_text().splitlines()
    ]


def test_samples_are_shared_out_evenly_and_in_order():
    assert shares((3, 3, 1), parts=2) == (
        (Piece(0, 0, 3),),
        (Piece(1, 0, 3), Piece(2, 0, 1)),
    )
    assert shares((5,), parts=2) == ((Piece(0, 0, 2),), (Piece(0, 2, 5),))
    assert shares((2,), parts=8) == ((Piece(0, 0, 1),), (Piece(0, 1, 2),))


def test_two_workers_label_as_one_process_does_within_the_same_limits(
    tmp_path, simulator, reset, connected_ray
):
    names = ("paced", "narrow")
    ray = load_label_config(configured(tmp_path / "ray", simulator, *names, engine="ray"))
    done = label(ray)
    asked = ledger(simulator)
    # one call for equal prompts, though another worker has each
    assert [asked[n]["requests"] - asked[n]["rate_limited"] for n in names] == [N_SAMPLES] * 2
    # the cluster's calls in flight were never too many; how fast they arrive a busy machine decides
    assert asked["narrow"]["rate_limited"] == 0
    assert done.asked.judged.scored == dict.fromkeys(names, N_SAMPLES + 1)

    other = tmp_path / "other.jsonl"
    label(ray.model_copy(update={"engine": "local", "output": other}))
    assert ledger(simulator) == asked
    assert records(other, timed=True) == records(ray.output, timed=True)

    local = load_label_config(
        configured(tmp_path / "local", simulator, *names, data=tmp_path / "ray" / "samples.jsonl")
    )
    alone = label(local)
    assert records(local.output, timed=False) == records(ray.output, timed=False)
    assert alone.asked.candidates == done.asked.candidates
    assert alone.asked.judges == done.asked.judges
    assert alone.asked.spent == done.asked.spent


def test_the_budget_and_a_stopped_target_hold_for_the_cluster_and_another_run_goes_on(
    tmp_path, simulator, reset, connected_ray
):
    cap = Decimal("0.04")
    changes = {"engine": "ray", "ask": {"parameters": {"max_tokens": 20}}}
    path = configured(tmp_path, simulator, "narrow", "locked", **changes)
    done = collect(load_label_config(path, overrides={"max_cost_usd": cap}))
    assert done.asked.budget_reached
    assert 0 < done.total_usd <= cap
    assert done.total_usd == Decimal(ledger(simulator)["narrow"]["cost_usd"])
    assert list(done.asked.stopped) == ["locked"]
    assert done.asked.candidates["locked"].pending == N_SAMPLES + 1
    assert requests(simulator)["locked"] <= 2  # those in flight
    assert 0 < requests(simulator)["narrow"] < N_SAMPLES

    rest = collect(load_label_config(path, overrides={"engine": "local"}))
    assert rest.asked.candidates["narrow"].answered == N_SAMPLES + 1
    assert requests(simulator)["narrow"] == N_SAMPLES


def test_what_a_worker_lacks_is_told_as_here(tmp_path, simulator, connected_ray):
    path = configured(tmp_path, simulator, "narrow", engine="ray")
    content = json.loads(path.read_text())
    content["candidates"][0]["target"]["api_key_env"] = "KEY_OF_NO_WORKER"
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="KEY_OF_NO_WORKER"):
        collect(load_label_config(path))


def test_ctrl_c_keeps_every_answer_and_ends_the_cluster_that_was_started(
    tmp_path, simulator, reset
):
    pytest.importorskip("ray")
    path = configured(tmp_path, simulator, "slow", engine="ray")
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from router_training.__main__ import main\nmain()"
    )
    process = subprocess.Popen(  # noqa: S603 - our own command
        [sys.executable, "-c", code, "collect", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "RAY_ADDRESS": ""},
    )
    deadline = time.monotonic() + 120
    while requests(simulator)["slow"] < 5 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=100)
    assert process.returncode not in (0, 1), errors
    assert "Traceback" not in errors
    asked = requests(simulator)["slow"]
    assert 5 <= asked < N_SAMPLES
    with AnswerStore.read(tmp_path / "work") as store:
        assert store.observed()["slow"].answered == asked
    collect(load_label_config(path, overrides={"engine": "local"}))
    assert requests(simulator)["slow"] == N_SAMPLES
