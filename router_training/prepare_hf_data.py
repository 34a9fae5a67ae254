"""Stage 1: a data set to labelled records, with the published script's names and flags.

    python router_training/prepare_hf_data.py \
        --dataset path/to/dataset --output-dir . --num-samples 1800 --config configs/label.yml

asks the config's candidates, judges their answers and writes ``hf_evaluations_train.json`` and
``hf_evaluations_test.json``: lists of ``{idx, prompt, answer, images, model_scores}``, pictures in
base64. Rows of a data set without ids have their place in it as ``idx``, from 0. What no judge
could decide is null, never 0, and the two files share no group. Answers are kept in the config's
``work_dir``, so that a second run asks only what is missing. Costs, tokens and
times are in the records that ``router-train label`` writes, not in this format.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # Python puts a script's folder first on the path, where ``config`` or ``evaluate`` would hide
    # other packages' modules of that name. The repository's root is what belongs there.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from router_runtime.console import require

    require("router_training.cli_label_run", extra="label")

import re
from collections.abc import Iterator
from typing import Annotated, Final

import typer

from router_runtime.console import out, run_app
from router_runtime.errors import ConfigError, DataError
from router_runtime.types import Int, Json
from router_training.cli_label import DryRunOption, MaxCostOption
from router_training.cli_label_run import SCREEN, label_samples, print_estimate
from router_training.formats import write_json
from router_training.labelling.config import LabelConfig, load_label_config
from router_training.labelling.samples_stage import n_samples
from router_training.labelling.walk import kept_samples
from router_training.labels import Evaluations, read_evaluations, sample_record
from router_training.splits import MIN_ROWS, split_evaluations

TRAIN_RECORDS: Final = "hf_evaluations_train.json"
TEST_RECORDS: Final = "hf_evaluations_test.json"

_RECORDS: Final = "hf_records.jsonl"
_KEYS: Final = ("idx", "prompt", "answer", "images")
_UNNAMED_PREFIX: Final = "row-"
_UNNAMED: Final = re.compile(rf"{_UNNAMED_PREFIX}[1-9]\d*")  # as rows without an id are called


def write_records(data: Evaluations, folder: Path, *, test_share: float, seed: int = 0) -> None:
    """Write labelled records as the two published files, divided by group.

    Parameters
    ----------
    data : Evaluations
        At least ``MIN_ROWS`` rows.
    folder : Path
        Made when absent.
    test_share : float
        Share of the rows for the test file, above 0 and below 1.
    seed : int
        Of the division.

    Raises
    ------
    ConfigError
        ``test_share`` is not between 0 and 1.
    DataError
        There are too few rows or groups.
    """
    split = split_evaluations(data, fractions=(1.0 - test_share, 0.0, 0.0, test_share), seed=seed)
    for name, rows in ((TRAIN_RECORDS, split.train), (TEST_RECORDS, split.test)):
        write_json(folder / name, _records(data, rows))


def _records(data: Evaluations, rows: Int) -> Iterator[dict[str, Json]]:
    counted = all(_UNNAMED.fullmatch(sample.id) for sample in data.samples)
    for row in rows:
        sample = data.samples[row]
        record = {key: sample_record(sample).get(key) for key in _KEYS}
        if counted:
            record["idx"] = int(sample.id.removeprefix(_UNNAMED_PREFIX)) - 1
        scores = zip(data.model_ids, data.labels.Y[row].tolist(), strict=True)
        yield {**record, "model_scores": {name: _score(value) for name, value in scores}}


def _score(value: float) -> float | int | None:
    """Return a score as the published files have it: 1, 0, a share of it, or null for unscored."""
    if value != value:  # NaN
        return None
    return int(value) if value.is_integer() else value


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    dataset: Annotated[str, typer.Option(help="Hub id, folder or file; replaces data.path.")],
    output_dir: Annotated[Path, typer.Option(help="Where the two files go.")] = Path("."),
    num_samples: Annotated[int, typer.Option(min=MIN_ROWS, help="Samples to label.")] = 1800,
    config: Annotated[
        Path, typer.Option(help="Labelling config: candidates, judge and columns.")
    ] = Path("configs/label.yml"),
    split: Annotated[str | None, typer.Option(help="Replaces data.split.")] = None,
    prompt_column: Annotated[str | None, typer.Option(help="Replaces data.columns.prompt.")] = None,
    answer_column: Annotated[str | None, typer.Option(help="Replaces data.columns.answer.")] = None,
    image_column: Annotated[
        list[str] | None, typer.Option(help="Replaces data.columns.images; may be repeated.")
    ] = None,
    test_share: Annotated[float, typer.Option(help="Share of the samples to test on.")] = 0.2,
    seed: Annotated[int | None, typer.Option(min=0, help="Replaces seed.")] = None,
    max_cost_usd: MaxCostOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Ask candidates about a data set, judge their answers, and write records to train on."""
    if not 0.0 < test_share < 1.0:
        raise ConfigError(f"--test-share {test_share} must lie between 0 and 1.")
    settled = _configured(
        config,
        {
            "data.path": _path(dataset),
            "data.limit": num_samples,
            "data.split": split,
            "data.columns.prompt": prompt_column,
            "data.columns.answer": answer_column,
            "data.columns.images": image_column or None,
            "seed": seed,
            "max_cost_usd": None if max_cost_usd is None else str(max_cost_usd),
        },
    )
    if dry_run:
        print_estimate(settled)
        return
    _check_enough(settled)
    label_samples(settled, unwritten="Neither file was written.")
    data = read_evaluations(settled.output)
    write_records(data, output_dir, test_share=test_share, seed=settled.seed)
    for name in (TRAIN_RECORDS, TEST_RECORDS):
        out.print(f"Saved {output_dir / name}")


def _check_enough(config: LabelConfig) -> None:
    """Refuse what could not be divided in the end, before anybody is paid."""
    if (count := n_samples(kept_samples(config, screen=SCREEN))) < MIN_ROWS:
        raise DataError(
            f"{count} usable samples are too few for two files; at least {MIN_ROWS} are needed.",
            file=config.data.path,
        )


def _configured(path: Path, given: dict[str, Json]) -> LabelConfig:
    overrides = {key: value for key, value in given.items() if value is not None}
    settled = load_label_config(path, overrides=overrides)
    return settled.model_copy(update={"output": settled.work_dir / _RECORDS})


def _path(dataset: str) -> str | Path:
    """Return what lies in the current folder as a path, and all else, such as a hub id, as text."""
    return Path(dataset) if Path(dataset).exists() else dataset


if __name__ == "__main__":
    run_app(app)
