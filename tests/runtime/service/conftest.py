"""The real service on loopback, in front of a simulated provider that keeps a ledger."""

from __future__ import annotations

import http.client
import json
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path

import openai
import pytest
import yaml

from router_runtime.simulator.config import SimulatorConfig
from router_runtime.simulator.serve import SimulatorServer

PRICES = {
    "sim-large-vl": {"input_mtok": 3.00, "output_mtok": 12.00},
    "sim-small-vl": {"input_mtok": 0.20, "output_mtok": 0.60},
    "sim-large-text": {"input_mtok": 2.00, "output_mtok": 8.00},
    "sim-small-text": {"input_mtok": 0.10, "output_mtok": 0.30},
}
EMBEDDING_PRICE = {"input_mtok": 0.02, "output_mtok": 0}
ADMIN_KEY = "admin-credential-of-the-tests"
PEPPER = "pepper-of-the-tests-0123456789"
ENVIRONMENT = {"MODEL_ROUTER_ADMIN_KEY": ADMIN_KEY, "MODEL_ROUTER_PEPPER": PEPPER}


def modalities(name):
    return ["text", "image"] if name.endswith("-vl") else ["text"]


class Site:
    """A running service, its provider, and ways to speak to both."""

    def __init__(self, server, provider_url, folder):
        self.server = server
        self.service = server.service
        self.url = server.url
        self.provider_url = provider_url
        self.folder = folder

    def client(self, key="none", **options):
        return openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=20, **options
        )

    def async_client(self, key="none"):
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=20)

    def http(self, method, path, body=None, headers=None, *, url=None):
        connection = http.client.HTTPConnection(
            (url or self.url).removeprefix("http://"), timeout=20
        )
        try:
            data = None if body is None else body if isinstance(body, bytes) else json.dumps(body)
            sent = {"content-type": "application/json"} if data is not None else {}
            connection.request(method, path, data, {**sent, **(headers or {})})
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def post(self, path, body, headers=None):
        """Return (status, headers, JSON)."""
        status, found, data = self.http("POST", path, body, headers)
        return status, found, json.loads(data)

    def chat(self, text="What is 17 + 25?", *, model="auto", headers=None, **more):
        body = {"model": model, "messages": [{"role": "user", "content": text}], **more}
        return self.post("/v1/chat/completions", body, headers)

    def admin(self, method, path, *, key=ADMIN_KEY):
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        status, _, data = self.http(method, path, None, headers, url=self.server.admin_url)
        return status, json.loads(data)

    def ledger(self):
        data = self.http("GET", "/simulator/ledger", url=self.provider_url)[2]
        return json.loads(data)

    def spent(self, key_id="anonymous"):
        self.service.store.flush()
        return self.service.store.spent(key_id, 0.0)

    def ledger_usd(self):
        return Decimal(str(self.ledger()["cost_usd"]))


@pytest.fixture(scope="session")
def site_maker(trained):
    """Return a function (stack, folder, **changes) that opens a site in an exit stack."""
    from router_runtime.service.serve import ServiceServer

    def made(stack, folder: Path, *, models=None, service=None, edit=None, environ=None):
        simulated = {
            name: {"modalities": modalities(name), "price": price} for name, price in PRICES.items()
        }
        simulated["sim-embedding"] = {
            "role": "embedding",
            "dimensions": 8,
            "price": EMBEDDING_PRICE,
        }
        for name, changes in (models or {}).items():
            simulated[name] = {**simulated.get(name, {}), **changes}
        provider = stack.enter_context(
            SimulatorServer(SimulatorConfig.model_validate({"models": simulated}))
        )
        target = {"kind": "compatible", "base_url": provider.base_url}
        content = {
            "artifact": str(trained[0].output),
            "candidates": [
                {"id": name, "modalities": modalities(name), "price": price, "target": target}
                for name, price in PRICES.items()
            ],
            "policies": {"small_first": {"kind": "fixed", "model": "sim-small-text"}},
            "policy": "recommended",
            "direct": [{"id": "sim-embedding", "price": EMBEDDING_PRICE, "target": target}],
            "service": {
                "store": {"url": "sqlite:///service.db", "spool": "spool"},
                **(service or {}),
            },
        }
        if edit is not None:
            edit(content)
        path = folder / "service.yml"
        path.write_text(yaml.safe_dump(yaml.safe_load(json.dumps(content))))
        server = ServiceServer(path, environ={**ENVIRONMENT, **(environ or {})})
        return Site(stack.enter_context(server), provider.url, folder)

    return made


@pytest.fixture
def open_site(site_maker, tmp_path):
    """Return a function that opens a site of its own for one test."""
    with ExitStack() as stack:

        def opened(**changes):
            return site_maker(stack, tmp_path, **changes)

        yield opened


@pytest.fixture(scope="module")
def site(site_maker, tmp_path_factory):
    """One site for a module's tests that change nothing about it."""
    with ExitStack() as stack:
        yield site_maker(stack, tmp_path_factory.mktemp("site"))
