from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from router_runtime import ModelRouter
from router_runtime.config import RuntimeConfig, load_config
from router_runtime.errors import ArtifactError, ConfigError
from router_runtime.prediction.features import EmbeddingGenerator
from router_runtime.service.deciding import Decider
from router_runtime.service.generations import (
    Generation,
    Generations,
    config_digest,
    load_router,
)
from router_runtime.service.sessions import Sessions
from router_runtime.service.values import ANONYMOUS, Controls
from router_runtime.types import Query
from router_runtime.yaml_config import validate


@pytest.fixture(scope="module")
def router(trained):
    return ModelRouter(trained[0].output)


class Place:
    """Generations over configs in a folder; records what was closed."""

    def __init__(self, folder: Path, router: ModelRouter) -> None:
        self.path = folder / "service.yml"
        self.router = router
        self.closed: list[str] = []
        self.fails: Exception | None = None
        self.generations = Generations(self.build)

    def write(self, policy="economy"):
        artifact = self.router.config.artifact
        self.path.write_text(f"artifact: '{artifact}'\npolicy: {policy}\n")
        return self.path

    async def build(self, config: RuntimeConfig) -> Generation:
        if self.fails is not None:
            raise self.fails
        router = self.router if self.router.config.artifact == config.artifact else None
        router = router or await load_router(config)

        async def close():
            self.closed.append(config.policy)

        decider = Decider(
            router,
            config,
            resting=lambda model: False,
            sessions=Sessions(config.service.stickiness, clock=time.monotonic),
            clock=time.monotonic,
        )
        return Generation(
            config=config,
            router=router,
            decider=decider,
            forwarders={},
            config_sha256=config_digest(config),
            artifact_id=router.artifact.artifact_id,
            loaded_at=0.0,
            close=close,
        )


@pytest.fixture
def place(tmp_path, router):
    return Place(tmp_path, router)


async def settled():
    for _ in range(5):
        await asyncio.sleep(0)


def test_nothing_is_served_before_the_first_load(place):
    assert not place.generations.loaded
    with pytest.raises(ConfigError, match="loaded"), place.generations.enter():
        pass


def test_a_reload_swaps_and_keeps_the_previous(place):
    async def walk():
        first = await place.generations.reload(place.write("economy"))
        second = await place.generations.reload(place.write("quality"))
        assert place.generations.current is second
        assert place.generations.previous is first
        assert first.config_sha256 != second.config_sha256
        await settled()
        assert place.closed == []

    asyncio.run(walk())


def test_a_request_ends_on_what_it_began_with(place):
    async def walk():
        await place.generations.reload(place.write("economy"))
        with place.generations.enter() as begun:
            assert place.generations.in_flight(begun) == 1
            await place.generations.reload(place.write("quality"))
            with place.generations.enter() as later:
                assert later is not begun
            await place.generations.reload(place.write("balanced"))
            await settled()
            assert place.closed == []  # replaced twice, and still in use
            routed = await begun.decider.decide(Query("Hello"), Controls(), ANONYMOUS)
            assert routed.ranking
        await settled()
        assert place.closed == ["economy"]
        assert place.generations.in_flight(begun) == 0

    asyncio.run(walk())


def test_the_one_before_the_previous_is_closed_once(place):
    async def walk():
        for policy in ("economy", "quality", "balanced"):
            await place.generations.reload(place.write(policy))
        await settled()
        assert place.closed == ["economy"]

    asyncio.run(walk())


@pytest.mark.parametrize(
    "break_it",
    [
        lambda place: place.path.write_text("policy: [\n"),
        lambda place: place.path.write_text("artifact: nowhere\nunknown: 1\n"),
        lambda place: place.path.unlink(),
        lambda place: setattr(place, "fails", ArtifactError("damaged")),
        lambda place: setattr(place, "fails", OSError("disk")),
    ],
)
def test_whatever_fails_leaves_everything_as_it_was(place, break_it):
    async def walk():
        first = await place.generations.reload(place.write("economy"))
        second = await place.generations.reload(place.write("quality"))
        break_it(place)
        with pytest.raises((ConfigError, ArtifactError)):
            await place.generations.reload(place.path)
        assert place.generations.current is second
        assert place.generations.previous is first
        await settled()
        assert place.closed == []
        routed = await second.decider.decide(Query("Hello"), Controls(), ANONYMOUS)
        assert routed.decision is not None

    asyncio.run(walk())


def test_a_rollback_returns_to_the_previous_and_a_second_one_back(place):
    async def walk():
        first = await place.generations.reload(place.write("economy"))
        with pytest.raises(ConfigError, match="previous"):
            await place.generations.rollback()
        second = await place.generations.reload(place.write("quality"))
        assert await place.generations.rollback() is first
        assert place.generations.previous is second
        assert await place.generations.rollback() is second
        await settled()
        assert place.closed == []

    asyncio.run(walk())


