"""Reports as files: which page and which figures are made of an artifact, a walk or a router.

The page needs the ``report`` extra; what it imports is loaded when a page is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from router_runtime.artifacts import Manifest
from router_runtime.console import explained_imports
from router_runtime.errors import ConfigError
from router_runtime.model_router import ModelRouter
from router_runtime.prediction.parts import predictor_facts
from router_runtime.types import Json
from router_training.evaluation_report import EvaluationReport
from router_training.labels import Evaluations
from router_training.pipeline import Walk
from router_training.report import write_report_json
from router_training.report_examples import Example, examples_of
from router_training.served import Served
from router_training.store import refuse_artifact_folder

_DIGEST = 16  # characters of a digest that are shown


@dataclass(frozen=True)
class Wanted:
    """Which files a user asked for.

    Parameters
    ----------
    json, html : Path or None
        Files to write.
    plots : Path or None
        Folder for the figures as PNG.
    examples : int
        Worst regrets with prompts and pictures in the page; 0 keeps every text out of it.
    """

    json: Path | None = None
    html: Path | None = None
    plots: Path | None = None
    examples: int = 0

    def check(self) -> None:
        """Look at the places and load what page and figures are made with, before slow work.

        Raises
        ------
        ConfigError
            JSON and page are one file, or a place is an artifact's folder.
        MissingDependencyError
            Without the ``report`` extra.
        """
        if self.json is not None and self.json == self.html:
            raise ConfigError(f"'{self.json}' is named for both JSON and page; name two files.")
        files = (path.parent for path in (self.json, self.html) if path is not None)
        for folder in (*files, *(() if self.plots is None else (self.plots,))):
            refuse_artifact_folder(folder)
        if self.html is not None or self.plots is not None:
            with explained_imports("report"):
                importlib.import_module("router_training.report_html")

    @property
    def shown(self) -> int:
        """How many examples a page will show: none without a page."""
        return 0 if self.html is None else self.examples


@dataclass(frozen=True)
class Subject:
    """What a page is about: its title, and the facts in its head in their order."""

    title: str
    facts: Mapping[str, str]


def write_files(
    report: EvaluationReport, wanted: Wanted, subject: Subject, *, examples: Sequence[Example] = ()
) -> None:
    """Write what is wanted, each file completely or not at all.

    Raises
    ------
    RouterError
        A folder cannot be written, or the ``report`` extra is missing.
    """
    wanted.check()
    if wanted.json is not None:
        write_report_json(report, wanted.json)
    if wanted.html is not None:
        html = importlib.import_module("router_training.report_html")
        page = html.render_html(report, title=subject.title, facts=subject.facts, examples=examples)
        html.write_html(page, wanted.html)
    if wanted.plots is not None:
        importlib.import_module("router_training.plots").write_plots(report, wanted.plots)


def write_walk_files(walk: Walk, wanted: Wanted) -> None:
    """Write what is wanted of a training run, with examples from its test rows.

    Raises
    ------
    RouterError
        As ``write_files``, or whatever is wrong with config or data.
    """
    wanted.check()
    examples: tuple[Example, ...] = ()
    if wanted.shown:
        samples = walk.data.take(walk.split.test).samples
        examples = examples_of(walk.regrets(wanted.shown), samples, cost_unit=walk.costs.unit)
    write_files(walk.report, wanted, subject_of_walk(walk), examples=examples)


def write_served_files(
    report: EvaluationReport, served: Served, wanted: Wanted, *, name: str
) -> None:
    """Write what is wanted of an evaluation, with examples from its records.

    Parameters
    ----------
    report : EvaluationReport
        Of ``served``.
    served : Served
    wanted : Wanted
    name : str
        Of the records.

    Raises
    ------
    RouterError
        As ``write_files``.
    """
    router, data = served.router, served.data
    examples: tuple[Example, ...] = ()
    if wanted.shown:
        regrets = served.regrets(wanted.shown)
        examples = examples_of(regrets, data.samples, cost_unit=router.cost_unit)
    write_files(report, wanted, subject_of_router(router, data, name=name), examples=examples)


def added_since(manifest: Manifest, report: EvaluationReport) -> tuple[str, ...]:
    """Return the models of an artifact that the figures it carries know nothing of."""
    known = {model.model_id for model in report.models}
    return tuple(model for model in manifest.model_ids if model not in known)


def subject_of_manifest(
    manifest: Manifest, *, name: str, added: Sequence[str] = (), made: datetime | None = None
) -> Subject:
    """Return the head of an artifact's page: ``added`` see ``added_since``; ``made`` is now."""
    facts = {"artifact": name, "written by": manifest.created_by}
    if added:
        facts["without"] = f"{', '.join(added)} (added since)"
    facts["router"] = router_name(manifest.predictor)
    return Subject(f"Router report: {name}", _facts(facts, manifest.training, made))


def subject_of_walk(walk: Walk, *, made: datetime | None = None) -> Subject:
    """Return the head of the page of a training run; ``made`` is now by default."""
    name = walk.config.output.name
    facts = {"artifact": name, "router": router_name(walk.parts.describe())}
    return Subject(f"Router report: {name}", _facts(facts, walk.provenance, made))


def subject_of_router(
    router: ModelRouter, data: Evaluations, *, name: str, made: datetime | None = None
) -> Subject:
    """Return the head of the page of an evaluation on given records; ``made`` is now by default."""
    artifact = router.artifact
    facts = {
        "artifact": artifact.artifact_id,
        "router": router_name(artifact.parts.describe()),
        "records": f"{name}, {len(data):,} rows, sha256 {data.fingerprint[:_DIGEST]}",
    }
    return Subject(f"Router report: {name}", _facts(facts, artifact.training, made))


def router_name(description: Mapping[str, Json]) -> str:
    """Return what a manifest's ``predictor`` is, in a few words."""
    facts = predictor_facts(description)
    if "head" in facts:
        return f"{facts['head']} on {facts['encoders']}"
    return ", ".join(facts.values())


def _facts(
    facts: Mapping[str, str], training: Mapping[str, Json], made: datetime | None
) -> dict[str, str]:
    """Add the date and what the provenance tells, which may be little in imported artifacts."""
    moment = (made or datetime.now(UTC)).strftime("%Y-%m-%d %H:%M %Z").strip()
    found = {"made": moment, **facts}
    if "data_sha256" in training:
        found["trained on"] = (
            f"{training.get('rows', '-')} records, sha256 {str(training['data_sha256'])[:_DIGEST]}"
        )
    if isinstance(training.get("parts"), dict):
        found["division"] = ", ".join(f"{part} {n}" for part, n in training["parts"].items())
    if "seed" in training:
        found["seed"] = str(training["seed"])
    return found
