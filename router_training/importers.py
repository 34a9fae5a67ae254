"""Evaluation data as others publish it, for ``router-train import``.

==============  ====================================================================================
source          what is read
==============  ====================================================================================
``records``     the shapes of ``samples`` in JSON, JSON lines or Parquet (also a folder of Parquet
                files), and the tidy tables ``id, dataset, prompt, scores, costs, image_sha``
``routerbench``  RouterBench's table exported to CSV or Parquet: ``sample_id, prompt, eval_name``,
                per model a score column of its name, ``<model>|model_response`` and
                ``<model>|total_cost`` (USD), ``oracle_model_to_route_to``
``routellm``    RouteLLM's responses to MMLU and GSM8K in CSV: ``prompt`` and per model a column of
                True/False (``<model>_response`` is ignored); a folder of such files at once;
                prompts listed in a ``contaminated_prompts.jsonl`` beside or above are marked
``notdiamond``  Not Diamond's CSV: ``prompt`` and per model ``<provider>/<model>/score``, optionally
                ``/cost`` (USD; ``/response`` is ignored)
``routing``     a folder of ``generate-routing-data``: ``train.jsonl`` and ``val.jsonl`` together,
                or one of its files. Exactly one adapter is right, so it scores 1 and the others 0;
                models are the adapters, in the order of ``metadata.json``
==============  ====================================================================================

Each becomes rows of the ``scored`` shape, so that one piece of code checks all. RouterBench itself
is distributed as a pickle, which runs code when opened, and must be exported first.
"""

from __future__ import annotations

import ast
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from router_runtime.errors import ConfigError, DataError
from router_runtime.images import DEFAULT_LIMITS, ImageLimits
from router_runtime.messages import TextRule
from router_training.formats import Row, kind_of, parquet_files, read_rows
from router_training.labels import Evaluations, OnBadRow, evaluations_from_rows
from router_training.pictures import Pictures, parts_of

Source: TypeAlias = Literal["records", "routerbench", "routellm", "notdiamond", "routing"]
_Convert: TypeAlias = Callable[[Mapping[str, Any], int], dict[str, Any]]

_COST: Final = "|total_cost"
_RESPONSE: Final = "|model_response"
_CONTAMINATED: Final = "contaminated_prompts.jsonl"
_INDEX_COLUMNS: Final = ("", "Unnamed: 0", "__index_level_0__")
_ROUTING_FILES: Final = ("train.jsonl", "val.jsonl", "eval.jsonl")
_SPEAKERS: Final = {"system": "system", "human": "user", "gpt": "assistant"}


def detect_format(path: str | Path) -> Source:
    """Return which of the sources a file or a folder is, from its columns.

    Raises
    ------
    DataError
        The file is missing, empty or of no known format.
    """
    path = Path(path)
    if path.is_dir():
        if (path / _ROUTING_FILES[0]).is_file() and adapters_of(path):
            return "routing"
        return "records" if parquet_files(path) else "routellm"
    if path.name in _ROUTING_FILES and adapters_of(path.parent):
        return "routing"
    if kind_of(path) in (".json", ".jsonl"):
        return "records"
    columns = _columns(path)
    if "sample_id" in columns and any(name.endswith(_COST) for name in columns):
        return "routerbench"
    if any(name.endswith("/score") for name in columns):
        return "notdiamond"
    if kind_of(path) == ".parquet":
        return "records"
    if "prompt" in columns and _routellm_models(columns):
        return "routellm"
    raise DataError(
        f"The columns {', '.join(map(repr, columns))} are of no known format; known: RouterBench, "
        "RouteLLM, Not Diamond.",
        file=str(path),
    )


def _columns(path: Path) -> Mapping[str, Any]:
    """Return the first row that can be read."""
    bad: list[DataError] = []
    for row in read_rows(path):
        if isinstance(row.value, Mapping):
            return row.value
        bad.append(DataError(row.value.reason, file=str(path), row=row.number))
    raise bad[0]


