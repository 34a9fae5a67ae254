"""A server that speaks vLLM's routes for chat and adapters, with its answers and errors."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

ROOT = "/srv/adapters"


class Vllm:
    """A vLLM server with a base model and adapters, each of which answers with its own name.

    Parameters
    ----------
    updates : bool
        Adapters may be loaded at run time.
    there : sequence of str
        Adapters whose files lie below ``ROOT``.
    key : str or None
    lorax : bool
        Answer as any adapter, as LoRAX does, which loads it when it is asked for.
    """

    USAGE: ClassVar = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}

    def __init__(
        self,
        *,
        updates: bool = True,
        there: Sequence[str] = ("calendar",),
        key: str | None = None,
        lorax: bool = False,
    ) -> None:
        self.updates, self.key, self.lorax = updates, key, lorax
        self.files = {f"{ROOT}/{name}" for name in there}
        self.adapters, self.asked, self.bodies, self.status = {}, [], [], None
        self.gate, self.entered = None, threading.Semaphore(0)
        self._start(0)

    def _start(self, port):
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                outer.get(self)

            def do_POST(self):
                length = int(self.headers.get("content-length", 0))
                outer.post(self, json.loads(self.rfile.read(length)))

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        if self.server is not None:
            self.server.shutdown()
            self.server.server_close()
            self.server = None

    def restart(self):
        self.stop()
        self.adapters.clear()
        self._start(self.port)

    def reply(self, handler, status, body):
        text = isinstance(body, str)
        data = body.encode() if text else json.dumps(body).encode()
        handler.send_response(status)
        handler.send_header("Content-Type", "text/plain" if text else "application/json")
        handler.send_header("Content-Length", str(len(data)))
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.wfile.write(data)

    def error(self, handler, status, kind, message):
        body = {"error": {"message": message, "type": kind, "param": None, "code": status}}
        self.reply(handler, status, body)

    def refused(self, handler):
        self.asked.append(handler.path.removeprefix("/v1/"))
        if self.key and handler.headers.get("Authorization") != f"Bearer {self.key}":
            self.error(handler, 401, "Unauthorized", "Unauthorized")
            return True
        if self.status:
            self.error(handler, self.status, "InternalServerError", "out of order")
            return True
        return False

    def get(self, handler):
        if self.refused(handler):
            return
        entries = [{"id": "base", "object": "model", "parent": None}]
        entries += [
            {"id": n, "object": "model", "root": p, "parent": "base"}
            for n, p in self.adapters.items()
        ]
        self.reply(handler, 200, {"object": "list", "data": entries})

    def post(self, handler, body):
        if not self.refused(handler):
            {
                "/v1/chat/completions": self.chat,
                "/v1/load_lora_adapter": self.load,
                "/v1/unload_lora_adapter": self.unload,
            }[handler.path](handler, body)

    def chat(self, handler, body):
        model = body["model"]
        if not (self.lorax or model == "base" or model in self.adapters):
            return self.error(handler, 404, "NotFoundError", f"The model `{model}` does not exist.")
        self.bodies.append(body)
        self.entered.release()
        if self.gate is not None:
            self.gate.wait(60)
        if body.get("stream"):
            return self.stream(handler, body)
        message = {"role": "assistant", "content": f"{model} answers"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        answer = {"id": "x", "model": model, "choices": [choice], "usage": self.USAGE}
        self.reply(handler, 200, answer)

    def stream(self, handler, body):
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream; charset=utf-8")
        handler.send_header("Connection", "close")
        handler.end_headers()
        deltas = [{"role": "assistant", "content": ""}, {"content": body["model"]}]
        chunks = [(delta, None) for delta in (*deltas, {"content": " answers"})]
        for delta, reason in [*chunks, ({}, "stop")]:
            choice = {"index": 0, "delta": delta, "finish_reason": reason}
            self.event(handler, {"id": "x", "model": body["model"], "choices": [choice]})
        if (body.get("stream_options") or {}).get("include_usage"):
            self.event(handler, {"id": "x", "choices": [], "usage": self.USAGE})
        handler.wfile.write(b"data: [DONE]\n\n")
        handler.close_connection = True

    @staticmethod
    def event(handler, body):
        handler.wfile.write(b"data: " + json.dumps(body).encode() + b"\n\n")
        handler.wfile.flush()

    def load(self, handler, body):
        if not self.updates:
            return self.reply(handler, 404, {"detail": "Not Found"})
        name, path = body["lora_name"], body["lora_path"]
        if name in self.adapters:
            words = f"The lora adapter '{name}' has already been loaded."
            return self.error(handler, 400, "InvalidUserInput", words)
        if path not in self.files:
            words = f"Loading lora {name} failed: No adapter found for {path}"
            return self.error(handler, 404, "NotFoundError", words)
        self.adapters[name] = path
        self.reply(handler, 200, f"Success: LoRA adapter '{name}' added successfully.")

    def unload(self, handler, body):
        if not self.updates:
            return self.reply(handler, 404, {"detail": "Not Found"})
        name = body["lora_name"]
        if self.adapters.pop(name, None) is None:
            words = f"The lora adapter '{name}' cannot be found."
            return self.error(handler, 404, "NotFoundError", words)
        self.reply(handler, 200, f"Success: LoRA adapter '{name}' removed successfully.")

    def count(self, path):
        return self.asked.count(path)
