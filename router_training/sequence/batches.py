"""Many texts from a JSONL file to a JSONL file, continued where it was interrupted.

A line of input is ``{"query": ...}`` with whatever else, or a JSON string; blank lines count for
nothing. A line of output is ``{"row", "query_sha256", "category", "confidence"}``, with ``model``
where categories are mapped to models; ``row`` counts the input's rows from 1. The query itself is
not copied, only its digest, by which a resumed run knows that the input is still the same.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from router_runtime.errors import DataError, RouterError
from router_runtime.router_inference import RouterInference
from router_runtime.types import Json, Progress

_CHUNK = 256  # texts between two writes


@dataclass(frozen=True)
class Batch:
    """What was done: all rows of the output, and those of them that were there before."""

    rows: int
    resumed: int


def route_file(router: RouterInference, source: Path, target: Path, *, progress: Progress) -> Batch:
    """Classify every row of ``source`` that ``target`` does not have yet.

    Raises
    ------
    DataError
        Naming file, row and field of a row that cannot be classified; those before it are written.
        Or the output belongs to another input.
    RouterError
        A file cannot be read or written.
    """
    try:
        total = sum(1 for _ in _rows(source))
        done = _resumed(source, target)
        rows = islice(_rows(source), done, None)
        with target.open("ab") as out:
            written = done
            progress(written, total)
            while chunk := list(islice(rows, _CHUNK)):
                found = router.route_batch([text for _, text in chunk])
                for (number, text), told in zip(chunk, found, strict=True):
                    out.write(_line(router, number, text, told))
                out.flush()
                os.fsync(out.fileno())
                written += len(chunk)
                progress(written, total)
    except OSError as error:
        raise RouterError(f"'{error.filename or target}': {error.strerror or error}.") from error
    return Batch(total, done)


def _line(router: RouterInference, number: int, text: str, told: dict[str, Json]) -> bytes:
    row = {"row": number, "query_sha256": _digest(text), **told}
    model = router.model_mappings[told["category"]]
    if model != told["category"]:
        row["model"] = model
    return (json.dumps(row, ensure_ascii=False) + "\n").encode()


def _rows(source: Path) -> Iterator[tuple[int, str]]:
    """Yield number and text of every row."""
    with source.open("rb") as file:
        lines = (line for line in file if line.strip())
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                raise DataError("It is no JSON.", file=str(source), row=number) from None
            text = row.get("query") if isinstance(row, dict) else row
            if not isinstance(text, str) or not text.strip():
                raise DataError(
                    'A row must be {"query": "..."} with some text.',
                    file=str(source),
                    row=number,
                    field="query",
                )
            yield number, text


def _resumed(source: Path, target: Path) -> int:
    """Return how many rows the output has; a last line that was cut off is removed.

    Raises
    ------
    DataError
        The output is not of this input.
    """
    if not target.exists():
        return 0
    done, whole = 0, 0
    rows = _rows(source)
    with target.open("r+b") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            _, text = next(rows, (0, ""))
            try:
                same = json.loads(line)["query_sha256"] == _digest(text)
            except (ValueError, LookupError, TypeError):
                same = False
            if not same:
                raise DataError(
                    f"Line {done + 1} is not the answer to row {done + 1} of '{source}'. Remove "
                    "the file, or name another output.",
                    file=str(target),
                    row=done + 1,
                )
            done, whole = done + 1, whole + len(line)
        file.truncate(whole)
    return done


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
