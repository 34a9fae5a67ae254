"""How far labels can be trusted, in the console."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from router_runtime.console import plain_table
from router_training.evaluation_report import Interval
from router_training.trust_report import HumanTrust, JudgeTrust, Share, TrustReport
from router_training.wording import UNKNOWN, interval, number, percent

_MANY = 12  # verdicts named in one cell


def render_trust(report: TrustReport, console: Console) -> None:
    """Print who decided the scores, what judges did, and what people say of it."""
    parts: list[RenderableType] = [_candidates(report), *_decided(report)]
    if report.judges:
        parts += [_judges(report.judges), *_between(report)]
    parts += _suspicious(report)
    if report.human:
        parts += [_human(report.human), *map(Text, _confusion(report.human[0]))]
    if report.marks is not None:
        marks = report.marks
        parts.append(
            Text(
                f"{marks.marks} marks ({marks.unmatched} of no answer here, {marks.unscored} of "
                f"answers without a score), and {marks.unsure} left open"
            )
        )
    elif report.judges:
        parts.append(
            Text(
                "No human mark yet: router-train audit CONFIG --output DIR, mark the page, then "
                "router-train trust CONFIG --human marks.csv"
            )
        )
    console.print(Group(*parts))


def shown(share: Share | None) -> str:
    """Return a share as ``97.5% [95.0%, 98.9%]``."""
    if share is None or not share.n:
        return UNKNOWN
    return interval(Interval(share.value, share.low, share.high), percent)


def _table(title: str, first: str, headers: Sequence[str]) -> Table:
    table = plain_table(title)
    table.add_column(first, overflow="fold")
    for header in headers:
        table.add_column(header, justify="right")
    return table


def _candidates(report: TrustReport) -> Table:
    title = f"Labels of {report.samples} samples"
    table = _table(title, "candidate", ("answered", "scored", "mean score", "suspicious"))
    for entry in report.candidates:
        counts = (str(entry.answered), str(entry.scored))
        cells = (*counts, number(entry.mean_score), str(entry.suspicious))
        table.add_row(Text(entry.model_id), *cells)
    return table


def _decided(report: TrustReport) -> list[Text]:
    total = sum(report.decided.values())
    if not total:
        return []
    parts = ", ".join(f"{name} {percent(n / total)}" for name, n in report.decided.items())
    return [Text(f"Scores were decided by: {parts}")]


def _judges(judges: Sequence[JudgeTrust]) -> Table:
    headers = ("no verdict", "unreadable replies", "repeats agree", "apart", "orders agree")
    table = _table("Judges", "judge", headers)
    for entry in judges:
        table.add_row(
            Text(entry.model_id),
            shown(entry.unscored),
            shown(entry.unreadable),
            shown(entry.repeats),
            number(entry.repeats_difference),
            shown(entry.orders),
        )
        given = sorted(entry.verdicts.items(), key=lambda item: (-item[1], item[0]))
        said = ", ".join(f"{name} {count}" for name, count in given[:_MANY])
        table.add_row(Text(f"  {said}", style="dim"))
    return table


def _between(report: TrustReport) -> list[Text]:
    lines = [Text(f"Answers that came to a judge and have no score: {shown(report.no_verdict)}")]
    if report.between_judges is not None:
        lines.append(Text(f"Verdicts of two judges that agree: {shown(report.between_judges)}"))
    return lines


def _suspicious(report: TrustReport) -> list[Text]:
    return [
        Text(
            f"{entry.suspicious} answers of {entry.model_id} read like instructions to the judge; "
            f"their mean score is {number(entry.suspicious_score)}, that of all its answers "
            f"{number(entry.mean_score)}"
        )
        for entry in report.candidates
        if entry.suspicious
    ]


def _human(human: Sequence[HumanTrust]) -> Table:
    headers = ("marks", "accuracy", "Cohen's kappa", "apart", "labels covered")
    table = _table("Against human marks, weighted to all labels", "decided by", headers)
    for entry in human:
        table.add_row(
            Text(entry.by),
            str(entry.n),
            interval(entry.accuracy, percent),
            interval(entry.kappa, number),
            number(entry.mean_difference),
            percent(entry.covered),
        )
    return table


def _confusion(entry: HumanTrust) -> list[str]:
    (yes_yes, yes_no), (no_yes, no_no) = entry.confusion
    return [
        f"A person says yes: label yes {yes_yes}, label no {yes_no}",
        f"A person says no: label yes {no_yes}, label no {no_no}",
    ]
