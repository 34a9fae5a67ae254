"""Candidates as configured, in the column order of an artifact: capabilities and prices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from router_runtime.config import CandidateConfig, FixedConfig, RuntimeConfig
from router_runtime.eligibility import NOT_CONFIGURED, Capabilities
from router_runtime.errors import ConfigError
from router_runtime.pricing import PriceTable, price_from_mapping
from router_runtime.types import Modality


def capabilities_of(
    candidates: Sequence[CandidateConfig],
    *,
    model_ids: Sequence[str],
    scored_modalities: Mapping[str, Sequence[Modality]],
) -> list[Capabilities]:
    """Return each column's capabilities.

    Parameters
    ----------
    candidates : sequence of CandidateConfig
        What the config says. Models that it does not list are blocked. Empty: every model may be
        chosen, for the modalities that it was scored on in training.
    model_ids : sequence of str
        Column order.
    scored_modalities : mapping
        Learned: per model, the modalities of the queries that it has scores for.
    """
    if not candidates:
        return [
            Capabilities(modalities=frozenset(scored_modalities.get(model) or Modality))
            for model in model_ids
        ]
    configured = {entry.id: entry for entry in candidates}
    return [
        Capabilities(entry.modalities, entry.context_window, entry.tools, entry.json_mode)
        if (entry := configured.get(model))
        else Capabilities(blocked=NOT_CONFIGURED)
        for model in model_ids
    ]


def price_table_of(
    candidates: Sequence[CandidateConfig],
    *,
    model_ids: Sequence[str],
    model_costs: Mapping[str, float] | None = None,
) -> PriceTable | None:
    """Return configured prices or relative factors in column order; None when there are none.

    Raises
    ------
    ConfigError
        If prices and relative factors are mixed.
    """
    factors = {entry.id: entry.cost for entry in candidates if entry.cost is not None}
    factors |= model_costs or {}
    prices = {entry.id: entry.price for entry in candidates if entry.price is not None}
    if not factors and not prices:
        return None
    return PriceTable(
        model_ids=tuple(model_ids),
        prices=tuple(
            price_from_mapping(prices[model].model_dump(), owner=model) if model in prices else None
            for model in model_ids
        ),
        factors=tuple(factors.get(model) for model in model_ids),
    )


def names_of(candidates: Sequence[CandidateConfig], *, columns: Sequence[str]) -> tuple[str, ...]:
    """Return what the columns of an artifact are called here.

    Parameters
    ----------
    candidates : sequence of CandidateConfig
    columns : sequence of str
        The artifact's model ids.

    Returns
    -------
    tuple of str
        The candidate's id where one has the column as its ``tier``, else the artifact's name.

    Raises
    ------
    ConfigError
        A tier is not in the artifact, or a candidate's id is the name of another column.
    """
    own: dict[str, str] = {}
    for candidate in candidates:
        if candidate.tier is None:
            continue
        if candidate.tier not in columns:
            raise ConfigError(
                f"Candidate '{candidate.id}' has tier '{candidate.tier}', which the artifact does "
                f"not have (its columns: {', '.join(columns)}). Correct 'tier'."
            )
        own[candidate.tier] = candidate.id
    names = tuple(own.get(column, column) for column in columns)
    if clash := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(
            f"Candidate '{clash}' has the name of another column of the artifact. Rename it, or "
            f"give that column a candidate too, with 'tier: {clash}'."
        )
    return names


def check_known(config: RuntimeConfig, model_ids: Sequence[str]) -> None:
    """Refuse a config that names models which the artifact does not know.

    Parameters
    ----------
    config : RuntimeConfig
    model_ids : sequence of str
        What ``names_of`` returned.

    Raises
    ------
    ConfigError
        Naming the model, where it stands and what is known; or a policy's model that is not among
        the configured candidates.
    """
    known = set(model_ids)
    named = {
        "candidates": [candidate.id for candidate in config.candidates],
        "model_thresholds": list(config.model_thresholds or ()),
        "model_costs": list(config.model_costs or ()),
    }
    for where, models in named.items():
        remedy = "Retrain, or remove it."
        if where == "candidates":
            remedy = "Say with 'tier' which of these it is like, retrain, or remove it."
        for model in models:
            if model not in known:
                raise ConfigError(
                    f"Model '{model}' in {where} is not in artifact '{config.artifact}' "
                    f"(known: {', '.join(model_ids)}). {remedy}"
                )
    for name, policy in config.policies.items():
        if isinstance(policy, FixedConfig):
            does, model = "fixes", policy.model
        elif policy.fallback is not None:
            does, model = "falls back to", policy.fallback.model
        else:
            continue
        if named["candidates"] and model in known.difference(named["candidates"]):
            raise ConfigError(
                f"Policy '{name}' {does} '{model}', which is not among the candidates; "
                "add it there."
            )
