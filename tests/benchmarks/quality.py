"""How good the default recipe is on three tables of real outcomes, beside all it competes with.

    python tests/benchmarks/quality.py --data ../shared/data --seeds 5

Per table and seed the rows are split by group: 60 % train, 10 % validation, 10 % calibration, 20 %
test. Heads see train, settings and early stopping validation (the default recipe, kNN and logistic
regression are fitted on both in the end), calibration maps and policies calibration; test rows are
looked at once. All systems have the same rows and features. Means over
the seeds come with standard deviations, the default recipe's lead with paired intervals.

Without further flags the tables are measured. ``--ablation``, ``--learning-curve``, ``--left-out``
and ``--add-model`` add studies, ``--all`` adds all of them.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # processes share the cores, threads would not
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import json
import multiprocessing
import queue
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from pathlib import Path

from quality_parts.collect import collect
from quality_parts.report import QualityReport
from quality_parts.tables import TABLES, Table
from quality_parts.work import Done, Study, Work, do
from rich.console import Console
from rich.progress import Progress, TaskID

EXTRA_SEEDS = 2
"""Seeds of every study but the main one."""


def main(arguments: Sequence[str] | None = None, *, tables: dict[str, Table] | None = None) -> int:
    """Run the benchmark; return 1 if ``--check`` is given and a must is missed.

    Parameters
    ----------
    arguments : sequence of str, optional
        The command line.
    tables : mapping, optional
        Other tables than the three.
    """
    known = TABLES if tables is None else tables
    options = _parser(known).parse_args(arguments)
    works = list(_works(options, known))
    console = Console()
    report = collect(_results(works, jobs=options.jobs, console=console))
    _present(report, console=console, output=options.output)
    return int(options.check and bool(report.missed_musts))


def _parser(tables: dict[str, Table]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder of the tables of real outcomes")
    add("--seeds", type=int, default=5, help="splits, 0 and up")
    add("--tables", nargs="+", choices=list(tables), default=list(tables))
    add("--limit", type=int, help="random rows of each table, to try things out")
    add("--work", type=Path, default=Path("runs/quality"), help="where results are kept")
    add("--output", type=Path, help="folder for quality.json and quality.md")
    add("--jobs", type=int, default=1, help="processes")
    add("--resamples", type=int, default=1000, help="draws of the bootstrap")
    add("--minilm", action="store_true", help="also the recipe with the sentence encoder")
    add("--ablation", action="store_true", help="the recipe without each ingredient")
    add("--learning-curve", action="store_true", help="quality against training rows")
    add("--left-out", action="store_true", help="each data set left out in turn")
    add("--add-model", action="store_true", help="hide a model and add it back")
    add("--extra-seeds", type=int, default=EXTRA_SEEDS, help="seeds of the four studies")
    add("--all", action="store_true", help="all four studies")
    add("--check", action="store_true", help="exit status 1 if a must is missed")
    return parser


def _works(options: argparse.Namespace, tables: dict[str, Table]) -> Iterator[Work]:
    studies: list[tuple[Study, int]] = [("systems", options.seeds)]
    for study in ("ablation", "learning_curve", "left_out", "add_model"):
        if options.all or getattr(options, study):
            studies.append((study, min(options.seeds, options.extra_seeds)))
    for study, seeds in studies:
        for key in options.tables:
            if study == "left_out" and not tables[key].left_out:
                continue
            for seed in range(seeds):
                yield Work(
                    table=tables[key],
                    study=study,
                    seed=seed,
                    data=options.data,
                    folder=options.work.resolve(),
                    limit=options.limit,
                    resamples=options.resamples,
                    minilm=options.minilm,
                )


def _results(works: Sequence[Work], *, jobs: int, console: Console) -> list[Done]:
    """Do all works, in this process or in several, and show how far they are."""
    with Progress(console=console, transient=True) as progress:
        overall = progress.add_task("all", total=len(works))

        def say(name: str, what: str) -> None:
            progress.update(overall, description=f"{name}: {what}")

        if jobs > 1:
            return _in_processes(works, jobs, progress, overall)
        results = []
        for work in works:
            results.append(do(work, lambda what, work=work: say(_name(work), what)))
            progress.advance(overall)
        return results


def _in_processes(
    works: Sequence[Work], jobs: int, progress: Progress, overall: TaskID
) -> list[Done]:
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(jobs, mp_context=context) as pool:
        said = manager.Queue()
        futures: list[Future[Done]] = [pool.submit(_do_saying, work, said) for work in works]
        waiting = set(futures)
        while waiting:
            done, waiting = wait(waiting, timeout=0.5)
            progress.advance(overall, len(done))
            for future in done:
                if future.exception() is not None:
                    pool.shutdown(wait=False, cancel_futures=True)
                future.result()
            _show_latest(said, progress, overall)
        return [future.result() for future in futures]


def _do_saying(work: Work, said: queue.Queue[str]) -> Done:
    return do(work, lambda what: said.put(f"{_name(work)}: {what}"))


def _show_latest(said: queue.Queue[str], progress: Progress, overall: TaskID) -> None:
    while True:
        try:
            progress.update(overall, description=said.get_nowait())
        except queue.Empty:
            return


def _name(work: Work) -> str:
    return f"{work.table.key} {work.study} seed {work.seed}"


def _present(report: QualityReport, *, console: Console, output: Path | None) -> None:
    markdown = report.to_markdown()
    print(markdown)
    for line in report.missed_musts:
        console.print(f"missed: {line}", markup=False)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        (output / "quality.md").write_text(markdown, encoding="utf-8")
        content = json.dumps(report.to_json(), indent=2)
        (output / "quality.json").write_text(content + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
