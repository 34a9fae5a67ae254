"""What is installed, what works and what can be reached: the checks of ``model-router doctor``.

Every check returns findings and raises nothing that a user could cause. No finding holds a key, a
password or the value of a variable. Servers are asked without a key, so that any answer, also a
refusal, shows that one is there.
"""

from __future__ import annotations

import http.client
import os
import platform
import re
import shutil
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import urlsplit

import PIL.Image

from router_runtime import __version__
from router_runtime.artifacts import FORMAT_VERSION, READ_VERSIONS
from router_runtime.base_artifact import base_artifact
from router_runtime.config import CandidateConfig, RuntimeConfig, load_config
from router_runtime.errors import MissingDependencyError, RouterError
from router_runtime.model_router import ModelRouter
from router_runtime.prediction.encoders import ENCODER_KINDS, check_encoder
from router_runtime.prediction.feature_parts import FeatureParts
from router_runtime.target_config import AzureTargetConfig, LoraVllmTargetConfig, PeftTargetConfig
from router_runtime.types import Image, Json

if TYPE_CHECKING:
    from router_runtime.service_config import ServiceConfig

Status = Literal["ok", "note", "problem"]

TIMEOUT_S: Final = 5.0
"""Of each attempt to reach something."""

LEAST_FREE_BYTES: Final = 256 * 2**20
"""Free bytes below which a work folder is a problem."""

_REQUIREMENT = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?([^;]*)(?:;.*extra == \"([^\"]+)\")?")
_AT_LEAST = re.compile(r">=\s*([0-9.]+)")
_PROGRAM: Final = "model-router"
_OUTSIDE: Final = {
    "embedded": "needs no library and no weights",
    "remote": "its library loads; a server has the weights",
}
_GATHERING: Final = ("all", "dev")  # extras that only name others, or what tests need


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Parameters
    ----------
    section : str
        ``versions``, ``extras``, ``encoders``, ``artifacts``, ``config``, ``services`` or ``disk``.
    name : str
    status : {"ok", "note", "problem"}
        A note is nothing that would have to be mended, such as an extra that is not installed.
    detail : str
        What was found and, of a problem, the remedy.
    """

    section: str
    name: str
    status: Status
    detail: str


def examine(config: Path | None = None) -> tuple[Finding, ...]:
    """Look at everything.

    Parameters
    ----------
    config : Path, optional
        A runtime config, whose artifact, services and folders are looked at too.
    """
    found = [*versions(), *extras(), *encoders(), base_router()]
    found += disk({"model cache": _model_cache()}, LEAST_FREE_BYTES)
    if config is None:
        return (*found, *disk({"current folder": Path.cwd()}, LEAST_FREE_BYTES))
    try:
        settled = load_config(config)
    except RouterError as error:
        return (*found, Finding("config", str(config), "problem", str(error)))
    folder = config.resolve().parent
    found.append(Finding("config", str(config), "ok", f"{len(settled.candidates)} candidates"))
    found += _artifact(settled)
    found += _targets((*settled.candidates, *settled.direct))
    found += _service(settled.service, folder)
    return tuple(found)


# --------------------------------------------------------------------------- this installation


def versions() -> Iterator[Finding]:
    """Yield what runs here."""
    read = ", ".join(map(str, READ_VERSIONS))
    formats = f"artifact format {FORMAT_VERSION} (reads {read})"
    yield Finding("versions", _PROGRAM, "ok", f"{__version__}, {formats}")
    yield Finding("versions", "Python", "ok", f"{platform.python_version()}, {platform.platform()}")
    yield Finding("versions", "processor", "ok", f"{platform.machine()}, {os.cpu_count()} cores")
    for name in ("numpy", "pillow", "pydantic", "safetensors"):
        found = _installed(name)
        if found is None:
            yield Finding("versions", name, "problem", f"missing; reinstall {_PROGRAM}")
        else:
            yield Finding("versions", name, "ok", found)


def extras() -> Iterator[Finding]:
    """Yield for each extra which of its packages are there, in which version."""
    try:
        listed = requires(_PROGRAM) or []
    except PackageNotFoundError:
        yield Finding("extras", _PROGRAM, "note", "not installed by pip: extras are not known")
        return
    wanted: dict[str, list[tuple[str, str]]] = {}
    for line in listed:
        if (match := _REQUIREMENT.match(line)) and match[3] and match[3] not in _GATHERING:
            wanted.setdefault(match[3], []).append((match[1], match[2]))
    for extra, packages in wanted.items():
        yield _extra(extra, packages)


def _extra(extra: str, packages: list[tuple[str, str]]) -> Finding:
    told, missing, old = [], [], []
    for name, bound in packages:
        found = _installed(name)
        if found is None:
            missing.append(name)
            continue
        told.append(f"{name} {found}")
        least = _AT_LEAST.search(bound)
        if least and _release(found) < _release(least[1]):
            old.append(f"{name} {found} is older than {least[1]}")
    command = f"pip install '{_PROGRAM}[{extra}]'"
    if old:
        return Finding("extras", extra, "problem", f"{', '.join(old)}; {command}")
    if missing:
        return Finding("extras", extra, "note", f"missing {', '.join(missing)}; {command}")
    return Finding("extras", extra, "ok", ", ".join(told))


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _release(text: str) -> tuple[int, ...]:
    found = re.match(r"[0-9]+(?:\.[0-9]+)*", text)
    return tuple(map(int, found[0].split("."))) if found else ()


def encoders() -> Iterator[Finding]:
    """Yield for each kind of encoder whether its library loads, and where it would compute.

    Weights are not loaded: with a config, its own encoders are tried.
    """
    for kind in ENCODER_KINDS:
        try:
            check_encoder(kind)
        except MissingDependencyError as error:
            yield Finding("encoders", kind, "note", str(error))
        except (ImportError, OSError, RuntimeError) as error:  # a library that does not load
            yield Finding("encoders", kind, "problem", f"does not load: {_line(error)}")
        else:
            yield Finding("encoders", kind, "ok", _OUTSIDE.get(kind, "its library loads"))
    torch = sys.modules.get("torch")
    if torch is not None:
        n = torch.cuda.device_count()
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(n))
        yield Finding("encoders", "device", "ok", names or "cpu (no GPU that PyTorch can use)")


def _model_cache() -> Path:
    """Return where the hub's client keeps weights that it downloads."""
    home = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").absolute()