def test_reloads_at_the_same_time_come_one_after_the_other(place):
    async def walk():
        place.write("economy")
        found = await asyncio.gather(*(place.generations.reload(place.path) for _ in range(4)))
        assert place.generations.current is found[-1]
        assert place.generations.previous is found[-2]
        await settled()
        assert len(place.closed) == 2

    asyncio.run(walk())


def test_requests_go_on_while_a_generation_is_built(place):
    async def walk():
        first = await place.generations.reload(place.write("economy"))
        building, may_end = asyncio.Event(), asyncio.Event()
        build = place.build

        async def slow(config):
            building.set()
            await may_end.wait()
            return await build(config)

        place.generations._build = slow
        reloading = asyncio.ensure_future(place.generations.reload(place.write("quality")))
        await building.wait()
        with place.generations.enter() as generation:
            assert generation is first
        may_end.set()
        await reloading

    asyncio.run(walk())


def test_closing_ends_all_of_them_once(place):
    async def walk():
        await place.generations.reload(place.write("economy"))
        with ExitStack() as requests:
            requests.enter_context(place.generations.enter())
            for policy in ("quality", "balanced"):
                await place.generations.reload(place.write(policy))
            await place.generations.close()
        await settled()
        assert sorted(place.closed) == ["balanced", "economy", "quality"]
        assert not place.generations.loaded

    asyncio.run(walk())


def test_a_generation_that_cannot_be_closed_stops_nothing(place, caplog):
    async def walk():
        generation = await place.generations.reload(place.write("economy"))

        async def failing():
            raise OSError("socket of a canary")

        object.__setattr__(generation, "close", failing)
        await place.generations.close()

    asyncio.run(walk())
    assert "OSError" in caplog.text
    assert "canary" not in caplog.text


# ---------------------------------------------------------------------- loading


def test_a_router_is_warm_when_it_is_loaded(trained, monkeypatch):
    encode, seen = EmbeddingGenerator.encode, []

    def counting(self, queries, **more):
        seen.extend(queries)
        return encode(self, queries, **more)

    monkeypatch.setattr(EmbeddingGenerator, "encode", counting)
    config = validate(RuntimeConfig, {"artifact": trained[0].output}, source="test")
    router = asyncio.run(load_router(config))
    assert router.model_ids
    assert {bool(query.images) for query in seen} == {True, False}


def test_a_router_that_cannot_predict_is_not_loaded(trained, monkeypatch):
    def failing(self, queries, **more):
        raise ArtifactError("nonsense")

    monkeypatch.setattr(EmbeddingGenerator, "encode", failing)
    config = validate(RuntimeConfig, {"artifact": trained[0].output}, source="test")
    with pytest.raises(ArtifactError):
        asyncio.run(load_router(config))


def test_the_digest_is_of_what_the_config_says(tmp_path):
    def digest(text, name="a.yml"):
        (tmp_path / name).write_text(text)
        return config_digest(load_config(tmp_path / name))

    plain = "artifact: x\npolicy: economy\n"
    assert digest(plain) == digest("# a comment\npolicy: economy\nartifact: x\n", "b.yml")
    assert digest(plain) != digest("artifact: x\npolicy: quality\n")
    url = "artifact: x\nservice: {redis_url: 'redis://user:%s@host/0'}\n"
    assert digest(url % "one") == digest(url % "two")
    assert digest(url % "one") != digest("artifact: x\nservice: {redis_url: 'redis://other/0'}\n")


def test_the_digest_is_the_same_in_every_process():
    program = (
        "from router_runtime.config import RuntimeConfig\n"
        "from router_runtime.service.generations import config_digest\n"
        "c = [{'id': 'm', 'modalities': ['text', 'image'], 'price': "
        "{'input_mtok': 1, 'output_mtok': 2}}]\n"
        "print(config_digest(RuntimeConfig(artifact='x', candidates=c)))\n"
    )
    found = {
        subprocess.run(  # noqa: S603 - our own program
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(found) == 1


def test_the_digest_is_the_same_wherever_an_experts_config_lies(tmp_path):
    def digest(folder, experts="e.yml"):
        (tmp_path / folder).mkdir(exist_ok=True)
        target = f"{{kind: peft, experts: {experts}}}"
        text = f"artifact: x\ncandidates: [{{id: a, target: {target}}}, {{id: b}}]\n"
        (tmp_path / folder / "r.yml").write_text(text)
        return config_digest(load_config(tmp_path / folder / "r.yml"))

    assert digest("one") == digest("two")
    assert digest("one") != digest("one", "other.yml")
