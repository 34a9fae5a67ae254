"""What a folder of routing data promises, measured on its files.

Parts must share no picture, no group and no id. A picture is compared by the sha256 of its file: a
copy that was saved again or cropped counts as another one.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from router_runtime.errors import DataError
from router_training.formats import read_rows

PARTS: Final = ("train", "val", "eval")


@dataclass(frozen=True)
class RoutingCheck:
    """What was found.

    Parameters
    ----------
    rows : mapping
        Per part, rows per adapter, in the order of the labels.
    pictures : mapping
        Per part, how many different pictures.
    leaks : tuple of str
        What two parts share, one line each.
    contradictions : int
        Requests (text and pictures) that stand under more than one adapter.
    """

    rows: Mapping[str, Mapping[str, int]]
    pictures: Mapping[str, int]
    leaks: tuple[str, ...]
    contradictions: int


@dataclass(frozen=True)
class _Seen:
    part: str
    row: str
    adapter: str
    label: int
    pictures: tuple[str, ...]
    marks: tuple[str, ...]
    text: str


def check_routing(folder: str | Path) -> RoutingCheck:
    """Read a folder and say what its parts hold and share.

    Raises
    ------
    DataError
        There is no ``train.jsonl``, or a row or picture cannot be read.
    """
    folder = Path(folder)
    if not (folder / "train.jsonl").is_file():
        raise DataError("The folder holds no routing data (no train.jsonl).", file=str(folder))
    digests: dict[str, str] = {}
    seen = [
        row
        for part in PARTS
        if (folder / f"{part}.jsonl").is_file()
        for row in _part_rows(folder, part, digests)
    ]
    present = dict.fromkeys(row.part for row in seen)
    labels = dict(sorted((row.label, row.adapter) for row in seen))
    adapters = dict.fromkeys([*labels.values(), *(row.adapter for row in seen)])
    counts = Counter((row.part, row.adapter) for row in seen)
    asked: defaultdict[tuple[object, ...], set[str]] = defaultdict(set)
    for row in seen:
        asked[row.text, row.pictures].add(row.adapter)
    return RoutingCheck(
        rows={p: {name: counts[p, name] for name in adapters} for p in present},
        pictures={p: len({d for r in seen if r.part == p for d in r.pictures}) for p in present},
        leaks=tuple(_leaks(seen)),
        contradictions=sum(len(adapters) > 1 for adapters in asked.values()),
    )


def _leaks(seen: list[_Seen]) -> Iterator[str]:
    first: dict[str, _Seen] = {}
    for row in seen:
        for mark in (*(f"picture {digest[:12]}" for digest in row.pictures), *row.marks):
            other = first.setdefault(mark, row)
            if other.part != row.part:
                yield f"{mark} is in {other.part} ({other.row}) and in {row.part} ({row.row})"


def _part_rows(folder: Path, part: str, digests: dict[str, str]) -> Iterator[_Seen]:
    file = folder / f"{part}.jsonl"
    for row in read_rows(file):
        try:
            if isinstance(row.value, DataError):
                raise row.value
            yield _seen(row.value, folder, part, digests)
        except DataError as error:
            raise DataError(
                error.reason, file=str(file), row=row.number, field=error.field
            ) from error


def _seen(row: Mapping[str, Any], folder: Path, part: str, digests: dict[str, str]) -> _Seen:
    adapter, turns = row.get("adapter"), row.get("conversations")
    if not isinstance(adapter, str) or not isinstance(turns, list):
        raise DataError("A routing row has 'conversations' and the 'adapter' that handles it.")
    names = [row["image"]] if row.get("image") else list(row.get("images") or ())
    label, metadata = row.get("label"), row.get("metadata")
    routing = metadata.get("routing") if isinstance(metadata, Mapping) else None
    group = routing.get("group") if isinstance(routing, Mapping) else None
    said = [
        turn.get("value")
        for turn in turns
        if isinstance(turn, Mapping) and turn.get("from") != "gpt"
    ]
    return _Seen(
        part,
        str(row.get("id")),
        adapter,
        label if isinstance(label, int) else 0,
        tuple(_digest(folder, str(name), digests) for name in names),
        (f"id {row.get('id')}", *([] if group is None else [str(group)])),
        "\n".join(map(str, said)),
    )


def _digest(folder: Path, name: str, digests: dict[str, str]) -> str:
    if name not in digests:
        path = folder / name
        if not path.is_file():
            raise DataError(f"There is no picture file '{name}'.", field="image")
        with path.open("rb") as file:
            digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests[name]
