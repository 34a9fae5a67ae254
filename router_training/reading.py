"""Read the records that a training config names, checked against its candidates."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from router_runtime.candidates import price_table_of
from router_runtime.errors import ConfigError
from router_runtime.types import Modality
from router_training.config import TrainingConfig
from router_training.costing import fill_costs
from router_training.held_out import limited_rows
from router_training.importers import import_file
from router_training.labels import Evaluations


def read_records(config: TrainingConfig) -> Evaluations:
    """Read the records that the config names."""
    if config.data.path is None:
        raise ConfigError("No data: set data.path in the config, or pass --data FILE.")
    evaluations = import_file(
        config.data.path,
        source=config.data.source,
        image_root=config.data.image_root,
        drop_contaminated=config.data.drop_contaminated,
        on_bad_row=config.data.on_bad_row,
        model_ids=config.data.model_ids,
        rule=config.features.text,
    )
    unknown = {c.id for c in config.candidates} - set(evaluations.model_ids)
    if unknown:
        raise ConfigError(
            f"Candidate '{min(unknown)}' has no scores in '{config.data.path}' "
            f"(scored: {', '.join(evaluations.model_ids)}). Correct or remove it."
        )
    fallback = config.novelty.fallback
    if fallback != "off" and fallback.model not in (None, *evaluations.model_ids):
        raise ConfigError(
            f"novelty.fallback.model '{fallback.model}' has no scores in '{config.data.path}' "
            f"(scored: {', '.join(evaluations.model_ids)}). Correct or remove it."
        )
    kept = limited_rows(len(evaluations), config.data.limit, seed=config.seed)
    evaluations = replace(evaluations.take(kept), skipped=evaluations.skipped)
    prices = price_table_of(config.candidates, model_ids=evaluations.model_ids)
    labels = fill_costs(evaluations.labels, evaluations.queries, prices=prices)
    return replace(evaluations, labels=labels)


def scored_modalities(data: Evaluations) -> dict[str, tuple[Modality, ...]]:
    """Return per model the modalities of the queries that it has scores for."""
    scored = ~np.isnan(data.labels.Y)
    found = {}
    for column, model in enumerate(data.model_ids):
        pairs = zip(data.queries, scored[:, column], strict=True)
        seen = {modality for query, has in pairs if has for modality in query.modalities}
        found[model] = tuple(sorted(seen))
    return found
