"""One adapter's data set becomes rows of conversations whose pictures are proven to decode.

A JSON or JSON lines file whose rows have ``conversations`` is kept as it is written. Any other
data set that labelling reads (``labelling.sources``) becomes conversations: ``<image>`` for each
picture, the request as ``human``, the answer as ``gpt``; of its other columns only id and group are
kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from router_runtime.errors import DataError
from router_runtime.images import DEFAULT_LIMITS, ImageLimits
from router_runtime.messages import TextRule
from router_runtime.types import Image, Json
from router_training.formats import Row, read_rows
from router_training.labelling.config import SourceConfig
from router_training.labelling.sources import Source, locate, read_located
from router_training.labels import OnBadRow
from router_training.pictures import PLACEHOLDER, Pictures
from router_training.routing.options import AdapterOptions
from router_training.samples import read_record

_SPEAKERS: Final = {"system": "system", "user": "human", "assistant": "gpt"}
_READ: Final = ("id", "image", "images", "group", "conversations")
_SUFFIXES: Final = {
    "image/png": ".png",
    "image/jpeg": ".jpg",
    "image/webp": ".webp",
    "image/gif": ".gif",
}


@dataclass(frozen=True)
class AdapterRow:
    """A row of an adapter's data set.

    Parameters
    ----------
    adapter : str
    number : int
        The row's number in its source; with several files, numbered through.
    source_id : str or None
    conversations : list
        Turns with ``from`` and ``value``.
    metadata : mapping
        As in the source.
    pictures : tuple of str
        Names in the picture store.
    keys : frozenset of str
        What no other part may have: digests of the pictures, the group, or, without either, of the
        text.
    """

    adapter: str
    number: int
    source_id: str | None
    conversations: list[Json]
    metadata: Mapping[str, Json]
    pictures: tuple[str, ...]
    keys: frozenset[str]


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used, and why."""

    adapter: str
    file: str
    row: int
    field: str | None
    reason: str


@dataclass(frozen=True)
class AdapterData:
    """What was read of one adapter.

    Parameters
    ----------
    rows : tuple of AdapterRow
    bad : tuple of BadRow
    kind : str
        As in ``labelling.sources``.
    sha256 : str or None
        Of the content of local files; of a hub data set its commit; None of other folders.
    """

    rows: tuple[AdapterRow, ...]
    bad: tuple[BadRow, ...]
    kind: str
    sha256: str | None


