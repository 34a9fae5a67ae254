"""API keys: made once, kept as keyed digests, checked in memory.

A key is ``mr-<id>-<secret>``: ten public characters that name it, and 256 random bits. The store
keeps only HMAC-SHA256 of the whole under a pepper that comes from the environment, so that whoever
reads the database can neither use its keys nor try guesses. A check computes one digest and one
comparison in constant time, for unknown ids too; a key that was right is known by its SHA-256
until the keys are read again.

Checks read no database: the keys are in memory and read again every few seconds, after which a
new key works and a revoked one does not. While the database cannot be read the last known keys
are in force; before it was ever read nobody is let in.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
import string
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from decimal import Decimal, InvalidOperation
from typing import Final

from sqlalchemy import Engine, insert, select, update
from sqlalchemy.exc import SQLAlchemyError

from router_runtime.errors import ConfigError, DataError, RequestError
from router_runtime.service.store.tables import keys as table
from router_runtime.service.values import ANONYMOUS, Caller, KeyLimits
from router_runtime.service_config import KeysConfig
from router_runtime.types import Json

_log = logging.getLogger(__name__)

_ID_CHARS: Final = string.ascii_lowercase + string.digits
_ID_LENGTH: Final = 10
_LEAST_PEPPER: Final = 16
_NO_DIGEST: Final = bytes(32)
_MONEY: Final = ("usd_per_day", "usd_per_month")


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that was just created; the only time that it is there to be seen.

    Parameters
    ----------
    id : str
    key : str
        What a client sends.
    """

    id: str
    key: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """What is known of a key, which is not the key.

    Parameters
    ----------
    id, name : str
    allowed_models : tuple of str or None
    limits : KeyLimits
    created_at : float
        Seconds since the epoch.
    revoked_at : float or None
    """

    id: str
    name: str
    allowed_models: tuple[str, ...] | None
    limits: KeyLimits
    created_at: float
    revoked_at: float | None


def read_pepper(config: KeysConfig, environ: Mapping[str, str]) -> bytes | None:
    """Return the pepper from the environment; None where it is not set.

    Raises
    ------
    ConfigError
        It is too short to keep a secret.
    """
    value = environ.get(config.pepper_env, "").encode()
    if not value:
        return None
    if len(value) < _LEAST_PEPPER:
        raise ConfigError(
            f"{config.pepper_env} has {len(value)} bytes, fewer than {_LEAST_PEPPER}. Set it to "
            "what `openssl rand -hex 32` prints, and keep it: keys work with this pepper only."
        )
    return value


def need_pepper(config: KeysConfig, environ: Mapping[str, str]) -> bytes:
    """Return the pepper, without which keys can neither be made nor checked.

    Raises
    ------
    ConfigError
        It is not set, or too short.
    """
    pepper = read_pepper(config, environ)
    if pepper is None:
        raise ConfigError(
            f"{config.pepper_env} is not set. Set it to what `openssl rand -hex 32` prints, and "
            "keep it: keys work with this pepper only."
        )
    return pepper


def create_key(
    engine: Engine,
    pepper: bytes,
    *,
    name: str,
    allowed_models: Iterable[str] | None = None,
    limits: KeyLimits = KeyLimits(),
    now_s: float | None = None,
) -> NewKey:
    """Make a key and keep its digest.

    Parameters
    ----------
    engine : Engine
        A database that has the store's tables.
    pepper : bytes
    name : str
        Whose it is, for lists and reports.
    allowed_models : iterable of str or None
        Candidates that it may use; None: all.
    limits : KeyLimits
    now_s : float or None
        Seconds since the epoch; None: now.
    """
    key_id = "".join(secrets.choice(_ID_CHARS) for _ in range(_ID_LENGTH))
    key = f"mr-{key_id}-{secrets.token_urlsafe(32)}"
    row = {
        "id": key_id,
        "name": name,
        "digest": _digest(pepper, key.encode()).hex(),
        "allowed_models": None if allowed_models is None else sorted(set(allowed_models)),
        "limits": limits_to_json(limits),
        "created_at": time.time() if now_s is None else now_s,
        "revoked_at": None,
    }
    with engine.begin() as connection:
        connection.execute(insert(table).values(row))
    return NewKey(key_id, key)


