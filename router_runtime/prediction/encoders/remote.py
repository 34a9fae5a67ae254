"""Encoders behind HTTP: NV-CLIP's OpenAI-style ``/v1/embeddings``, and clip-as-service's ``/post``.

What leaves the machine is the text windows and the pictures of the queries, to the configured
server and nowhere else; redirects are not followed. The key is read from the environment when the
encoder is built and goes into one header; no message or log line contains it, or any text.

The server truncates long texts in a way that this side cannot know. Texts are therefore cut by
characters into windows of ``WINDOW_CHARS``, which CLIP's 77 tokens hold for prose, by the rule of
``windows``: the first and the last ``MAX_WINDOWS - 1``, pooled as there.

An embedding is the same whenever it is asked for, so a request is repeated after a lost connection
and after 429 and 5xx answers, at most ``ATTEMPTS`` times in all. It is not repeated after a timeout
while reading: the server is then too slow for ``timeout_s``, and would only become slower.
"""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import httpx
import numpy as np

from router_runtime.errors import EncoderError
from router_runtime.prediction.encoders.base import (
    absent_half,
    checked,
    encode_distinct,
    fingerprint_of,
    well_formed,
)
from router_runtime.prediction.encoders.specs import EncoderRuntime, RemoteSpec
from router_runtime.prediction.encoders.windows import pool_windows, spans
from router_runtime.types import F32, Image, Json

WINDOW_CHARS = 240
MAX_WINDOWS = 8
ATTEMPTS = 4

_BACKOFF_S = 0.2  # doubled after each attempt
_LONGEST_WAIT_S = 10.0  # most that a server's Retry-After is obeyed
_RETRIED_STATUS = frozenset({429, 500, 502, 503, 504})
_RETRIED_ERRORS = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.ReadError,
    httpx.RemoteProtocolError,
)

_Field = Literal["text", "uri"]


@dataclass(frozen=True)
class _Wire:
    """One protocol: where to post, what to post, and how to find the vectors in the answer."""

    path: str
    body: Callable[[Sequence[str], _Field, str], Json]
    rows: Callable[[Json], list[Any]]


def _nvclip_body(inputs: Sequence[str], field: _Field, model: str) -> Json:
    """Return the request of NV-CLIP, which tells pictures from texts by their ``data:`` alone.

    A text that begins like a data URI gets a space in front, so that what a user writes is never
    opened as a picture; an empty text, which such servers refuse, becomes a space.
    """
    if field == "text":
        inputs = [
            f" {text}" if not text or text.lstrip().lower().startswith("data:") else text
            for text in inputs
        ]
    return {"input": list(inputs), "model": model, "encoding_format": "float"}


def _nvclip_rows(answer: Json) -> list[Any]:
    """Return the vectors in the order of the inputs; the answer's order means nothing."""
    rows = {item["index"]: item["embedding"] for item in answer["data"]}
    return [rows[index] for index in range(len(answer["data"]))]


def _clip_as_service_body(inputs: Sequence[str], field: _Field, model: str) -> Json:
    """Return the request of clip-as-service; its documents say whether they are texts."""
    return {"data": [{field: item} for item in inputs], "execEndpoint": "/"}


def _clip_as_service_rows(answer: Json) -> list[Any]:
    return [document["embedding"] for document in answer["data"]]


_WIRES = {
    "nvclip": _Wire("/v1/embeddings", _nvclip_body, _nvclip_rows),
    "clip-as-service": _Wire("/post", _clip_as_service_body, _clip_as_service_rows),
}