def import_file(
    path: str | Path,
    *,
    source: str = "auto",
    image_root: str | Path | None = None,
    drop_contaminated: bool = True,
    on_bad_row: OnBadRow = "error",
    model_ids: Sequence[str] | None = None,
    rule: TextRule = TextRule(),
    limits: ImageLimits = DEFAULT_LIMITS,
) -> Evaluations:
    """Read evaluation data of any known format.

    Parameters
    ----------
    path : str or Path
        A file, a folder of Parquet files, or a folder of RouteLLM's CSV files.
    source : str
        ``auto``, ``records``, ``routerbench``, ``routellm``, ``notdiamond`` or ``routing``.
    image_root, on_bad_row, model_ids, rule, limits
        As in ``labels.read_evaluations``.
    drop_contaminated : bool
        Leave rows marked as contaminated out; they are listed in ``skipped``.

    Raises
    ------
    ConfigError
        The source is not known.
    DataError
        Naming file, row and field.
    """
    path = Path(path)
    if image_root is not None and not Path(image_root).is_dir():
        raise DataError("The folder of pictures does not exist.", file=str(image_root))
    if source != "auto" and source not in _ROWS:
        raise ConfigError(f"Source {source!r} is unknown; known: auto, {', '.join(_ROWS)}.")
    known = detect_format(path) if source == "auto" else source
    root = path if path.is_dir() else path.parent
    return evaluations_from_rows(
        _ROWS[known](path),
        source=str(path),
        pictures=Pictures(root if image_root is None else Path(image_root), limits=limits),
        model_ids=model_ids,
        on_bad_row=on_bad_row,
        rule=rule,
        drop_contaminated=drop_contaminated,
    )


def _converted(rows: Iterator[Row], convert: _Convert) -> Iterator[Row]:
    for row in rows:
        value = row.value
        try:
            yield Row(
                row.number, value if isinstance(value, DataError) else convert(value, row.number)
            )
        except DataError as error:
            yield Row(row.number, error)


def _routerbench_rows(path: Path) -> Iterator[Row]:
    return _converted(read_rows(path), _routerbench_row)


def _routerbench_row(row: Mapping[str, Any], number: int) -> dict[str, Any]:
    models = [name for name in row if name + _COST in row or name + _RESPONSE in row]
    costs = {name: _number(row.get(name + _COST), name + _COST) for name in models}
    return {
        "id": row.get("sample_id"),
        "dataset": row.get("eval_name"),
        "prompt": _unlisted(row.get("prompt")),
        "scores": {name: _number(row[name], name) for name in models},
        "costs": {name: cost for name, cost in costs.items() if cost is not None},
    }


def _unlisted(prompt: Any) -> Any:
    """Return the turns of a prompt that RouterBench wrote as the text of a Python list."""
    turns = prompt
    if isinstance(prompt, str) and prompt.startswith("[") and prompt.endswith("]"):
        try:
            with warnings.catch_warnings(action="ignore"):  # of backslashes in a prompt
                turns = ast.literal_eval(prompt)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return prompt
    if isinstance(turns, list) and all(isinstance(turn, str) for turn in turns):
        return "\n\n".join(turns)
    return prompt


def _routellm_rows(path: Path) -> Iterator[Row]:
    if not path.is_dir():
        return _converted(read_rows(path), _routellm_converter(path))
    files = sorted(path.glob("*.csv"))
    if not files:
        raise DataError("The folder holds no CSV file.", file=str(path))
    rows = chain.from_iterable(
        _converted(read_rows(file), _routellm_converter(file)) for file in files
    )
    return (Row(number, row.value) for number, row in enumerate(rows, start=1))


def _routellm_converter(path: Path) -> _Convert:
    return partial(
        _routellm_row, stem=path.name.partition(".")[0], contaminated=_contaminated_prompts(path)
    )


def _routellm_row(
    row: Mapping[str, Any], number: int, *, stem: str, contaminated: frozenset[str]
) -> dict[str, Any]:
    return {
        "id": f"{stem}:{number}",
        "dataset": stem.partition("_")[0],
        "prompt": row.get("prompt") or None,
        "scores": {name: _number(row[name], name) for name in _routellm_models(row)},
        "contaminated": row.get("prompt") in contaminated,
    }


def _routellm_models(columns: Mapping[str, Any]) -> list[str]:
    return [
        name
        for name in columns
        if name not in ("prompt", *_INDEX_COLUMNS) and not name.endswith("_response")
    ]


