"""What recorded calls cost: recorded dollars, else recorded tokens at the configured price."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from router_runtime.pricing import PriceTable
from router_runtime.types import Query
from router_training.labels import LabelMatrix


def fill_costs(
    labels: LabelMatrix, queries: Sequence[Query], *, prices: PriceTable | None
) -> LabelMatrix:
    """Return ``labels`` with ``cost_usd`` computed from usage where no cost was recorded.

    Recorded dollars are kept as they are; cells without dollars, usage or price stay NaN.

    Parameters
    ----------
    labels : LabelMatrix
        Columns in the order of ``prices``.
    queries : sequence of Query
        Its rows; their pictures are priced too.
    prices : PriceTable or None
        Only USD prices count; relative factors are no dollars.
    """
    if prices is None or prices.unit != "usd":
        return labels
    n_images = np.array([len(query.images) for query in queries], dtype=np.float64)
    from_usage = prices.expected(
        labels.input_tokens,
        labels.output_tokens,
        n_images,
        cached_input_tokens=labels.cached_input_tokens,
    )
    recorded = ~np.isnan(labels.cost_usd)
    return replace(labels, cost_usd=np.where(recorded, labels.cost_usd, from_usage))
