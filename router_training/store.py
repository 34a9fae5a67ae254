"""Where stages keep what they made, so that an interrupted run continues.

A stage's folder is named by the stage and by a digest of everything that it depends on: its
config section, the code's format number and the digests of its inputs. A changed input therefore
gives another folder, and everything after it is made anew; nothing is ever invalidated by hand.
A folder is written under a temporary name and renamed when complete. In it stands how long it took
to make, so that who finds it later can still say so.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError

from router_runtime.artifact_folder import MANIFEST
from router_runtime.errors import ConfigError, MissingDependencyError, RouterError
from router_runtime.types import Json

T = TypeVar("T")

_FORMAT = 2  # raise when a stage's files change their meaning
_MADE = "made.json"  # in every stage's folder since there are times; older ones have none


def digest_of(value: Json) -> str:
    """Return the hex sha256 of a JSON value's canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


class StageStore:
    """Makes each stage's result once.

    Parameters
    ----------
    folder : Path
        The work folder; made when first needed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def stage(
        self,
        name: str,
        inputs: Json,
        *,
        make: Callable[[Path], bool | None],
        load: Callable[[Path], T],
    ) -> T:
        """Return ``load(folder)`` of the stage, calling ``make(folder)`` first if it is not there.

        Parameters
        ----------
        name : str
            The stage, part of the folder's name.
        inputs : JSON
            Everything that the result depends on.
        make : callable
            Writes the result into the empty folder that it is given. Returns False where some of
            the work had been done before, so that its time is not that of the whole.
        load : callable
            Reads it back; what it returns is what the next stage gets, fresh or resumed alike.

        Raises
        ------
        RouterError
            The work folder cannot be written or is full, or what it keeps is damaged.
        """
        final = self._folder_of(name, inputs)
        if not final.is_dir():
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                staging = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=self.folder))
            except OSError as error:
                raise RouterError(
                    f"Work folder '{self.folder}' cannot be written: {error}"
                ) from error
            try:
                start = time.perf_counter()
                whole = make(staging) is not False
                seconds = round(time.perf_counter() - start, 3) if whole else None
                (staging / _MADE).write_text(json.dumps({"seconds": seconds}), encoding="utf-8")
                staging.chmod(0o755)
                _publish(staging, final)
            except OSError as error:
                raise RouterError(
                    f"Stage '{name}' cannot be kept in '{self.folder}': {error.strerror or error}."
                ) from error
            finally:
                shutil.rmtree(staging, ignore_errors=True)
        try:
            return load(final)
        except MissingDependencyError:
            raise
        except (EOFError, LookupError, OSError, RouterError, SafetensorError, ValueError) as error:
            raise RouterError(
                f"What stage '{name}' kept in '{final}' is damaged ({error}). Delete that folder "
                "and run again."
            ) from error

    def seconds(self, name: str, inputs: Json) -> float | None:
        """Return how long it took to make a stage, whoever made it when.

        None where that is not known: the stage is not there, an earlier version made it, or some
        of its work had been done before.
        """
        try:
            return seconds_of(json.loads((self._folder_of(name, inputs) / _MADE).read_bytes()))
        except (OSError, ValueError):
            return None

    def _folder_of(self, name: str, inputs: Json) -> Path:
        return self.folder / f"{name}-{digest_of([_FORMAT, name, inputs])[:16]}"


def seconds_of(told: Json, name: str = "seconds") -> float | None:
    """Return an entry of a JSON object if it can be a time in seconds, else None."""
    value: Json = told.get(name) if isinstance(told, dict) else None
    known = type(value) in (int, float) and math.isfinite(value) and value >= 0
    return float(value) if known else None


def refuse_artifact_folder(folder: Path) -> None:
    """Refuse to write into an artifact's folder: one file more and it loads no longer.

    Raises
    ------
    ConfigError
        It is one.
    """
    if (folder / MANIFEST).is_file():
        raise ConfigError(
            f"'{folder}' is an artifact's folder, which a file more would make unreadable; write "
            "somewhere else."
        )


def write_whole(path: Path, content: bytes) -> None:
    """Write a file by way of a temporary one beside it, making its folder.

    Raises
    ------
    RouterError
        The folder is an artifact's, or cannot be written.
    """
    refuse_artifact_folder(path.parent)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}-", delete=False
        ) as file:
            temporary = Path(file.name)
            file.write(content)
        temporary.chmod(0o644)  # temporary files are private; a report is not
        os.replace(temporary, path)
    except OSError as error:
        raise RouterError(f"'{path}' cannot be written: {error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _publish(staging: Path, final: Path) -> None:
    try:
        os.replace(staging, final)
    except OSError:
        if not final.is_dir():  # it is there where another run made the same stage meanwhile
            raise