def list_keys(engine: Engine) -> list[KeyInfo]:
    """Return every key ever made, oldest first.

    Raises
    ------
    DataError
        A row is not one that this version wrote.
    """
    with engine.connect() as connection:
        rows = connection.execute(select(table).order_by(table.c.created_at, table.c.id)).all()
    return [
        KeyInfo(
            id=row.id,
            name=row.name,
            allowed_models=None if row.allowed_models is None else tuple(row.allowed_models),
            limits=limits_from_json(row.limits, key_id=row.id),
            created_at=row.created_at,
            revoked_at=row.revoked_at,
        )
        for row in rows
    ]


def revoke_key(engine: Engine, key_id: str, *, now_s: float | None = None) -> bool:
    """Revoke a key for good; return whether it was in force.

    Raises
    ------
    ConfigError
        There is no such key.
    """
    at = time.time() if now_s is None else now_s
    with engine.begin() as connection:
        found = connection.execute(select(table.c.revoked_at).where(table.c.id == key_id)).first()
        if found is None:
            raise ConfigError(
                f"There is no key with the id '{key_id}'. `model-router keys list` shows them."
            )
        revoked = connection.execute(
            update(table)
            .where(table.c.id == key_id, table.c.revoked_at.is_(None))
            .values(revoked_at=at)
        )
    return bool(revoked.rowcount)


def limits_to_json(limits: KeyLimits) -> dict[str, Json]:
    """Return limits as JSON without what has no bound; dollars as strings, which are exact."""
    values = {f.name: getattr(limits, f.name) for f in fields(limits)}
    return {
        name: str(value) if name in _MONEY else value
        for name, value in values.items()
        if value is not None
    }


def limits_from_json(content: Json, *, key_id: str) -> KeyLimits:
    """Read what ``limits_to_json`` wrote; a limit that cannot be read is never "no limit".

    Raises
    ------
    DataError
        Naming the key and the limit.
    """
    known = {f.name for f in fields(KeyLimits)}
    if not isinstance(content, Mapping) or not known.issuperset(content):
        raise DataError(f"Key '{key_id}' has limits that this version does not know. Upgrade it.")
    values: dict[str, int | Decimal | None] = {}
    for name, value in content.items():
        try:
            values[name] = Decimal(value) if name in _MONEY else int(value)
            if not values[name] >= 0:  # type: ignore[operator]
                raise ValueError(name)
        except (InvalidOperation, TypeError, ValueError):
            raise DataError(
                f"Key '{key_id}': {name} is no number >= 0. Revoke the key and create another."
            ) from None
    return KeyLimits(**values)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class _Known:
    """The keys of one reading, and which were sent since: one that it lacks is right no more.

    Parameters
    ----------
    callers : mapping of id to (digest, Caller)
    checked : dict of SHA-256 to Caller
        Of whole keys that were right; as many entries at most as there are keys.
    """

    callers: Mapping[bytes, tuple[bytes, Caller]] = field(repr=False)
    checked: dict[bytes, Caller] = field(default_factory=dict, repr=False)


