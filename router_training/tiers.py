"""One table of two tiers, ``weak`` and ``strong``, from tables of many models' outcomes.

What a router learns from such records is not how good one model is, but whether a weak one does:
each table names the model that stands for each tier there. A router of tiers is of use before there
are records of one's own models: ``candidates`` in a runtime config say which of them is which tier.

Costs are kept where a table records them. Elsewhere they are nominal: the tier's price, times the
tokens that a prompt's characters make and a usual answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from pydantic import Field, field_validator, model_validator

from router_runtime.config import PriceConfig
from router_runtime.errors import ConfigError
from router_runtime.prediction.costs import CostEstimator
from router_runtime.pricing import PriceTable, price_from_mapping
from router_runtime.types import F64
from router_runtime.yaml_config import StrictModel, read_yaml, validate
from router_training.importers import import_file
from router_training.labelled_by import records_digest
from router_training.labels import ARRAYS, Evaluations, LabelMatrix
from router_training.made_from import TableUsed


class TierTable(StrictModel):
    """A table of outcomes, and which of its models stands for which tier.

    Parameters
    ----------
    name : str
        Begins the ids of its records; the data set of those that name none.
    path : Path
        A file that ``router-train import`` reads, below the folder of tables.
    image_root : Path or None
        Its pictures, below the same folder.
    models : mapping of tier to model
        Which of the table's models stands for it.
    origin, licence : str
        For the card.
    """

    name: str = Field(min_length=1, pattern=r"^[\w.-]+$")
    path: Path
    image_root: Path | None = None
    models: dict[str, str]
    origin: str = Field(min_length=1)
    licence: str = Field(min_length=1)


class TiersConfig(StrictModel):
    """What ``router-train make-tiers`` merges.

    Parameters
    ----------
    tiers : mapping of name to PriceConfig
        The columns of the records, in order, and their nominal prices.
    tables : tuple of TierTable
        What is merged.
    """

    tiers: dict[str, PriceConfig] = Field(min_length=2)
    tables: tuple[TierTable, ...] = Field(min_length=1)

    @field_validator("tables")
    @classmethod
    def _distinct(cls, value: tuple[TierTable, ...]) -> tuple[TierTable, ...]:
        names = [table.name for table in value]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"table '{twice}' is listed twice; rename or remove one")
        return value

    @model_validator(mode="after")
    def _every_tier(self) -> TiersConfig:
        for table in self.tables:
            if set(table.models) != set(self.tiers):
                raise ValueError(
                    f"table '{table.name}' has models for {', '.join(table.models) or 'no tier'}; "
                    f"name one for each of {', '.join(self.tiers)}"
                )
            if len(set(table.models.values())) < len(table.models):
                raise ValueError(f"table '{table.name}' has one model for two tiers")
        return self


def load_tiers_config(path: str | Path) -> TiersConfig:
    """Read and validate the YAML that says what is merged.

    Raises
    ------
    ConfigError
        One line naming the file and the key.
    """
    file = Path(path)
    return validate(TiersConfig, read_yaml(file), source=str(file))


def merge_tiers(
    config: TiersConfig, folder: str | Path
) -> tuple[Evaluations, tuple[TableUsed, ...]]:
    """Read the tables and merge them.

    Parameters
    ----------
    config : TiersConfig
    folder : path
        Of the tables.

    Returns
    -------
    Evaluations
        Columns are the tiers; ids begin with the table's name. Rows marked as contaminated are
        listed in ``skipped``, with those of all tables.
    tuple of TableUsed
        What was made of each.

    Raises
    ------
    ConfigError
        A table does not score a model that is named for it.
    DataError
        A table cannot be read.
    """
    root = Path(folder)
    parts, used = [], []
    for table in config.tables:
        path = root / table.path
        images = None if table.image_root is None else root / table.image_root
        whole = import_file(path, image_root=images)
        part = _of_tiers(whole, table, tiers=config.tiers)
        parts.append(part)
        used.append(
            TableUsed(
                name=table.name,
                sha256=records_digest(path),
                rows=len(part),
                skipped=len(part.skipped),
                models=dict(table.models),
                origin=table.origin,
                licence=table.licence,
                recorded_costs=bool(np.isfinite(whole.labels.cost_usd).any()),
            )
        )
    return _joined(parts), tuple(used)


def _of_tiers(
    whole: Evaluations, table: TierTable, *, tiers: Mapping[str, PriceConfig]
) -> Evaluations:
    for tier, model in table.models.items():
        if model not in whole.model_ids:
            raise ConfigError(
                f"Table '{table.name}' has no scores of '{model}', its '{tier}' tier "
                f"(scored: {', '.join(whole.model_ids)}). Correct 'models'."
            )
    columns = [whole.model_ids.index(table.models[tier]) for tier in tiers]
    labels = LabelMatrix(
        tuple(tiers), *(getattr(whole.labels, name)[:, columns] for name in ARRAYS)
    )
    costs = np.where(np.isnan(labels.cost_usd), _nominal(whole, tiers), labels.cost_usd)
    samples = tuple(
        replace(sample, id=f"{table.name}/{sample.id}", dataset=sample.dataset or table.name)
        for sample in whole.samples
    )
    skipped = tuple(
        replace(row, reason=f"table '{table.name}': {row.reason}") for row in whole.skipped
    )
    return Evaluations(samples, replace(labels, cost_usd=costs), skipped)


def _nominal(whole: Evaluations, tiers: Mapping[str, PriceConfig]) -> F64:
    """Return what calls of each tier cost at its price, (n_rows, n_tiers) in USD."""
    prices = tuple(price_from_mapping(p.model_dump(), owner=name) for name, p in tiers.items())
    table = PriceTable(tuple(tiers), prices, (None,) * len(tiers))
    return CostEstimator(table, None, tuple(tiers)).expected(whole.queries)


def _joined(parts: Sequence[Evaluations]) -> Evaluations:
    labels = LabelMatrix(
        parts[0].model_ids,
        *(np.concatenate([getattr(part.labels, name) for part in parts]) for name in ARRAYS),
    )
    samples = tuple(sample for part in parts for sample in part.samples)
    return Evaluations(samples, labels, tuple(row for part in parts for row in part.skipped))