class RemoteEncoder:
    """An ``Encoder`` on an embedding server; may be used by several threads at once.

    Its fingerprint names the model that the server is told or trusted to serve. What the server
    really runs cannot be seen from here: whoever changes its weights must retrain.

    Parameters
    ----------
    spec : RemoteSpec
        Protocol, server, model and dimension.
    runtime : EncoderRuntime
        Batch size, timeout, and what overrides the spec's ``url`` and ``api_key_env``.

    Raises
    ------
    EncoderError
        The URL is no HTTP URL, or the named environment variable is not set. The server itself is
        first asked when something is encoded.
    """

    kind = "remote"
    frozen = None  # the server's

    def __init__(self, spec: RemoteSpec, runtime: EncoderRuntime = EncoderRuntime()) -> None:
        self.text_dim = spec.dim
        self.image_dim = spec.dim if spec.image_half else 0
        self._spec = spec
        self._wire = _WIRES[spec.protocol]
        self._batch_size = runtime.batch_size
        url = _endpoint(runtime.url or spec.url, self._wire.path)
        self._url = url.copy_with(username="", password="")  # httpx logs URLs
        self._server = f"{url.scheme}://{url.netloc.decode('ascii')}"
        self._client = httpx.Client(
            auth=(url.username, url.password) if url.userinfo else None,
            headers=_authorization(runtime.api_key_env or spec.api_key_env),
            timeout=runtime.timeout_s,
            follow_redirects=False,
        )
        self.fingerprint = fingerprint_of(
            {
                "kind": self.kind,
                "protocol": spec.protocol,
                "model": spec.model,
                "windows": {
                    "rule": "first and last, full, ending at the end",
                    "pooling": "mean direction, mean norm",
                    "chars": WINDOW_CHARS,
                    "max_windows": MAX_WINDOWS,
                },
                "dims": [self.text_dim, self.image_dim],
            }
        )

    def encode_texts(self, texts: Sequence[str]) -> F32:
        cuts = [_windows(text) for text in texts]
        vectors = self._encode([window for cut in cuts for window in cut], "text")
        return pool_windows(vectors, [len(cut) for cut in cuts])

    def encode_images(self, images: Sequence[Image]) -> F32:
        if not self.image_dim:
            return absent_half(len(images))
        return encode_distinct(
            images,
            lambda batch: self._ask([_data_uri(image) for image in batch], "uri"),
            dim=self.image_dim,
            batch_size=self._batch_size,
            key=lambda image: image.sha256,
        )

    def _encode(self, inputs: Sequence[str], field: _Field) -> F32:
        return encode_distinct(
            inputs,
            lambda batch: self._ask(batch, field),
            dim=self.text_dim,
            batch_size=self._batch_size,
            key=lambda text: text,
            size=len,
        )

    def _ask(self, inputs: Sequence[str], field: _Field) -> F32:
        """Send one batch and return its checked vectors."""
        response = self._post(self._wire.body(inputs, field, self._spec.model))
        try:
            rows = self._wire.rows(response.json())
            with np.errstate(over="ignore"):  # beyond float32 is infinite, which is refused below
                vectors = np.asarray(rows, dtype=np.float32)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            media_type = response.headers.get("content-type", "no content type")
            raise EncoderError(
                f"{self._server} answered {media_type.partition(';')[0]} that is no list of "
                f"embeddings of the protocol '{self._spec.protocol}'. Check the URL and 'protocol'."
            ) from error
        if len(rows) != len(inputs):
            raise EncoderError(
                f"{self._server} answered {len(rows)} embeddings for {len(inputs)} inputs. Lower "
                "'batch_size' if it cuts batches off."
            )
        try:
            return checked(vectors, rows=len(inputs), dim=self._spec.dim)
        except EncoderError as error:
            raise EncoderError(f"{self._server}: {error}") from error

    def _post(self, body: Json) -> httpx.Response:
        problem = ""
        for attempt in range(ATTEMPTS):
            wait_s = _BACKOFF_S * 2**attempt
            try:
                response = self._client.post(self._url, json=body)
            except _RETRIED_ERRORS as error:
                problem = f"cannot be reached ({type(error).__name__})"
            except httpx.HTTPError as error:
                raise EncoderError(
                    f"embedding server {self._server} failed: {type(error).__name__}. If it is "
                    "slow, raise 'timeout_s' or lower 'batch_size'."
                ) from error
            else:
                if response.status_code == httpx.codes.OK:
                    return response
                problem = f"answered status {response.status_code}"
                if response.status_code not in _RETRIED_STATUS:
                    break
                wait_s = max(wait_s, _retry_after_s(response.headers))
            if attempt + 1 < ATTEMPTS:
                time.sleep(wait_s)
        raise EncoderError(
            f"embedding server {self._server} {problem}. Check that it runs, that 'url' and "
            f"'model' ('{self._spec.model}') are right, and that 'api_key_env' names a valid key "
            "if it needs one."
        )


def _windows(text: str) -> list[str]:
    text = well_formed(text)
    return [text[start:stop] for start, stop in spans(len(text), WINDOW_CHARS, MAX_WINDOWS)]


def _data_uri(image: Image) -> str:
    return f"data:{image.media_type};base64,{base64.b64encode(image.data).decode('ascii')}"


def _endpoint(url: str, path: str) -> httpx.URL:
    """Return where to post, for ``http://host:8000`` as well as ``http://host:8000/v1``."""
    try:
        base = httpx.URL(url.rstrip("/").removesuffix("/v1"))
    except httpx.InvalidURL as error:
        raise EncoderError(
            "the embedding server's 'url' is no URL, such as http://host:8000."
        ) from error
    if base.scheme in ("grpc", "grpcs"):
        raise EncoderError(
            f"'{base.scheme}://{base.netloc.decode('ascii')}' is a gRPC address. Serve "
            "clip-as-service over HTTP ('protocol: http' under 'with' in its flow file) and give "
            "'http://host:port'."
        )
    if base.scheme not in ("http", "https") or not base.host:
        raise EncoderError(
            "the embedding server's 'url' must begin with http:// or https:// and name a host, "
            "such as http://127.0.0.1:8000."
        )
    return base.copy_with(path=base.path.rstrip("/") + path)


def _authorization(api_key_env: str | None) -> dict[str, str]:
    if api_key_env is None:
        return {}
    key = os.environ.get(api_key_env, "").strip()
    if not key:
        raise EncoderError(
            f"environment variable '{api_key_env}' is not set, but 'api_key_env' of the embedding "
            "server names it. Set it, or remove 'api_key_env'."
        )
    if not (key.isascii() and key.isprintable()):
        raise EncoderError(
            f"environment variable '{api_key_env}' holds characters that no HTTP header may carry."
        )
    return {"Authorization": f"Bearer {key}"}


def _retry_after_s(headers: Mapping[str, str]) -> float:
    """Return the seconds that ``Retry-After`` asks for, 0 for dates and nonsense."""
    value = headers.get("retry-after", "")
    return min(float(value), _LONGEST_WAIT_S) if value.isascii() and value.isdigit() else 0.0