class PictureStore:
    """A folder of pictures, each kept once under a digest of its content."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, image: Image) -> str:
        """Keep a picture and return its name."""
        name = f"{image.sha256[:32]}{_SUFFIXES[image.media_type]}"
        path = self._folder / name
        if not path.exists():
            path.write_bytes(image.data)
        return name

    def keep_only(self, names: set[str]) -> None:
        """Delete all others."""
        for path in self._folder.iterdir():
            if path.name not in names:
                path.unlink()


def read_adapter(
    options: AdapterOptions,
    *,
    store: PictureStore,
    on_bad_row: OnBadRow = "error",
    limits: ImageLimits = DEFAULT_LIMITS,
) -> AdapterData:
    """Read one adapter's data set, checking every row and picture.

    Parameters
    ----------
    options : AdapterOptions
    store : PictureStore
        Gets the pictures.
    on_bad_row : {"error", "skip"}
        Whether a row that cannot be used ends the reading or is listed.
    limits : ImageLimits
        For every picture.

    Raises
    ------
    DataError
        Naming file, row and field; also where no row can be used.
    """
    source = locate(SourceConfig(path=options.dataset, image_root=options.image_root))
    if options.image_root is not None and not options.image_root.is_dir():
        raise DataError("The folder of pictures does not exist.", file=str(options.image_root))
    pictures = Pictures(source.image_root, limits=limits)
    rows: list[AdapterRow] = []
    bad: list[BadRow] = []
    for row in _conversation_rows(source):
        try:
            if isinstance(row.value, DataError):
                raise row.value
            rows.append(_adapter_row(row.value, row.number, options.adapter, pictures, store))
        except DataError as error:
            if on_bad_row == "error":
                raise DataError(
                    error.reason, file=options.dataset, row=row.number, field=error.field
                ) from error
            found = BadRow(options.adapter, options.dataset, row.number, error.field, error.reason)
            bad.append(found)
    if not rows:
        first = f", the first because: {bad[0].reason}" if bad else ""
        raise DataError(f"No row can be used{first}", file=options.dataset)
    return AdapterData(tuple(rows), tuple(bad), source.kind, _digest(source))


def _conversation_rows(source: Source) -> Iterator[Row]:
    if source.kind == "json" and len(source.files) == 1:
        first = next((row.value for row in read_rows(source.files[0])), None)
        if isinstance(first, Mapping) and "conversations" in first:
            yield from read_rows(source.files[0])
            return
    for row in read_located(source, seed=0):  # nothing is shuffled
        if isinstance(row.value, DataError):
            yield row
            continue
        try:
            yield Row(row.number, _as_conversation(row.value))
        except DataError as error:
            yield Row(row.number, error)


def _as_conversation(record: Mapping[str, Any]) -> dict[str, Any]:
    images = record["images"]
    turns = record.get("messages") or [{"role": "user", "content": record["prompt"]}]
    said = [_turn(turn) for turn in turns]
    missing = len(images) - sum(turn["value"].count(PLACEHOLDER) for turn in said)
    human = next((turn for turn in said if turn["from"] == "human"), None)
    if human is not None and missing > 0:
        human["value"] = f"{PLACEHOLDER}\n" * missing + human["value"]
    if (answer := record.get("answer")) is not None:
        value = answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
        said.append({"from": "gpt", "value": value})
    return {
        "id": record.get("idx"),
        "images": images,
        "conversations": said,
        "group": record.get("group"),
    }


def _turn(turn: Mapping[str, Any]) -> dict[str, str]:
    speaker = _SPEAKERS.get(str(turn.get("role")))
    content = turn.get("content")
    parts = content if isinstance(content, list) else [content]
    texts = [_part(part) for part in parts]
    if speaker is None or None in texts:
        raise DataError(
            "A turn is not of system, user or assistant with text and pictures; such a row cannot "
            "be written as a conversation.",
            field="messages",
        )
    return {"from": speaker, "value": "\n".join(map(str, texts))}


def _part(part: Any) -> str | None:
    if isinstance(part, Mapping):
        return PLACEHOLDER if part.get("type") == "image" else part.get("text")
    return part if isinstance(part, str) else None


def _adapter_row(
    row: Mapping[str, Any], number: int, adapter: str, pictures: Pictures, store: PictureStore
) -> AdapterRow:
    """Check a row with the reader that will read it when a router is trained."""
    if "conversations" not in row:
        raise DataError("The row has no conversation.", field="conversations")
    known = {key: row[key] for key in _READ if row.get(key) is not None}
    record = read_record(
        {**known, "adapter": adapter}, number=number, pictures=pictures, rule=TextRule()
    )
    images = record.sample.query.images
    keys = {f"picture {image.sha256}" for image in images}
    if row.get("group") is not None:
        keys.add(f"group {adapter} {record.sample.group}")
    if not keys:
        keys.add(f"text {hashlib.sha256(record.sample.query.text.encode()).hexdigest()}")
    metadata = row.get("metadata")
    if metadata is not None and not isinstance(metadata, Mapping):
        metadata = {"value": metadata}
    return AdapterRow(
        adapter,
        number,
        None if row.get("id") is None else record.sample.id,
        _plain_turns(row["conversations"]),
        dict(metadata or {}),
        tuple(store.add(image) for image in images),
        frozenset(keys),
    )


def _plain_turns(turns: Sequence[Any]) -> list[Json]:
    return [dict(turn) for turn in turns]


def _digest(source: Source) -> str | None:
    if not source.files:
        return None if source.is_local else source.state
    digest = hashlib.sha256()
    for file in source.files:
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()
