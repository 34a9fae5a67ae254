"""The model card: what an artifact is, what it was made from, how good it is, where it fails."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import yaml

from router_runtime.artifacts import Artifact
from router_runtime.config import CandidateConfig
from router_runtime.types import Json
from router_training.evaluate import EvaluationReport, Strategy

_COST = {"usd": "USD per 1,000 calls", "relative": "relative cost", "unknown": "cost"}


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
    sections = [
        _front_matter(artifact, report),
        "# Router artifact\n",
        _summary(artifact, report),
        "## Held-out figures\n",
        _strategies(report),
        "## Probabilities per model\n",
        _models(report),
        "## Use\n",
        _use(artifact, candidates),
        "## Limits\n",
        _limits(artifact, report),
    ]
    return "\n".join(sections)


def _front_matter(artifact: Artifact, report: EvaluationReport) -> str:
    router = report.strategy("router").outcome
    content = {
        "library_name": "model-router",
        "tags": ["llm-router", *(spec.kind for spec in artifact.features.encoders)],
        "models": list(artifact.model_ids),
        "head": artifact.head.kind,
        "metrics": {
            "router_accuracy": round(router.quality, 4),
            "auc": round(report.pooled.auc, 4),
            "brier": round(report.pooled.brier, 4),
            "ece": round(report.pooled.ece, 4),
        },
    }
    return f"---\n{yaml.safe_dump(content, sort_keys=False)}---\n"


def _summary(artifact: Artifact, report: EvaluationReport) -> str:
    training = artifact.training
    parts = ", ".join(f"{count} {part}" for part, count in training["parts"].items())
    encoders = ", ".join(spec.kind for spec in artifact.features.encoders)
    gap, ratio = report.quality_gap, report.cost_ratio
    text = (
        f"Predicts for {len(artifact.model_ids)} models how likely each answers well, from "
        f"{artifact.head.n_features} features ({encoders}). Trained on {training['rows']} records "
        f"({parts} rows; {training['skipped_rows']} left out), split by group with seed "
        f"{training['seed']}; data digest `{training['data_sha256'][:16]}`.\n\n"
        f"On the held-out rows the router's accuracy minus that of the best single model "
        f"({report.best_single}) is {gap.estimate:+.4f} "
        f"(95 % interval {gap.low:+.4f} to {gap.high:+.4f}, paired bootstrap)"
    )
    if math.isnan(ratio.estimate):
        return f"{text}; no cost is known.\n"
    return (
        f"{text}, at {ratio.estimate:.1%} of its cost "
        f"(95 % interval {ratio.low:.1%} to {ratio.high:.1%}).\n"
    )


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    names = list(header)
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _strategies(report: EvaluationReport) -> str:
    def row(entry: Strategy) -> tuple[str, ...]:
        scale = 1000 if report.cost_unit == "usd" else 1
        return (
            entry.name,
            _number(entry.outcome.quality),
            _number(entry.outcome.cost * scale),
            _percent(entry.savings),
            str(entry.outcome.n_scored),
        )

    header = ("strategy", "accuracy", _COST[report.cost_unit], "saved", "rows")
    return _table(header, (row(entry) for entry in report.strategies))


def _models(report: EvaluationReport) -> str:
    def rows() -> Iterable[tuple[str, ...]]:
        for entry in report.models:
            m = entry.metrics
            figures = (m.auc, m.accuracy, m.f1, m.positive_rate, m.brier, m.ece)
            yield (entry.model_id, *(_number(value) for value in figures), _percent(entry.share))

    header = ("model", "AUC", "accuracy", "F1", "positive rate", "Brier", "ECE", "chosen")
    return _table(header, rows())


def _use(artifact: Artifact, candidates: Sequence[CandidateConfig]) -> str:
    content: dict[str, Json] = {"artifact": "."}
    if candidates:
        content["candidates"] = [_candidate(entry) for entry in candidates]
    content["policies"] = {"recommended": dict(artifact.recommended_policy or {})}
    content["policy"] = "recommended"
    return (
        "A runtime config with the policy that was tuned on the calibration rows and, where they "
        "were configured, the prices that it was tuned with; `artifact` is relative to the "
        f"config:\n\n```yaml\n{yaml.safe_dump(content, sort_keys=False)}```\n"
    )


def _candidate(entry: CandidateConfig) -> dict[str, Json]:
    content = entry.model_dump(mode="json", exclude_defaults=True)
    if entry.price is not None:
        content["price"] = {key: float(value) for key, value in content["price"].items()}
    if "modalities" in content:
        content["modalities"] = sorted(content["modalities"])
    return content


def _limits(artifact: Artifact, report: EvaluationReport) -> str:
    weakest = min(
        (entry for entry in report.models if not math.isnan(entry.metrics.auc)),
        key=lambda entry: entry.metrics.auc,
        default=None,
    )
    points = [
        "Requests unlike the training records (another kind of task, another language) are "
        "predicted at chance; retrain on your own traffic.",
        "The best single model above is the best on these very rows, which flatters it a little.",
    ]
    if weakest is not None:
        auc = weakest.metrics.auc
        points.append(f"Least predictable model: {weakest.model_id} (AUC {auc:.3f}).")
    blind = [m for m, seen in artifact.scored_modalities.items() if "image" not in seen]
    if blind:
        points.append(f"Never scored on a picture: {', '.join(blind)}.")
    if artifact.head.kind in ("knn", "stack"):
        points.append(
            "A nearest-neighbour head keeps reduced feature vectors of training records; they are "
            "no text and no picture, but share the artifact as you would share embeddings."
        )
    return "".join(f"- {point}\n" for point in points)


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1%}"
