"""Routing data as conversations whose answer is an adapter's name, to fine-tune a router on.

``{"id", "image" (or "images"), "conversations": [system, human, gpt]}``: the system turn lists the
adapters, the human turn asks which one should handle the screenshot, the gpt turn is its name and
nothing else. The adapter's own answer is left out, for a router never sees it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from router_runtime.errors import DataError, QueryError
from router_runtime.messages import query_from_messages
from router_runtime.prediction.adapter import QUESTION, TEXT_QUESTION, system_prompt
from router_runtime.types import Json
from router_training.formats import read_rows, write_json
from router_training.pictures import PLACEHOLDER, parts_of
from router_training.routing.checks import PARTS

Question: TypeAlias = Literal["both", "picture", "request"]

_ROLES: Final = {"system": "system", "human": "user", "gpt": "assistant"}


def convert_to_classification(
    folder: str | Path, *, question: Question = "both"
) -> dict[Path, int]:
    """Write ``<part>-classification.jsonl`` beside each ``<part>.jsonl``; rows by file.

    Parameters
    ----------
    folder : path
        As ``generating.generate`` writes it; ``val`` and ``eval`` may be missing. Without
        ``metadata.json`` the adapters are listed by their labels, or by name.
    question : {"both", "picture", "request"}
        What is shown: picture and request (what a router sees when it serves), the picture alone
        (for routers that decide before a request is written), or the request alone.

    Raises
    ------
    DataError
        Naming file, row and field; also where a row has nothing of what is to be shown.
    """
    folder = Path(folder)
    files = [folder / f"{part}.jsonl" for part in PARTS]
    if not files[0].is_file():
        raise DataError("The folder holds no routing data (no train.jsonl).", file=str(folder))
    adapters = _adapters(folder, files)
    system = system_prompt(adapters)
    written: dict[Path, int] = {}
    for file in files:
        if file.is_file():
            records = list(_converted(file, system, adapters, question))
            target = file.with_name(f"{file.stem}-classification.jsonl")
            write_json(target, records)
            written[target] = len(records)
    return written


def _adapters(folder: Path, files: list[Path]) -> list[str]:
    metadata = folder / "metadata.json"
    if metadata.is_file():
        try:
            found = json.loads(metadata.read_bytes())["adapters"]
            return [str(name) for name in found]
        except (ValueError, LookupError, TypeError):
            raise DataError("It does not list the adapters.", file=str(metadata)) from None
    labels: dict[str, int] = {}
    for file in files:
        for row in read_rows(file) if file.is_file() else ():
            value = row.value if isinstance(row.value, Mapping) else {}
            if isinstance(value.get("adapter"), str):
                label = value.get("label")
                labels.setdefault(value["adapter"], label if isinstance(label, int) else 0)
    return sorted(labels, key=lambda name: (labels[name], name))


def _converted(
    file: Path, system: str, adapters: list[str], question: Question
) -> Iterator[dict[str, Json]]:
    for row in read_rows(file):
        try:
            if isinstance(row.value, DataError):
                raise row.value
            yield _conversation(row.value, system, adapters, question)
        except DataError as error:
            raise DataError(
                error.reason, file=str(file), row=row.number, field=error.field
            ) from error


def _conversation(
    row: Mapping[str, Any], system: str, adapters: list[str], question: Question
) -> dict[str, Json]:
    adapter = row.get("adapter")
    if adapter not in adapters:
        raise DataError(
            f"The adapter {adapter!r} is none of {', '.join(adapters)}.", field="adapter"
        )
    pictures = [row["image"]] if row.get("image") else list(row.get("images") or ())
    if question == "request":
        pictures = []
    text = "" if question == "picture" else _request(row)
    if not pictures and not text:
        raise DataError(f"The row has no {'picture' if question == 'picture' else 'request'}.")
    asks = QUESTION if pictures else TEXT_QUESTION
    human = f"{PLACEHOLDER}\n" * len(pictures) + asks + (f"\n\n{text}" if text else "")
    record: dict[str, Json] = {"id": row.get("id")}
    if len(pictures) == 1:
        record["image"] = pictures[0]
    elif pictures:
        record["images"] = pictures
    record["conversations"] = [
        {"from": "system", "value": system},
        {"from": "human", "value": human},
        {"from": "gpt", "value": adapter},
    ]
    return record


def _request(row: Mapping[str, Any]) -> str:
    """Return the text that a router would route on; empty where the row has only pictures."""
    turns = row.get("conversations")
    messages = []
    for turn in turns if isinstance(turns, list) else ():
        role = _ROLES.get(str(turn.get("from"))) if isinstance(turn, Mapping) else None
        if role is None or not isinstance(turn.get("value"), str):
            raise DataError(
                "A turn must have 'from' (system, human or gpt) and a text 'value'.",
                field="conversations",
            )
        said = [part["text"] for part in parts_of(turn["value"]) if part["type"] == "text"]
        messages.append({"role": role, "content": "\n".join(said)})
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    try:
        return query_from_messages(messages).text
    except QueryError:
        return ""  # no text: the picture is all there is