def base_router() -> Finding:
    """Say whether the base artifact routes a text and a picture."""
    folder = base_artifact()
    if not folder.is_dir():
        detail = f"'{folder}' is missing; name an artifact, or reinstall {_PROGRAM}"
        return Finding("artifacts", "base", "problem", detail)
    try:
        router = ModelRouter(folder, device="cpu")
        for pictures in ((), (_dot(),)):
            router.decide("What is shown?", pictures)
    except RouterError as error:
        return Finding("artifacts", "base", "problem", str(error))
    models = ", ".join(router.model_ids)
    return Finding("artifacts", "base", "ok", f"{router.artifact.artifact_id}: {models}")


def _dot() -> Image:
    """Return a black picture of one pixel."""
    buffer = BytesIO()
    PIL.Image.new("RGB", (1, 1)).save(buffer, "PNG")
    return Image(buffer.getvalue(), "image/png")


# --------------------------------------------------------------------------- what a config names


def _artifact(config: RuntimeConfig) -> Iterator[Finding]:
    try:
        router = ModelRouter.from_config(config)
    except RouterError as error:
        yield Finding("artifacts", str(config.artifact), "problem", str(error))
        return
    encoders = ", ".join(router.artifact.parts.encoders) or router.artifact.parts.kind
    told = f"{router.artifact.artifact_id}: {', '.join(router.model_ids)}; {encoders}"
    yield Finding("artifacts", str(config.artifact), "ok", told)
    parts = router.artifact.parts
    if not isinstance(parts, FeatureParts):
        return
    remote = [spec for spec in parts.features.encoders if spec.kind == "remote"]
    for spec in remote:
        yield reached("embedding server", config.encoder.url or spec.url)
    if not remote:
        yield _tried(router, encoders)


def _tried(router: ModelRouter, encoders: str) -> Finding:
    """Say whether a text goes through the encoders, the head and the policy."""
    try:
        decision = router.decide("What is 17 + 25?")
    except RouterError as error:
        return Finding("encoders", encoders, "problem", f"a text was not routed: {error}")
    return Finding(
        "encoders", encoders, "ok", f"a text was encoded and given to {decision.model_id}"
    )


def _targets(candidates: tuple[CandidateConfig, ...]) -> Iterator[Finding]:
    for candidate in candidates:
        target, name = candidate.target, f"target of {candidate.id}"
        if target is None:
            yield Finding("services", name, "note", "none is configured; it cannot be called")
            continue
        if target.api_key_env and not os.environ.get(target.api_key_env, "").strip():
            detail = f"{target.api_key_env} is not set; put the key into it"
            yield Finding("services", f"key of {candidate.id}", "problem", detail)
        if isinstance(target, PeftTargetConfig):
            there = target.experts.is_file()
            detail = f"'{target.experts}' {'is there' if there else 'does not exist'}"
            yield Finding("services", name, "ok" if there else "problem", detail)
            continue
        if isinstance(target, LoraVllmTargetConfig):
            urls = target.base_urls
        else:
            urls = (target.endpoint if isinstance(target, AzureTargetConfig) else target.base_url,)
        for url in urls:
            yield reached(name, url)


