"""The model card: what an artifact is, what it was made from, how good it is, where it fails.

Model ids and names of data sets come from data files: they are escaped wherever they stand, so that
none of them can end a table cell or start markup.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

from router_runtime.artifacts import Artifact
from router_runtime.config import CandidateConfig
from router_runtime.prediction.parts import predictor_facts
from router_runtime.types import Json
from router_training.evaluation_report import (
    EvaluationReport,
    HonestPoint,
    Interval,
    Slice,
    Strategy,
)
from router_training.labelled_by import JudgedBy, LabelledBy
from router_training.made_from import MadeFrom
from router_training.trust_report import Share
from router_training.wording import (
    bounds,
    cost_header,
    curve_figures,
    failures,
    honest_name,
    interval,
    number,
    one_line,
    per_1k,
    percent,
    share,
    signed,
    verdict,
    yaml_lines,
)

_MARKUP = str.maketrans({sign: f"\\{sign}" for sign in "\\`*[]<>|~&"})
_EMPHASIS = re.compile(r"(?<!\w)_|_(?!\w)")  # between letters it is only itself


def render_card(
    artifact: Artifact, report: EvaluationReport, *, candidates: Sequence[CandidateConfig] = ()
) -> str:
    """Return the card as Markdown with YAML front matter.

    Parameters
    ----------
    artifact : Artifact
        What the card is about.
    report : EvaluationReport
        Its held-out figures.
    candidates : sequence of CandidateConfig
        As configured for training; their prices are chosen, so that the artifact has none.
    """
    sections = {
        "Data": _data(artifact, report),
        "Tables": _tables(artifact),
        "Labels": _labels(artifact),
        "Held-out figures": f"{escaped(verdict(report))}\n\n{_strategies(report)}",
        "What to expect": _expectations(report),
        "Read off the test curves": _curves(report),
        "Slices": _slices(report),
        "Kinds of task that it never saw": _left_out(artifact),
        "Probabilities per model": _models(report),
        "Where it fails": "".join(f"- {escaped(line)}\n" for line in failures(report)),
        "Unlike the training data": _novelty(artifact),
        "Intended use": _INTENDED,
        "Use": _use(artifact, candidates),
        "Limits": _limits(artifact),
    }
    parts = [f"## {heading}\n\n{text}" for heading, text in sections.items() if text]
    return "\n".join([_front_matter(artifact, report), _summary(artifact), *parts])


def escaped(text: str) -> str:
    """Return text as one line of Markdown that shows the same characters and does nothing."""
    return _EMPHASIS.sub(r"\\_", one_line(text).translate(_MARKUP))


# --------------------------------------------------------------------------- front matter


def _front_matter(artifact: Artifact, report: EvaluationReport) -> str:
    """Return the metadata that model hubs read: results stand in ``model-index``."""
    content = {
        "library_name": "model-router",
        "pipeline_tag": "text-classification",
        "tags": ["llm-router", *artifact.parts.encoders],
        **_kind(artifact),
        "models": list(artifact.model_ids),
        "model-index": [
            {
                "name": "router",
                "results": [
                    {
                        "task": {"type": "text-classification", "name": "model routing"},
                        "dataset": {"type": "evaluation-records", "name": "held-out rows"},
                        "metrics": _metrics(report),
                    }
                ],
            }
        ],
    }
    return f"---\n{yaml_lines(content)}---\n"


def _metrics(report: EvaluationReport) -> list[Json]:
    values = {
        "router_accuracy": report.strategy("router").outcome.quality,
        "best_single_accuracy": report.strategy("best_single").outcome.quality,
        "share_of_best_single_cost": report.cost_ratio.estimate,
        "auc": report.pooled.auc,
        "brier": report.pooled.brier,
        "ece": report.pooled.ece,
    }
    return [
        {"type": name, "value": round(value, 4)}
        for name, value in values.items()
        if math.isfinite(value)
    ]


# --------------------------------------------------------------------------- figures


def _kind(artifact: Artifact) -> dict[str, Json]:
    if artifact.parts.kind == "features":
        return {"head": artifact.head.kind}
    return {"predictor": artifact.parts.kind}


def _summary(artifact: Artifact) -> str:
    if artifact.parts.kind == "features":
        encoders = ", ".join(artifact.parts.encoders)
        source = f"{artifact.head.n_features} features ({encoders}; head `{artifact.head.kind}`)"
    else:
        facts = predictor_facts(artifact.parts.describe())
        told = "; ".join(f"{name} {escaped(value)}" for name, value in facts.items())
        source = f"the request itself ({told})"
    return (
        "# Router artifact\n\n"
        f"Predicts for {len(artifact.model_ids)} models how likely each answers well, from "
        f"{source}.\n"
    )


def _data(artifact: Artifact, report: EvaluationReport) -> str:
    training = artifact.training
    parts = ", ".join(f"{count} {part}" for part, count in training["parts"].items())
    return (
        f"{training['rows']} records ({parts}; {training['skipped_rows']} left out), split by "
        f"group with seed {training['seed']}, so that rows of one group never part; data digest "
        f"`{training['data_sha256'][:16]}`. All figures are of the {report.n_queries} test rows, "
        f"which nothing was chosen on, with {report.n_scores} scores; intervals are 95 % "
        "percentile intervals of a paired bootstrap over groups.\n"
    )


def _tables(artifact: Artifact) -> str:
    """Say which public tables the records were made from, and what stands for each column there."""
    content = artifact.training.get("tables")
    if content is None:
        return ""
    tables = MadeFrom.from_json(content).tables
    tiers = list(tables[0].models) if tables else []
    rows = (
        (
            escaped(f"{table.name}: {table.origin}"),
            str(table.rows),
            *(escaped(table.models.get(tier, "-")) for tier in tiers),
            "recorded" if table.recorded_costs else "nominal",
            escaped(table.licence),
        )
        for table in tables
    )
    return (
        "The columns are tiers and no models: each table has one model that stands for a tier. "
        "What is learned is which requests a weak model answers as well, so that it can be used "
        "for other models (`tier` of a candidate in a runtime config); how often one's own weak "
        "model is right remains unknown until it is measured. Requests unlike these tables, as "
        "most of a chat is, go to the policy's fallback: nothing is lost there, and nothing saved. "
        "The artifact holds weights and figures: no prompt, picture or answer.\n\n"
        + _table(("table", "records", *map(escaped, tiers), "costs", "licence"), rows)
    )


def _left_out(artifact: Artifact) -> str:
    """Tell what happened on each data set when it was left out of training."""
    entries = artifact.metrics.get("left_out")
    if not entries:
        return ""
    rows = (
        (
            escaped(entry["dataset"]),
            str(entry["n"]),
            percent(_or_nan(entry["novel_share"])),
            share(_or_nan(entry["accuracy"])),
            interval(Interval(**{k: _or_nan(v) for k, v in entry["gap"].items()}), signed),
            percent(_or_nan(entry["cost"]) / (_or_nan(entry["default_cost"]) or math.nan)),
            number(_or_nan(entry["auc"])),
            number(_or_nan(entry["brier"])),
            number(_or_nan(entry["prior_brier"])),
        )
        for entry in entries
    )
    header = ("left out", "rows", "novel", "accuracy", "minus best single", "of its cost", "AUC")
    return (
        "Each data set in turn by a router of the same settings that was trained on the others. "
        "The best single model is the best on those. An AUC near .5, or a Brier score that is no "
        "better than that of the others' mean scores, says that nothing carries over.\n\n"
        + _table((*header, "Brier", "Brier of means"), rows)
    )


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _labels(artifact: Artifact) -> str:
    """Say who judged, how much has no score, and how far the scores can be trusted."""
    content = artifact.training.get("labels")
    if content is None:
        return ""
    labelled = LabelledBy.from_json(content)
    trust = labelled.trust
    decided = ", ".join(f"{escaped(name)} {n}" for name, n in trust.decided.items())
    sentences = [
        f"Scores were decided by: {decided or 'nobody'}.",
        f"{percent(labelled.unscored_share)} of the answers that could have a score have none.",
    ]
    if labelled.judge is not None:
        sentences += [_judge(labelled.judge), *_agreement(labelled)]
    suspicious = sum(entry.suspicious for entry in trust.candidates)
    if suspicious:
        sentences.append(f"{suspicious} answers read like instructions to the judge.")
    for entry in trust.human[:1]:
        sentences.append(
            f"Against {entry.n} human marks: accuracy {interval(entry.accuracy, percent)}, Cohen's "
            f"kappa {interval(entry.kappa, number)}."
        )
    if labelled.judge is not None and not trust.human:
        sentences.append("No human has checked the judge's verdicts.")
    return " ".join(sentences) + "\n"


def _judge(judge: JudgedBy) -> str:
    names = ", ".join(escaped(entry.id) for entry in judge.models)
    told = f"The judge was {names}, by the rubric {escaped(judge.rubric)} {judge.rubric_version}."
    if judge.candidates:
        own = ", ".join(map(escaped, judge.candidates))
        told += f" **Of the candidates, {own} judged, which may favour its own answers.**"
    return told


def _agreement(labelled: LabelledBy) -> list[str]:
    def told(name: str, found: Share | None) -> list[str]:
        if found is None or not found.n:
            return []
        return [f"{name} {interval(Interval(found.value, found.low, found.high), percent)}."]

    lines = told("Answers that it could not decide:", labelled.trust.no_verdict)
    for judge in labelled.trust.judges:
        lines += told(f"Repeated verdicts of {escaped(judge.model_id)} that agree:", judge.repeats)
        lines += told(f"Orders in which {escaped(judge.model_id)} agrees:", judge.orders)
    return lines + told("Verdicts of two judges that agree:", labelled.trust.between_judges)


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    names = list(header)
    lines = ["| " + " | ".join(names) + " |", "|---|" + "---:|" * (len(names) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _strategies(report: EvaluationReport) -> str:
    def row(entry: Strategy) -> tuple[str, ...]:
        return (
            escaped(entry.name),
            share(entry.outcome.quality),
            interval(entry.gap, signed),
            per_1k(entry.outcome.cost),
            interval(entry.savings, percent),
            str(entry.outcome.n_scored),
        )

    header = ("strategy", "accuracy", "minus best single", cost_header(report.cost_unit), "saved")
    return _table((*header, "rows"), (row(entry) for entry in report.strategies))


def _expectations(report: EvaluationReport) -> str:
    def row(point: HonestPoint) -> tuple[str, ...]:
        return (
            escaped(honest_name(point.name)),
            share(point.outcome.quality),
            interval(point.gap, signed),
            per_1k(point.outcome.cost),
            interval(point.cost_ratio, percent),
        )

    if not report.honest:
        return ""
    header = ("policy", "accuracy", "minus best single", cost_header(report.cost_unit))
    return (
        "The numbers of these policies were chosen on the calibration rows; what they achieve on "
        "the test rows is what to expect.\n\n"
        + _table((*header, "of its cost"), (row(point) for point in report.honest))
    )


def _curves(report: EvaluationReport) -> str:
    rows = [(escaped(name), value, bound) for name, value, bound in curve_figures(report)]
    if not rows:
        return ""
    return "With the answers known: to compare routers by, not to expect.\n\n" + _table(
        ("measure", "value", "95 %"), rows
    )


def _slices(report: EvaluationReport) -> str:
    def row(part: Slice) -> tuple[str, ...]:
        return (
            escaped(f"{part.by}: {part.value}"),
            str(part.n),
            share(part.outcome.quality),
            signed(part.gap.estimate),
            bounds(part.gap, signed),
            percent(part.cost_ratio.estimate),
            number(part.metrics.auc),
            number(part.metrics.ece),
        )

    if not report.slices:
        return ""
    header = ("slice", "queries", "accuracy", "minus best single", "95 %", "of its cost")
    return _table((*header, "AUC", "ECE"), (row(part) for part in report.slices))


def _models(report: EvaluationReport) -> str:
    def rows() -> Iterable[tuple[str, ...]]:
        for entry in report.models:
            m = entry.metrics
            figures = (m.auc, m.accuracy, m.f1, m.positive_rate, m.brier, m.ece)
            chosen = (percent(entry.share), share(entry.quality_when_chosen))
            seconds = (number(entry.median_seconds),) if timed else ()
            yield (escaped(entry.model_id), *map(share, figures), *chosen, *seconds)

    timed = any(math.isfinite(entry.median_seconds) for entry in report.models)
    header = ("model", "AUC", "accuracy", "F1", "positive rate", "Brier", "ECE", "chosen")
    return _table((*header, "then right", *(("median s",) if timed else ())), rows())


# --------------------------------------------------------------------------- use

_INTENDED = (
    "Choosing, per request, which of the models above answers it, by quality and cost. The "
    "probabilities are of the scores that the records hold, by whatever judged them; they say "
    "nothing about safety, and routing is no safeguard: let no access rule depend on it.\n"
)


def _novelty(artifact: Artifact) -> str:
    if artifact.novelty is None and artifact.tells_novelty:
        return (
            "`decision.novelty` is 1 where nothing could be told of a request, and 0 elsewhere; "
            "the recommended policy's fallback takes such requests.\n"
        )
    if artifact.novelty is None:
        return (
            "This artifact does not measure how far a request is from its training data: requests "
            "of another kind or language are predicted as if they were alike.\n"
        )
    text = (
        "`decision.novelty` tells how unlike the training data a request is, as a percentile of "
        "rows like it: 0.99 means further away than 99 % of them. "
    )
    shrink_above = artifact.training.get("novelty", {}).get("shrink_above")
    if shrink_above is not None and shrink_above < 1:
        text += f"Above {shrink_above} probabilities go to each model's base rate. "
    fallback = (artifact.recommended_policy or {}).get("fallback")
    if fallback:
        text += (
            f"Above {fallback['novelty_above']} the recommended policy takes "
            f"{escaped(fallback['model'])} if it may serve the request."
        )
    else:
        text += "The recommended policy has no fallback."
    return f"{text}\n"


def _use(artifact: Artifact, candidates: Sequence[CandidateConfig]) -> str:
    content: dict[str, Json] = {"artifact": "."}
    if candidates:
        content["candidates"] = [_candidate(entry) for entry in candidates]
    content["policies"] = {"recommended": dict(artifact.recommended_policy or {})}
    content["policy"] = "recommended"
    return (
        "A runtime config with the policy that was tuned on the calibration rows and, where they "
        "were configured, the prices that it was tuned with; `artifact` is relative to the "
        f"config:\n\n```yaml\n{yaml_lines(content)}```\n"
    )


def _candidate(entry: CandidateConfig) -> dict[str, Json]:
    content = entry.model_dump(mode="json", exclude_defaults=True)
    if entry.price is not None:
        content["price"] = {key: float(value) for key, value in content["price"].items()}
    if "modalities" in content:
        content["modalities"] = sorted(content["modalities"])
    return content


def _limits(artifact: Artifact) -> str:
    points = [
        "Requests unlike the training records (another kind of task, another language) are "
        "predicted at chance; retrain on your own traffic.",
        "The best single model above is the best on these very rows, which flatters it a little.",
    ]
    blind = [m for m, seen in artifact.scored_modalities.items() if "image" not in seen]
    if blind:
        points.append(f"Never scored on a picture: {', '.join(map(escaped, blind))}.")
    if artifact.novelty is not None:
        points.append(
            "Novelty keeps reduced feature vectors of some training records, and the manifest a "
            "mark of four bytes for each record: no text, but who holds a record word for word "
            "can tell whether it was trained on."
        )
    if artifact.parts.kind == "features" and artifact.head.kind in ("knn", "stack"):
        points.append(
            "A nearest-neighbour head keeps reduced feature vectors of training records; they are "
            "no text and no picture, but share the artifact as you would share embeddings."
        )
    return "".join(f"- {point}\n" for point in points)
