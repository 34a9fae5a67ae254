"""One simulated provider for all tests of a module, and ways to speak to it."""

from __future__ import annotations

import base64
import http.client
import json
from io import BytesIO

import openai
import pytest
from PIL import Image

from router_runtime.simulator.config import SimulatorConfig
from router_runtime.simulator.serve import SimulatorServer


class Provider:
    """A running simulator and its callers."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.client = openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0, timeout=10)

    @staticmethod
    def picture(colour: str = "red") -> bytes:
        buffer = BytesIO()
        Image.new("RGB", (8, 8), colour).save(buffer, format="PNG")
        return buffer.getvalue()

    @staticmethod
    def data_uri(data: bytes) -> str:
        return f"data:image/png;base64,{base64.b64encode(data).decode()}"

    def user(self, text, *pictures):
        urls = [{"url": self.data_uri(data)} for data in pictures]
        parts = [{"type": "image_url", "image_url": url} for url in urls]
        return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]

    def chat(self, model, messages, **parameters):
        messages = self.user(messages) if isinstance(messages, str) else messages
        return self.client.chat.completions.create(model=model, messages=messages, **parameters)

    def text(self, model, messages, **parameters):
        return self.chat(model, messages, **parameters).choices[0].message.content

    def http(self, method, path, body=None, headers=None, timeout=5):
        host = self.url.removeprefix("http://")
        connection = http.client.HTTPConnection(host, timeout=timeout)
        try:
            data = None if body is None else body if isinstance(body, bytes) else json.dumps(body)
            connection.request(method, path, data, headers or {})
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read()
        finally:
            connection.close()

    def ledger(self):
        return json.loads(self.http("GET", "/simulator/ledger")[2])

    def reset(self):
        return self.http("POST", "/simulator/reset")


@pytest.fixture(scope="module")
def start():
    """Start a provider with these models; all are stopped at the end of the module."""
    running = []

    def begin(models, **settings):
        config = SimulatorConfig.model_validate({"models": models, **settings})
        server = SimulatorServer(config).__enter__()
        running.append(server)
        return Provider(server.url)

    begin.provider = Provider
    yield begin
    for server in running:
        server.__exit__(None, None, None)