def reached(name: str, url: str) -> Finding:
    """Say whether an HTTP server answers at a URL, whatever it answers."""
    parts = urlsplit(url)
    shown = f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}"
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", f"{parts.path.rstrip('/')}/models")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        detail = f"{shown} does not answer ({_line(error)}); start it, or correct its URL"
        return Finding("services", name, "problem", detail)
    finally:
        connection.close()
    return Finding("services", name, "ok", f"{shown} answers (status {status} without a key)")


def _service(settings: ServiceConfig, folder: Path) -> Iterator[Finding]:
    try:
        from router_runtime.service.store.engine import located
    except ModuleNotFoundError as error:
        detail = str(MissingDependencyError(error.name or "sqlalchemy", "service"))
        yield Finding("services", "database", "note", detail)
        return
    try:
        store = located(settings.store, folder)
    except RouterError as error:
        yield Finding("services", "database", "problem", str(error))
        return
    yield listening(settings.host, settings.port)
    yield _database(store.url)
    if settings.redis_url is not None:
        yield _redis(settings.redis_url)
    folders = {"spool": store.spool}
    if store.url.startswith("sqlite:///"):
        folders["database"] = Path(store.url.removeprefix("sqlite:///")).parent
    yield from disk(folders, max(LEAST_FREE_BYTES, settings.store.max_spool_bytes))


def listening(host: str, port: int) -> Finding:
    """Say whether the service could listen at a port: whether nobody does so far."""
    shown = f"port {port}"
    try:
        with socket.create_connection((host, port), timeout=TIMEOUT_S):
            detail = f"somebody listens at {host}:{port}; if it is not this service, end it"
            return Finding("services", shown, "note", detail)
    except OSError:
        return Finding("services", shown, "ok", f"nobody listens at {host}:{port} yet")


def _database(url: str) -> Finding:
    from sqlalchemy.exc import SQLAlchemyError

    from router_runtime.service.store.engine import open_engine, require_current

    try:
        engine = open_engine(url)
        file = Path(engine.url.database or "")
        if engine.dialect.name == "sqlite" and not file.is_file():
            return Finding("services", "database", "note", f"'{file}' is made at the first start")
        try:
            require_current(engine)
        finally:
            engine.dispose()
    except RouterError as error:
        return Finding("services", "database", "problem", str(error))
    except SQLAlchemyError as error:
        detail = f"does not answer ({type(error).__name__}); start it, or correct 'store.url'"
        return Finding("services", "database", "problem", detail)
    return Finding("services", "database", "ok", f"{engine.dialect.name}, tables are current")


def _redis(url: str) -> Finding:
    try:
        from redis import Redis
        from redis.exceptions import RedisError
    except ModuleNotFoundError:
        detail = str(MissingDependencyError("redis", "service"))
        return Finding("services", "Redis", "problem", detail)
    try:
        with Redis.from_url(
            url, socket_connect_timeout=TIMEOUT_S, socket_timeout=TIMEOUT_S
        ) as client:
            client.ping()
    except (RedisError, OSError, ValueError) as error:
        # The message of a refused log-in or a malformed URL could repeat what is in the URL.
        detail = f"does not answer ({type(error).__name__}); start it, or correct 'redis_url'"
        return Finding("services", "Redis", "problem", detail)
    return Finding("services", "Redis", "ok", "answers")


def disk(folders: dict[str, Path], least: int) -> Iterator[Finding]:
    """Yield for each folder whether it can be written and has so many bytes left.

    Parameters
    ----------
    folders : dict of name to Path
        Those that are not there yet are judged by the next one above them.
    least : int
        Bytes.
    """
    for name, wanted in folders.items():
        there = next(path for path in (wanted, *wanted.parents) if path.is_dir())
        free = shutil.disk_usage(there).free
        told = f"'{wanted}': {free / 2**30:.1f} GiB free"
        if not os.access(there, os.W_OK):
            yield Finding("disk", name, "problem", f"'{there}' cannot be written; mend its rights")
        elif free < least:
            detail = f"{told}, less than {least / 2**30:.1f}; make room, or move it"
            yield Finding("disk", name, "problem", detail)
        else:
            yield Finding("disk", name, "ok", told)


def to_json(found: tuple[Finding, ...]) -> Json:
    """Return the findings as plain values."""
    return {
        "ok": all(finding.status != "problem" for finding in found),
        "findings": [vars(finding) for finding in found],
    }


def _line(error: BaseException) -> str:
    said = str(getattr(error, "strerror", None) or error)
    return " ".join(said.split())[:200] or type(error).__name__
