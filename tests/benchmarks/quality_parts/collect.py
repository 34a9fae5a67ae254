"""From the results of all pieces of work to the report: means over seeds, intervals, tables."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence

from quality_parts.intervals import Comparison, compare
from quality_parts.measures import FIGURES
from quality_parts.report import (
    QualityReport,
    Section,
    Spread,
    SystemResult,
    TableResult,
    spread,
)
from quality_parts.work import Done, Measured
from router_training.evaluation_report import Interval

_STUDIES = {
    "ablation": (
        "What each ingredient is worth",
        "The default recipe and what changes without one of its ingredients, mean over the seeds.",
    ),
    "learning_curve": (
        "Learning curve",
        "The default recipe on a share of the groups of training and validation; encoders, which "
        "see no labels, are fitted to all texts and pictures of training.",
    ),
}
_STUDIED = (
    "auc",
    "brier",
    "ece",
    "aiq",
    "aiq_thresholds",
    "gap_98",
    "cost_98",
    "lead",
    "apgr",
)


def collect(results: Sequence[Done]) -> QualityReport:
    """Summarise all results."""
    by_study: dict[str, dict[str, list[Done]]] = {}
    for done in results:
        by_table = by_study.setdefault(done.work.study, {})
        by_table.setdefault(done.work.table.key, []).append(done)
    tables = tuple(_table(seeds) for seeds in by_study.pop("systems", {}).values())
    sections: list[Section] = []
    for study, by_table in by_study.items():
        if study in _STUDIES:
            sections += _systems_sections(study, by_table)
        else:
            module = importlib.import_module(f"quality_parts.{study}")
            found = {key: [done.found for done in seeds] for key, seeds in by_table.items()}
            sections.append(module.section(found))
    return QualityReport(tables, tuple(sections))


def _table(seeds: Sequence[Done]) -> TableResult:
    by_system = _by_system(seeds)
    recipe = by_system["recipe"]
    systems = {key: _system(measured) for key, measured in by_system.items()}
    if "question_only" in by_system:
        lead = [
            ours.figures["auc"] - blind.figures["auc"]
            for ours, blind in zip(recipe, by_system["question_only"], strict=True)
        ]
        systems["recipe"].figures["picture_auc"] = Spread.of(lead)
    comparisons = [
        compare(
            key,
            measured[0].title,
            recipe=[(m.figures, m.draws) for m in recipe],
            other=[(m.figures, m.draws) for m in measured],
            binding=measured[0].binding,
        )
        for key, measured in by_system.items()
        if key != "recipe"
    ]
    done = seeds[0]
    return TableResult(
        done.work.table, len(seeds), done.rows, tuple(systems.values()), tuple(comparisons)
    )


def _by_system(seeds: Sequence[Done]) -> dict[str, list[Measured]]:
    found: dict[str, list[Measured]] = {}
    for done in seeds:
        for measured in done.measured:
            found.setdefault(measured.system, []).append(measured)
    return found


def _system(measured: Sequence[Measured]) -> SystemResult:
    def means(name: str) -> dict[str, float]:
        keys = dict.fromkeys(key for m in measured for key in getattr(m, name))
        values = {
            key: [getattr(m, name)[key] for m in measured if key in getattr(m, name)]
            for key in keys
        }
        return {key: sum(found) / len(found) for key, found in values.items()}

    known = [key for key in FIGURES if any(key in m.figures for m in measured)]
    figures = {
        key: Spread.of(m.figures[key] for m in measured if key in m.figures) for key in known
    }
    first = measured[0]
    return SystemResult(first.system, first.title, figures, means("shares"), means("seconds"))


def _systems_sections(study: str, by_table: Mapping[str, Sequence[Done]]) -> list[Section]:
    """Return a table per table of outcomes; intervals are of the difference to the recipe."""
    title, note = _STUDIES[study]
    sections = []
    for key, seeds in by_table.items():
        by_system = _by_system(seeds)
        systems = [_system(measured) for measured in by_system.values()]
        names = [name for name in _STUDIED if name in systems[0].figures]
        rows, data = [], {}
        for system in systems:
            against = _against(by_system["recipe"], by_system[system.key])
            cells = (_cell(system, name, against.differences) for name in names)
            rows.append((system.title, *cells))
            data[system.key] = {
                "figures": {name: vars(system.figures[name]) for name in names},
                "minus_recipe": {k: vars(v) for k, v in against.differences.items()},
            }
        header = ("", *(FIGURES[name].title for name in names))
        note_here = f"{note} {len(seeds)} seeds. In brackets: the difference, 95 % interval."
        sections.append(Section(f"{title}: {key}", note_here, header, tuple(rows), data))
    return sections


def _against(recipe: Sequence[Measured], other: Sequence[Measured]) -> Comparison:
    """Return the other minus the recipe."""
    pairs = [[(m.figures, m.draws) for m in some] for some in (other, recipe)]
    return compare("recipe", "default recipe", recipe=pairs[0], other=pairs[1], binding=False)


def _cell(system: SystemResult, name: str, differences: Mapping[str, Interval]) -> str:
    text = spread(system.figures[name], percent=FIGURES[name].percent)
    if system.key == "recipe" or name not in differences:
        return text
    found = differences[name]
    return f"{text} ({found.estimate:+.4f} [{found.low:+.4f}, {found.high:+.4f}])"
