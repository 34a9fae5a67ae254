"""From drawn screens to a gateway that answers each with its expert; then one expert more.

The configs are those that are shipped; what differs is said in ``_configs``: a tiny random base
model, a quicker encoder, and addresses.
"""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import shutil
import sys
from contextlib import ExitStack
from pathlib import Path

import openai
import PIL.Image
import pytest
import yaml
from typer.testing import CliRunner

pytest.importorskip("torch")
pytest.importorskip("router_runtime.experts.service", exc_type=ImportError)
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
making = pytest.importorskip("experts_parts.making", exc_type=ImportError)

from experts_parts.vllm import ROOT, Vllm  # noqa: E402

from router_runtime import ModelRouter  # noqa: E402
from router_runtime.service.serve import ServiceServer  # noqa: E402
from router_runtime.simulator.config import SimulatorConfig  # noqa: E402
from router_runtime.simulator.serve import SimulatorServer  # noqa: E402
from router_training.cli import app  # noqa: E402
from router_training.config import load_training_config  # noqa: E402
from router_training.pipeline import run  # noqa: E402

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
KINDS = ("calendar", "claim-window", "provider-select")
NEW, OUTSIDE = "chandra-ocr", "external-vlm"
WORDS = {**making.WORDS, NEW: "Scan 8"}
SEES = {"modalities": ["text", "image"]}
ADMIN_KEY = "admin-credential-of-the-tests"
QUICK = {"kind": "embedded", "text_components": 32, "thumbnail_components": 32}


class Walk:
    """A folder with configs, data sets and adapters, and the steps of the walk in it."""

    def __init__(self, folder, provider_url):
        self.folder = folder
        self.provider_url = provider_url
        self._configs()

    def _configs(self):
        for name in ("experts", "experts-serve", "experts-service"):
            (self.folder / "configs").mkdir(exist_ok=True)
            shutil.copy(CONFIGS / f"{name}.yml", self.folder / "configs")
        with self.config("experts") as content:
            content["features"]["encoders"] = [QUICK]
        with self.config("experts-serve") as content:
            content["base"] = {"model": "../base"}
            content["max_tokens"] = 24
        with self.config("experts-service") as content:
            content["candidates"][-1]["target"]["base_url"] = self.provider_url

    def config(self, name):
        return Edited(self.folder / "configs" / f"{name}.yml")

    def command(self, *words):
        done = CliRunner().invoke(app, list(map(str, words)))
        assert done.exit_code == 0, done.output
        return done.output

    def draw(self, folder, kinds, rows):
        shares = ("--ambiguous-share", 0.1, "--blank-share", 0.05)
        options = ("--rows", rows, "--adapters", kinds, *shares)
        self.command("draw-screens", self.folder / folder, *options)

    def routing_data(self, *kinds, output):
        datasets = {kind: f"screens/{kind}/train.jsonl" for kind in kinds}
        datasets |= {NEW: f"pages/{NEW}/train.jsonl"} if NEW in kinds else {}
        datasets |= {OUTSIDE: "general/records.jsonl"}
        options = [
            word
            for name, file in datasets.items()
            for word in (f"--{name}-dataset", self.folder / file)
        ]
        output = self.folder / output
        self.command("generate-routing-data", *options, "--eval-samples", 6, "--output-dir", output)
        [made] = output.iterdir()
        return made

    def train(self, data):
        file = self.folder / "configs" / "experts.yml"
        return run(load_training_config(file, overrides={"data.path": data}))

    def adapter(self, name):
        pictures = sorted(self.folder.glob("screens/*/images/*"))[::35]
        making.train_adapter(
            self.folder / "base",
            self.folder / "runs" / "experts" / "adapters" / name,
            answer=WORDS[name],
            steps=60,
            pictures=[PIL.Image.open(path).convert("RGB") for path in pictures],
        )


class Edited:
    """A YAML file that is changed in a block."""

    def __init__(self, path):
        self.path = path

    def __enter__(self):
        self.content = yaml.safe_load(self.path.read_text())
        return self.content

    def __exit__(self, *_):
        plain = json.loads(json.dumps(self.content))  # without aliases
        self.path.write_text(yaml.safe_dump(plain, sort_keys=False))


def screens(data):
    """Return (kind, messages) of the rows that were held out."""
    return [(row["adapter"], messages_of(data, row)) for row in map(json.loads, _lines(data))]


def _lines(data):
    return (data / "eval.jsonl").read_text().splitlines()


def messages_of(data, row):
    said = row["conversations"][0]["value"].replace("<image>\n", "")
    parts = [{"type": "text", "text": said}]
    for name in row.get("images") or ([row["image"]] if row.get("image") else []):
        path = data / name
        kind = "png" if path.suffix == ".png" else "jpeg"
        uri = f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
        parts.insert(0, {"type": "image_url", "image_url": {"url": uri}})
    return [{"role": "user", "content": parts}]