def _contaminated_prompts(path: Path) -> frozenset[str]:
    for folder in (path.parent, path.parent.parent):
        file = folder / _CONTAMINATED
        if file.is_file():
            values = [row.value for row in read_rows(file)]
            return frozenset(
                str(value.get("eval_prompt")) for value in values if isinstance(value, Mapping)
            )
    return frozenset()


def _notdiamond_rows(path: Path) -> Iterator[Row]:
    return _converted(read_rows(path), _notdiamond_row)


def _notdiamond_row(row: Mapping[str, Any], number: int) -> dict[str, Any]:
    models = [name.removesuffix("/score") for name in row if name.endswith("/score")]
    costs = {name: _number(row.get(f"{name}/cost"), f"{name}/cost") for name in models}
    return {
        "id": number if row.get("id") in (None, "") else row["id"],
        "prompt": row.get("prompt") or None,
        "scores": {name: _number(row[f"{name}/score"], f"{name}/score") for name in models},
        "costs": {name: cost for name, cost in costs.items() if cost is not None},
    }


def _routing_rows(path: Path) -> Iterator[Row]:
    """Yield rows of routing data as scored records: 1 for the adapter, 0 for the others.

    Of a folder ``eval.jsonl`` is left, to evaluate on. Rows with a common picture are one group,
    and a row's data set is its adapter.
    """
    folder = path if path.is_dir() else path.parent
    adapters = adapters_of(folder)
    if not adapters:
        raise DataError("It does not list the adapters.", file=str(folder / "metadata.json"))
    files = [path]
    if path.is_dir():
        files = [path / name for name in _ROUTING_FILES[:2] if (path / name).is_file()]
    convert = partial(_routing_row, adapters=adapters)
    rows = chain.from_iterable(_converted(read_rows(file), convert) for file in files)
    if len(files) == 1:
        return rows
    return (Row(number, row.value) for number, row in enumerate(rows, start=1))


def adapters_of(folder: Path) -> tuple[str, ...]:
    """Return the adapters in the order of their labels; none where the folder lists none."""
    try:
        return tuple(map(str, json.loads((folder / "metadata.json").read_bytes())["adapters"]))
    except (OSError, ValueError, LookupError, TypeError):
        return ()


def _routing_row(row: Mapping[str, Any], number: int, *, adapters: Sequence[str]) -> dict[str, Any]:
    adapter, turns = row.get("adapter"), row.get("conversations")
    if adapter not in adapters:
        raise DataError(f"It is {adapter!r}; known: {', '.join(adapters)}.", field="adapter")
    if not isinstance(turns, list) or not all(
        isinstance(turn, Mapping)
        and turn.get("from") in _SPEAKERS
        and isinstance(turn.get("value"), str)
        for turn in turns
    ):
        raise DataError(
            "A turn must have 'from' (system, human or gpt) and a text 'value'.",
            field="conversations",
        )
    metadata = row.get("metadata")
    routing = metadata.get("routing") if isinstance(metadata, Mapping) else None
    return {
        "id": row.get("id"),
        "dataset": adapter,
        "messages": [
            {
                "role": _SPEAKERS[turn["from"]],
                "content": parts_of(turn["value"]) if turn["from"] == "human" else turn["value"],
            }
            for turn in turns
        ],
        "images": row.get("images") or ([row["image"]] if row.get("image") else []),
        "group": routing.get("group") if isinstance(routing, Mapping) else None,
        "scores": {name: float(name == adapter) for name in adapters},
    }


def _number(cell: Any, column: str) -> float | None:
    """Return a cell's number: True and False count as 1 and 0, nothing and NaN as missing."""
    if cell is None or cell == "":
        return None
    text = str(cell).strip().lower()
    try:
        number = {"true": 1.0, "false": 0.0}.get(text)
        number = float(text) if number is None else number
    except ValueError:
        raise DataError(f"The cell {cell!r} is not a number.", field=column) from None
    return None if number != number else number


_ROWS: Final[dict[str, Callable[[Path], Iterator[Row]]]] = {
    "records": read_rows,
    "routerbench": _routerbench_rows,
    "routellm": _routellm_rows,
    "notdiamond": _notdiamond_rows,
    "routing": _routing_rows,
}
