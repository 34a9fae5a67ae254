"""Records as a folder of Parquet files: written as they come, there wholly or not at all.

A folder holds ``part-00000.parquet`` and so on, and ``_records.json``, which names them with their
rows. Whoever writes may put further ``_*.json`` files beside it. ``formats.read_rows`` reads such
a folder back as one file.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from router_runtime.errors import ConfigError, RouterError
from router_runtime.types import Json
from router_training.formats import RECORDS_FILE, parquet_module

_FORMAT: Final = 1
_OURS: Final = re.compile(r"part-\d{5,}\.parquet|_[\w.-]+\.json")


def part_name(number: int) -> str:
    """Return the name of the file with this number, counted from 0."""
    return f"part-{number:05d}.parquet"


class PartWriter:
    """Writes records into numbered Parquet files of a folder that is there.

    Parameters
    ----------
    folder : Path
    columns : mapping
        As in ``parquet.write``.
    rows_per_part : int
        Rows of every file but the last.
    """

    def __init__(self, folder: Path, columns: Mapping[str, Json], *, rows_per_part: int) -> None:
        self._folder = folder
        self._columns = dict(columns)
        self._rows_per_part = rows_per_part
        self._part: Any = None  # a parquet.Appender, whose module needs pyarrow
        self._rows: list[int] = []

    @property
    def rows(self) -> tuple[int, ...]:
        """Rows per file so far."""
        return tuple(self._rows)

    def write(self, record: Mapping[str, Json]) -> None:
        """Append one record."""
        if self._part is None:
            path = self._folder / part_name(len(self._rows))
            self._part = parquet_module().Appender(path, self._columns)
            self._rows.append(0)
        self._part.append(record)
        self._rows[-1] += 1
        if self._rows[-1] == self._rows_per_part:
            self.close()

    def close(self) -> None:
        """End the file that is being written."""
        if self._part is not None:
            part, self._part = self._part, None
            part.close()

    def abandon(self) -> None:
        """Close the file that is being written as it is."""
        if self._part is not None:
            part, self._part = self._part, None
            part.abandon()

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()


class ShardWriter:
    """Writes a folder of Parquet files that appears when the ``with`` block ends without an error.

    An older folder of the same kind is replaced; nothing else ever is.

    Parameters
    ----------
    folder : Path
        Written under a temporary name beside it, and renamed.
    columns : mapping
        As in ``parquet.write``.
    rows_per_shard : int
        Rows of every file but the last.

    Raises
    ------
    ConfigError
        On entering: the folder holds something that no such writer made.
    RouterError
        The folder cannot be written.

    Examples
    --------
    >>> with ShardWriter(folder, {"idx": "string"}, rows_per_shard=1000) as shards:
    ...     shards.write({"idx": "7"})
    """

    def __init__(self, folder: Path, columns: Mapping[str, Json], *, rows_per_shard: int) -> None:
        self._folder = folder
        self._columns = columns
        self._rows_per_shard = rows_per_shard

    def __enter__(self) -> ShardWriter:
        _refuse_foreign(self._folder)
        try:
            self._folder.parent.mkdir(parents=True, exist_ok=True)
            name = tempfile.mkdtemp(prefix=f".{self._folder.name}-", dir=self._folder.parent)
        except OSError as error:
            raise _unwritable(self._folder, error) from error
        self._staging = Path(name)
        self._parts = PartWriter(self._staging, self._columns, rows_per_part=self._rows_per_shard)
        return self

    def write(self, record: Mapping[str, Json]) -> None:
        """Append one record.

        Raises
        ------
        RouterError
            The disk is full or fails.
        """
        try:
            self._parts.write(record)
        except OSError as error:
            raise _unwritable(self._folder, error) from error

    def add(self, name: str, content: bytes) -> None:
        """Put a file named ``_*.json`` beside the records.

        Raises
        ------
        ConfigError
            Another name, or that of the list of files.
        """
        if not (name.startswith("_") and _OURS.fullmatch(name)) or name == RECORDS_FILE:
            raise ConfigError(f"{name!r} must be '_*.json' and not {RECORDS_FILE!r}.")
        (self._staging / name).write_bytes(content)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._parts.close()
                self._finish()
            else:
                self._parts.abandon()
        except OSError as failure:
            if kind is None:
                raise _unwritable(self._folder, failure) from failure
        finally:
            shutil.rmtree(self._staging, ignore_errors=True)

    def _finish(self) -> None:
        parts = [{"file": part_name(at), "rows": n} for at, n in enumerate(self._parts.rows)]
        listed = {"format": _FORMAT, "rows": sum(self._parts.rows), "parts": parts}
        (self._staging / RECORDS_FILE).write_text(json.dumps(listed, indent=1) + "\n")
        self._staging.chmod(0o755)  # temporary folders are private; records are not
        _replace(self._staging, self._folder)


def _refuse_foreign(folder: Path) -> None:
    if not folder.exists() and not folder.is_symlink():
        return
    if not folder.is_dir() or folder.is_symlink():
        raise ConfigError(f"'{folder}' is no folder; choose another output.")
    names = set(os.listdir(folder))
    foreign = sorted(name for name in names if not _OURS.fullmatch(name))
    if foreign or (names and RECORDS_FILE not in names):
        shown = foreign[0] if foreign else min(names)
        raise ConfigError(
            f"'{folder}' holds '{shown}', which was not written as records; choose another output "
            "folder, or empty it."
        )


def _replace(staging: Path, folder: Path) -> None:
    """Put one folder in the place of another; between two renames neither is there."""
    if not folder.exists():
        os.replace(staging, folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
    try:
        os.replace(folder, old)
        os.replace(staging, folder)
    except OSError:
        if not folder.exists():
            os.replace(old, folder)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _unwritable(folder: Path, error: OSError) -> RouterError:
    return RouterError(f"'{folder}' cannot be written: {error.strerror or error}.")