class Gateway:
    """The running service and ways to ask it."""

    def __init__(self, server):
        self.server = server
        self.client = openai.OpenAI(
            base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60
        )

    def ask(self, messages, **fields):
        """Return (who answered, text)."""
        raw = self.client.chat.completions.with_raw_response.create(
            model="auto", messages=messages, **fields
        )
        return raw.headers["x-router-model"], raw.parse().choices[0].message.content

    def stream(self, messages):
        chunks = self.client.chat.completions.create(model="auto", messages=messages, stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    @property
    def base_model(self):
        """The one object that all experts in memory compute with."""
        forwarders = self.server.service.generations.current.forwarders.values()
        [model] = {
            id(each._experts.engine.pool.base.model) for each in forwarders if each.model in WORDS
        }
        return model


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    with SimulatorServer(SimulatorConfig.model_validate({"models": {"sim-large-vl": SEES}})) as sim:
        walk = Walk(tmp_path_factory.mktemp("walk"), sim.base_url)
        walk.draw("screens", ",".join(KINDS), 150)
        walk.command("simulate", walk.folder / "general", "--rows", 50)
        making.make_qwen(walk.folder / "base")
        for name in KINDS:
            walk.adapter(name)
        walk.data = walk.routing_data(*KINDS, output="three")
        walk.result = walk.train(walk.data)
        yield walk


@pytest.fixture(scope="module")
def gateway(walk):
    config = walk.folder / "configs" / "experts-service.yml"
    with ServiceServer(config, environ={"MODEL_ROUTER_ADMIN_KEY": ADMIN_KEY}) as server:
        yield Gateway(server)


def voice(text):
    """Return whose answer a text is: each expert begins with its own words."""
    return next((name for name, words in WORDS.items() if text.startswith(words[:3])), OUTSIDE)


def check_answers(answers):
    """Nearly every request is answered by whom it is for, and by the adapter that is said."""
    assert [voice(text) for _, _, text in answers] == [who for _, who, _ in answers]
    for wanted in {kind for kind, _, _ in answers}:
        mine = [who == wanted for kind, who, _ in answers if kind == wanted]
        assert sum(mine) >= len(mine) - 2, (wanted, answers)


def test_each_screen_is_answered_by_its_expert_and_all_else_outside(walk, gateway):
    answers = [(kind, *gateway.ask(messages)) for kind, messages in screens(walk.data)]
    assert {kind for kind, _, _ in answers} == {*KINDS, OUTSIDE}
    check_answers(answers)


def test_an_experts_answer_streams(walk, gateway):
    asked = [messages for kind, messages in screens(walk.data) if kind in KINDS][::5]
    assert [gateway.stream(each) for each in asked] == [gateway.ask(each)[1] for each in asked]


def test_what_experts_do_not_offer_goes_outside(walk, gateway):
    messages = next(asked for name, asked in screens(walk.data) if name == "calendar")
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    assert gateway.ask(messages, tools=[tool])[0] == OUTSIDE


def test_a_program_is_answered_by_the_same_experts(walk, gateway):
    router = ModelRouter.from_config(walk.folder / "configs" / "experts-service.yml")
    asked = [messages for kind, messages in screens(walk.data) if kind in KINDS][::3]
    try:
        answers = [router.complete(messages) for messages in asked]
    finally:
        asyncio.run(router.aclose())
    found = [(answer.model_id, answer.text) for answer in answers]
    assert found == [gateway.ask(messages) for messages in asked]


def test_on_vllm_replicas_the_same_router_finds_and_loads_the_adapters(walk):
    with ExitStack() as stack:
        servers = [stack.enter_context(Vllm(there=KINDS)) for _ in range(2)]
        file = walk.folder / "configs" / "vllm.yml"
        shutil.copy(walk.folder / "configs" / "experts-service.yml", file)
        with Edited(file) as content:
            for candidate in content["candidates"][:3]:
                candidate["target"] = {
                    "kind": "lora-vllm",
                    "base_urls": [server.url for server in servers],
                    "adapter_path": f"{ROOT}/{candidate['id']}",
                    "adapters_root": ROOT,
                }
            content["service"]["store"] = {"url": "sqlite:///vllm.db", "spool": "vllm-spool"}
        gateway = Gateway(stack.enter_context(ServiceServer(file, environ={})))
        asked = [each for each in screens(walk.data) if each[0] in KINDS]
        for server in servers:
            answers = [(kind, *gateway.ask(messages)) for kind, messages in asked]
            right = [who == kind for kind, who, _ in answers]
            assert sum(right) >= len(right) - 3
            assert all(text == f"{who} answers" for _, who, text in answers if who in KINDS)
            assert gateway.stream(asked[0][1]) == answers[0][2]
            server.restart()
        assert {name for server in servers for name in server.adapters} == set(KINDS)


def test_a_fourth_expert_is_a_row_new_samples_and_a_reload(walk, gateway):
    three = [asked for kind, asked in screens(walk.data) if kind in KINDS]
    before, base_model = [gateway.ask(messages) for messages in three], gateway.base_model

    walk.adapter(NEW)
    walk.draw("pages", NEW, 50)
    with walk.config("experts") as content:
        content["candidates"].insert(3, {**content["candidates"][0], "id": NEW})
    with walk.config("experts-serve") as content:
        content["adapters"][NEW] = f"../runs/experts/adapters/{NEW}"
    with walk.config("experts-service") as content:
        content["candidates"].insert(3, {**content["candidates"][0], "id": NEW})
    data = walk.routing_data(*KINDS, NEW, output="four")
    assert walk.train(data).artifact.model_ids == (*KINDS, NEW, OUTSIDE)
    assert gateway.ask(three[0]) == before[0]  # nothing has changed before the reload
    assert _reload(gateway.server.admin_url) == 200

    answers = [(kind, *gateway.ask(messages)) for kind, messages in screens(data)]
    assert {kind for kind, _, _ in answers} == {*KINDS, NEW, OUTSIDE}
    check_answers(answers)
    after = [gateway.ask(messages) for messages in three]
    same = [pair for pair in zip(after, before, strict=True) if pair[0][0] == pair[1][0]]
    assert all(now == then for now, then in same)  # whoever answers still answers the same
    assert len(same) >= len(three) - 3
    assert gateway.base_model == base_model


def _reload(url):
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    try:
        headers = {"authorization": f"Bearer {ADMIN_KEY}"}
        connection.request("POST", "/admin/reload", headers=headers)
        return connection.getresponse().status
    finally:
        connection.close()
