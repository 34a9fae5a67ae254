"""What the labelling commands do and print; it needs the extra ``label``, the commands do not.

Exit status 1 (``EXIT_FOUND``) says that something is missing which may still come: a target was
stopped, or the budget is reached. The same command goes on from there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import typer

from router_runtime.console import EXIT_FOUND, err, out, print_json, progress_bar
from router_runtime.types import Json, Progress
from router_training.cli_options import shown
from router_training.labelling.answer_store import AnswerStore
from router_training.labelling.audit import export
from router_training.labelling.cells import cell_reader
from router_training.labelling.config import LabelConfig
from router_training.labelling.estimate import estimate
from router_training.labelling.progress import LabelProgress
from router_training.labelling.samples_stage import iter_samples, read_manifest
from router_training.labelling.tables import missing, render_estimate, render_labelled
from router_training.labelling.trust import measure_trust, read_marks
from router_training.labelling.trust_tables import render_trust
from router_training.labelling.walk import Labelled, Screen, collect, judge, kept_samples, label

_ROWS_PER_LINE = 10_000
_UNWRITTEN = "No records were written; --partial writes them with what is there."


@contextmanager
def _bar(label: str) -> Iterator[Progress]:
    """Show a progress bar, or lines now and then while nobody knows how much there is."""
    with progress_bar(label) as known:

        def report(done: int, total: int) -> None:
            if total:
                known(done, total)
            elif done % _ROWS_PER_LINE == 0:
                err.print(f"{label}: {done:,}")

        yield report


SCREEN = Screen(watching=LabelProgress, bar=_bar)


def collect_answers(config: LabelConfig, *, as_json: bool = False) -> None:
    """Collect, and print how it went."""
    _present(collect(config, screen=SCREEN), config, as_json=as_json)


def judge_answers(config: LabelConfig, *, partly: bool, as_json: bool = False) -> None:
    """Judge, write records, and print how it went."""
    _present(judge(config, screen=SCREEN, partly=partly), config, as_json=as_json)


def label_samples(
    config: LabelConfig,
    *,
    partly: bool = False,
    unwritten: str = _UNWRITTEN,
    as_json: bool = False,
) -> None:
    """Collect, judge, write records, and print how it went; ``unwritten`` says that none were."""
    done = label(config, screen=SCREEN, partly=partly)
    _present(done, config, unwritten=unwritten, as_json=as_json)


def write_audit(
    config: LabelConfig,
    folder: Path,
    *,
    rows: int,
    seed: int | None,
    pictures: bool,
    again: str,
    as_json: bool = False,
) -> None:
    """Write an audit sample, and print what to do with it; ``again`` is config and limit."""
    samples = kept_samples(config, screen=SCREEN)
    with AnswerStore.read(config.work_dir) as store:
        made = export(config, samples, store, folder, rows=rows, seed=seed, pictures=pictures)
    if as_json:
        print_json({"answers": made.answers, "html": made.html, "csv": made.csv})
        return
    out.print(f"{made.answers} answers to look at in {shown(made.html)} and {shown(made.csv)}")
    out.print(f"then: router-train trust {again} --human {shown(made.csv)}", soft_wrap=True)


def print_trust(config: LabelConfig, *, human: Path | None, as_json: bool) -> None:
    """Print how far the labels can be trusted."""
    marks = None if human is None else read_marks(human)
    samples = kept_samples(config, screen=SCREEN)
    with AnswerStore.read(config.work_dir) as store:
        rows = cell_reader(config, store).read(iter_samples(samples))
        found = measure_trust(rows, marks=marks, seed=config.seed)
    if as_json:
        print_json(found.to_json())
    else:
        render_trust(found, out)


def print_estimate(
    config: LabelConfig, *, collecting: bool = True, judging: bool = True, as_json: bool = False
) -> None:
    """Print what a run would ask; nobody is asked and nothing but the samples is kept."""
    samples = kept_samples(config, screen=SCREEN)
    _print_skipped(samples)
    with AnswerStore.read(config.work_dir) as store, SCREEN.bar("estimating") as progress:
        found = estimate(
            config, samples, store, collecting=collecting, judging=judging, progress=progress
        )
    if as_json:
        print_json({**found.to_json(), "max_cost_usd": config.max_cost_usd})
    else:
        render_estimate(found, out, max_cost_usd=config.max_cost_usd)


def _present(
    done: Labelled, config: LabelConfig, *, unwritten: str = _UNWRITTEN, as_json: bool = False
) -> None:
    """Print how a run ended, and leave with status 1 where something is missing."""
    _print_skipped(done.samples)
    lines = missing(done, max_cost_usd=config.max_cost_usd)
    if as_json:
        print_json(_told(done, lines))
    else:
        _print_labelled(done)
    _leave(lines, done, unwritten=unwritten)


def _print_labelled(done: Labelled) -> None:
    render_labelled(done, out)
    if done.tabulated is not None:
        render_trust(done.tabulated.labelled_by.trust, out)
        out.print(f"wrote {done.tabulated.rows:,} records to {shown(done.tabulated.output)}")
    failed = sum(tally.failed for tally in done.asked.candidates.values())
    if failed:
        out.print(f"{failed:,} calls failed; the same command asks them again.")


def _told(done: Labelled, lines: Sequence[str]) -> Json:
    """Return how a run ended as plain values; dollars as decimal strings."""
    asked, tabulated = done.asked, done.tabulated
    return {
        "samples": done.n_samples,
        "candidates": {name: asdict(tally) for name, tally in asked.candidates.items()},
        "judges": {name: asdict(tally) for name, tally in asked.judges.items()},
        "judged": None if asked.judged is None else asdict(asked.judged),
        "stopped": asked.stopped,
        "spent_usd": done.spent_usd,
        "total_usd": done.total_usd,
        "estimated_usd": done.estimated_usd,
        "missing": lines,
        "output": None if tabulated is None else tabulated.output,
        "records": 0 if tabulated is None else tabulated.rows,
        "trust": None if tabulated is None else tabulated.labelled_by.trust.to_json(),
    }


def _leave(lines: Sequence[str], done: Labelled, *, unwritten: str) -> None:
    if not lines:
        return
    for line in lines:
        err.print(line, soft_wrap=True)
    if done.asked.judged is not None and done.tabulated is None:
        err.print(unwritten)
    err.print("All answers are kept; the same command goes on from here.")
    raise typer.Exit(EXIT_FOUND)


def _print_skipped(samples: Path) -> None:
    """List the rows that were left out, on stderr."""
    manifest = read_manifest(samples)
    if not manifest.n_skipped:
        return
    err.print(f"left out {manifest.n_skipped:,} rows:")
    for row in manifest.skipped[:10]:
        where = f"row {row.row}" if row.field is None else f"row {row.row}, {row.field}"
        err.print(f"  {where}: {row.reason}", soft_wrap=True)