class Keys:
    """The keys in force, in memory; ``authenticate`` for requests, ``refresh`` for the database.

    Parameters
    ----------
    engine : Engine
        A database that has the store's tables.
    pepper : bytes or None
        None: there must be no keys, since none could be checked.
    refresh_s : float
        Seconds between readings of the database once started.
    """

    def __init__(self, engine: Engine, *, pepper: bytes | None, refresh_s: float = 2.0) -> None:
        self._engine = engine
        self._pepper = pepper
        self._refresh_s = refresh_s
        self._known: _Known | None = None
        self._any = True
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._unusable: frozenset[str] = frozenset()
        self.refresh_failures = 0
        self.stale = False

    @property
    def open_to_all(self) -> bool:
        """Whether no key was ever made, so that everybody is ``ANONYMOUS``.

        Revoking the last key does not open the service again.
        """
        return not self._any

    def authenticate(self, header: bytes | None) -> Caller:
        """Return who sends an ``Authorization`` header.

        Raises
        ------
        RequestError
            401 ``invalid_api_key``; 503 ``keys_unavailable`` while the keys were never read.
        """
        known = self._known
        if known is None:
            raise RequestError(
                "Keys cannot be checked: the database has not answered yet. Try again.",
                status=503,
                code="keys_unavailable",
                retry_after_s=self._refresh_s,
            )
        if not self._any:
            return ANONYMOUS
        if header is None or header[:7].lower() != b"bearer ":
            raise RequestError(
                "No API key was given. Send it as 'Authorization: Bearer mr-...'.",
                status=401,
                code="invalid_api_key",
            )
        key = header[7:].strip()
        mark = hashlib.sha256(key).digest()
        checked = known.checked.get(mark)
        if checked is not None:
            return checked
        digest, caller = known.callers.get(key[3 : 3 + _ID_LENGTH], (_NO_DIGEST, None))
        right = hmac.compare_digest(_digest(self._pepper or b"", key), digest)
        if not right or caller is None:
            raise RequestError(
                "The API key is not known or was revoked. Ask whoever runs this service for one.",
                status=401,
                code="invalid_api_key",
            )
        known.checked[mark] = caller
        return caller

    def load(self) -> None:
        """Read the keys for the first time.

        Raises
        ------
        ConfigError
            There are keys but no pepper to check them with.
        SQLAlchemyError
            The database cannot be read.
        """
        with self._engine.connect() as connection:
            rows = connection.execute(select(table)).all()
        if rows and self._pepper is None:
            self._any, self._known = True, _Known({})
            raise ConfigError(
                f"The database has {len(rows)} API keys, and no pepper is set to check them with. "
                "Set the variable that service.keys.pepper_env names to the one that they were "
                "made with."
            )
        known: dict[bytes, tuple[bytes, Caller]] = {}
        unusable = set()
        for row in rows:
            if row.revoked_at is not None:
                continue
            try:
                known[row.id.encode()] = (bytes.fromhex(row.digest), _caller(row))
            except (DataError, ValueError, TypeError):
                unusable.add(row.id)
        for key_id in unusable - self._unusable:
            _log.error("a key cannot be read and is refused", extra={"key_id": key_id})
        self._unusable = frozenset(unusable)
        self._any, self._known = bool(rows), _Known(known)  # in this order: never open by mistake

    def refresh(self) -> bool:
        """Read the keys again; keep those that are known where that fails, and return False."""
        try:
            self.load()
        except (SQLAlchemyError, ConfigError, OSError) as error:
            self.refresh_failures += 1
            if not self.stale:
                _log.warning(
                    "keys cannot be read; those last known are in force",
                    extra={"error_type": type(error).__name__},
                )
            self.stale = True
            return False
        self.stale = False
        return True

    def start(self) -> None:
        """Refresh in the background until ``close``."""
        self._thread = threading.Thread(target=self._run, name="keys", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop refreshing."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join(timeout=1.0)

    def status(self) -> dict[str, Json]:
        """Return what an operator should see."""
        return {
            "keys": 0 if self._known is None else len(self._known.callers),
            "open_to_all": self.open_to_all,
            "stale": self.stale,
            "unusable": sorted(self._unusable),
            "refresh_failures": self.refresh_failures,
        }

    def _run(self) -> None:
        while not self._closed.wait(self._refresh_s):
            self.refresh()


def _caller(row: Json) -> Caller:
    return Caller(
        key_id=row.id,
        name=row.name,
        allowed_models=None if row.allowed_models is None else frozenset(row.allowed_models),
        limits=limits_from_json(row.limits, key_id=row.id),
    )


def _digest(pepper: bytes, key: bytes) -> bytes:
    return hmac.digest(pepper, key, hashlib.sha256)
