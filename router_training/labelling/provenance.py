"""What the file beside labelled records says, from the config that labelled them."""

from __future__ import annotations

from collections.abc import Mapping

from router_runtime.target_config import TargetConfig
from router_runtime.types import Json
from router_training.labelled_by import AskedModel, JudgedBy, LabelledBy, LabelledCells
from router_training.labelling.config import JudgeConfig, LabelConfig
from router_training.labelling.rubrics import Rubric
from router_training.store import digest_of
from router_training.trust_report import TrustReport


def labelled_by(
    config: LabelConfig,
    *,
    rubric: Rubric | None,
    rows: int,
    records_sha256: str,
    cells: Mapping[str, LabelledCells],
    trust: TrustReport,
) -> LabelledBy:
    """Return what the file beside the records says.

    Parameters
    ----------
    config : LabelConfig
    rubric : Rubric or None
        The judge's.
    rows, records_sha256, cells, trust
        As in ``LabelledBy``.
    """
    ask = config.ask.model_dump(mode="json", include={"system", "parameters"})
    judge = config.judge
    return LabelledBy(
        rows=rows,
        records_sha256=records_sha256,
        candidates=tuple(
            _asked(entry.id, entry.target, ask) for entry in config.candidates if entry.target
        ),
        judge=None
        if judge is None or rubric is None
        else _judged_by(judge, rubric, candidates=config.judging_candidates),
        scorers={name: scorer.kind for name, scorer in config.scoring.scorers.items()},
        scoring_sha256=digest_of(config.scoring.model_dump(mode="json")),
        cells=dict(cells),
        trust=trust,
    )


def _judged_by(judge: JudgeConfig, rubric: Rubric, *, candidates: tuple[str, ...]) -> JudgedBy:
    return JudgedBy(
        models=tuple(_asked(entry.id, entry.target, judge.parameters) for entry in judge.models),
        rubric=rubric.name,
        rubric_version=rubric.version,
        rubric_sha256=rubric.digest,
        repeats=judge.repeats,
        combine=judge.combine or rubric.combine,
        baseline=judge.baseline,
        candidates=candidates,
    )


def _asked(model_id: str, target: TargetConfig, how: Json) -> AskedModel:
    digest = digest_of([target.parameters, how])
    return AskedModel(model_id, target.kind, target.model or model_id, digest)
