"""What a call to each candidate will probably cost, from the size of the query alone.

``CostModel`` is learned from recorded usage (``router_training.fit_costs``) and travels in the
artifact; ``CostEstimator`` joins it with the configured prices and answers in one unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np

from router_runtime.errors import ArtifactError, ConfigError
from router_runtime.pricing import CostUnit, PriceTable, estimate_tokens
from router_runtime.types import F64, Bool, Json, Query

DEFAULT_OUTPUT_TOKENS = 256.0
"""Output tokens of a model whose usage was never recorded: an answer of a few paragraphs."""

SIZE_NAMES = ("constant", "log1p_chars", "n_images", "log1p_newlines", "log1p_digits")
_LOGARITHMIC = np.array([name.startswith("log1p_") for name in SIZE_NAMES])


def query_sizes(queries: Sequence[Query]) -> F64:
    """Describe queries by what drives tokens: how much there is, and whether it looks like code.

    Newlines and digits are counted in the routed text, characters in the whole request. On
    RouterBench (ARC, MBPP, WinoGrande) the median error of the predicted dollars is 17 % from the
    length alone and 9 % with newlines and digits, because code is answered at greater length.

    Returns
    -------
    ndarray of shape (n_queries, 5), float64
        The columns of ``SIZE_NAMES``.
    """
    counts = [
        (
            1,
            query.total_chars,
            len(query.images),
            query.text.count("\n"),
            _count_digits(query.text),
        )
        for query in queries
    ]
    amounts = np.array(counts, dtype=np.float64).reshape(len(queries), len(SIZE_NAMES))
    return np.log1p(amounts, out=amounts, where=_LOGARITHMIC)


def _count_digits(text: str) -> int:
    """Count 0 to 9, in one pass over the bytes; a digit is one byte in UTF-8 and part of none."""
    data = text.encode("utf-8", "surrogatepass")
    return len(data) - len(data.translate(None, b"0123456789"))


def size_amounts(Z: F64) -> F64:
    """Return the counts behind ``Z``, same shape: 1, characters, pictures, newlines, digits."""
    return np.where(_LOGARITHMIC, np.expm1(Z), Z)


@dataclass(frozen=True, eq=False)
class Additive:
    """``amounts @ coefficients``: a quantity that every character and every picture adds to.

    Parameters
    ----------
    coefficients : ndarray of shape (n_models, n_sizes), >= 0
        Per unit of ``size_amounts``; NaN for a model of which nothing was recorded.
    """

    coefficients: F64

    def predict(self, amounts: F64) -> F64:
        """Return the expectation, (n_queries, n_models); NaN where nothing was learned."""
        return amounts @ self.coefficients.T

    def take(self, columns: Sequence[int | None]) -> Additive:
        """Return the models at ``columns``; None stands for a model that was never recorded."""
        return Additive(_take(self.coefficients, columns))

    def to_json(self) -> Json:
        """Return plain lists, NaN as None; floats survive exactly."""
        return {"coefficients": _without_nan(self.coefficients.tolist())}

    @classmethod
    def from_json(cls, content: Json) -> Additive:
        """Undo ``to_json``.

        Raises
        ------
        KeyError, TypeError, ValueError
            The coefficients are missing, or no finite numbers >= 0 (or all unknown) per model.
        """
        read = np.array(content["coefficients"], dtype=np.float64)
        if read.ndim != 2 or read.shape[1] != len(SIZE_NAMES):
            raise ValueError(f"'coefficients' has shape {read.shape}")
        known = ~np.isnan(read).all(axis=1)
        if not ((read[known] >= 0) & (read[known] < np.inf)).all():
            raise ValueError("'coefficients' are not all finite and >= 0")
        return cls(read)


@dataclass(frozen=True, eq=False)
class LogLinear:
    """``clip(scale * exp(Z @ coefficients), low, high)``: one quantity >= 0 for each model.

    Parameters
    ----------
    coefficients : ndarray of shape (n_models, n_sizes)
    scale : ndarray of shape (n_models,)
        Smearing factor times the share of positive observations (see ``fit_costs``); NaN for a
        model of which nothing was recorded.
    low, high : ndarray of shape (n_models,)
        Bounds that keep an extrapolation sane.
    """

    coefficients: F64
    scale: F64
    low: F64
    high: F64

    @property
    def learned(self) -> Bool:
        """For which models there is a prediction, (n_models,)."""
        return np.isfinite(self.scale)

    def predict(self, Z: F64) -> F64:
        """Return the expectation, (n_queries, n_models); NaN where nothing was learned."""
        # exp overflows beyond 709; the bounds hold long before.
        exponent = np.minimum(np.maximum(Z @ self.coefficients.T, -600.0), 600.0)
        return np.minimum(np.maximum(self.scale * np.exp(exponent), self.low), self.high)

    def take(self, columns: Sequence[int | None]) -> LogLinear:
        """Return the models at ``columns``; None stands for a model that was never recorded."""
        return LogLinear(**{f.name: _take(getattr(self, f.name), columns) for f in fields(self)})

    def to_json(self) -> Json:
        """Return plain lists, NaN as None; floats survive exactly."""
        return {
            f.name: _without_nan(np.asarray(getattr(self, f.name)).tolist()) for f in fields(self)
        }

    @classmethod
    def from_json(cls, content: Json) -> LogLinear:
        """Undo ``to_json``.

        Raises
        ------
        KeyError, TypeError, ValueError
            A field is missing, has another shape, or what was learned is not finite, or bounded
            by less than 0.
        """
        read = cls(**{f.name: np.array(content[f.name], dtype=np.float64) for f in fields(cls)})
        m = len(content["scale"])
        for f in fields(cls):
            values = getattr(read, f.name)
            if values.shape != ((m, len(SIZE_NAMES)) if f.name == "coefficients" else (m,)):
                raise ValueError(f"'{f.name}' has shape {values.shape} for {m} models")
            if not np.isfinite(values[read.learned]).all():
                raise ValueError(f"'{f.name}' is not finite where there is a scale")
        rows = read.learned
        if (read.low[rows] < 0).any() or (read.low[rows] > read.high[rows]).any():
            raise ValueError("'low' and 'high' are no bounds of a quantity >= 0")
        return read


def _take(values: F64, columns: Sequence[int | None]) -> F64:
    padded = np.concatenate([values, np.full_like(values[:1], np.nan)])
    picked: F64 = padded[[-1 if column is None else column for column in columns]]
    return picked


def _without_nan(value: Json) -> Json:
    if isinstance(value, list):
        return [_without_nan(entry) for entry in value]
    return None if np.isnan(value) else value


@dataclass(frozen=True, eq=False)
class CostModel:
    """Learned expectations of a call's tokens and dollars, one column per model.

    Parameters
    ----------
    model_ids : tuple of str
    output_tokens : LogLinear
    input_tokens : Additive
        Tokens that pictures count as are included, because providers report them so.
    usd : LogLinear
        US dollars of one call as recorded, for use where no price is configured.
    usd_beyond : Additive
        What they grow by per piece beyond ``largest``.
    largest : ndarray of shape (n_sizes,)
        The greatest size of each kind among the queries that were learned from.
    """

    model_ids: tuple[str, ...]
    output_tokens: LogLinear
    input_tokens: Additive
    usd: LogLinear
    usd_beyond: Additive
    largest: F64

    def expected_output_tokens(self, Z: F64) -> F64:
        """Return tokens (n_queries, n_models), NaN where no usage was recorded."""
        return self.output_tokens.predict(Z)

    def expected_input_tokens(self, Z: F64) -> F64:
        """Return tokens (n_queries, n_models), NaN where no usage was recorded."""
        return self.input_tokens.predict(size_amounts(Z))

    def expected_usd(self, Z: F64) -> F64:
        """Return US dollars per call (n_queries, n_models), NaN where no cost was recorded.

        What a query has beyond the largest that was learned from adds to it piece by piece, as
        input is billed; a power law would lead far astray there.
        """
        if (Z <= self.largest).all():
            return self.usd.predict(Z)
        within = np.minimum(Z, self.largest)
        beyond = size_amounts(Z) - size_amounts(within)
        return self.usd.predict(within) + self.usd_beyond.predict(beyond)

    def for_models(self, model_ids: Sequence[str]) -> CostModel:
        """Return the columns of ``model_ids``, unknown (NaN) for a model that is not recorded."""
        place = {model: column for column, model in enumerate(self.model_ids)}
        columns = [place.get(model) for model in model_ids]
        return CostModel(
            tuple(model_ids),
            self.output_tokens.take(columns),
            self.input_tokens.take(columns),
            self.usd.take(columns),
            self.usd_beyond.take(columns),
            self.largest,
        )

    def to_json(self) -> Json:
        """Return what an artifact's manifest keeps."""
        return {
            "model_ids": list(self.model_ids),
            "sizes": list(SIZE_NAMES),
            "output_tokens": self.output_tokens.to_json(),
            "input_tokens": self.input_tokens.to_json(),
            "usd": self.usd.to_json(),
            "usd_beyond": self.usd_beyond.to_json(),
            "largest": self.largest.tolist(),
        }

    @classmethod
    def from_json(cls, content: Json) -> CostModel:
        """Undo ``to_json``.

        Raises
        ------
        ArtifactError
            The description is incomplete, or made for other query sizes than this version's.
        """
        try:
            if tuple(content["sizes"]) != SIZE_NAMES:
                raise ArtifactError(
                    f"The cost model was learned from {content['sizes']}, this version describes "
                    f"queries by {list(SIZE_NAMES)}. Retrain the artifact."
                )
            model_ids = tuple(content["model_ids"])
            output_tokens = LogLinear.from_json(content["output_tokens"])
            input_tokens = Additive.from_json(content["input_tokens"])
            usd = LogLinear.from_json(content["usd"])
            usd_beyond = Additive.from_json(content["usd_beyond"])
            for part in (output_tokens, input_tokens, usd, usd_beyond):
                if len(part.coefficients) != len(model_ids):
                    raise ValueError(f"not all of it is for {len(model_ids)} models")
            largest = np.array(content["largest"], dtype=np.float64)
            if largest.shape != (len(SIZE_NAMES),) or not np.isfinite(largest).all():
                raise ValueError(f"'largest' is not {len(SIZE_NAMES)} finite numbers")
            return cls(model_ids, output_tokens, input_tokens, usd, usd_beyond, largest)
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"The cost model's description is malformed: {error!r}.") from error


class CostEstimator:
    """Expected cost of each query at each candidate, all in one unit.

    What is configured counts before what was learned, and one unit serves all candidates:

    - With relative factors configured, they are all that counts; dollars cannot stand beside them.
    - With prices configured, a candidate's cost is its price times the expected tokens: the learned
      ones, else ``estimate_tokens`` of the characters and ``DEFAULT_OUTPUT_TOKENS``. A request's
      own ``max_output_tokens`` bounds the output. Where no usage was recorded, pictures cost
      ``Price.image`` and no tokens.
    - A candidate without a price costs the learned US dollars per call; without those, NaN.

    Parameters
    ----------
    price_table : PriceTable or None
    cost_model : CostModel or None
        Its columns are matched by name.
    model_ids : sequence of str
        Column order of the result.

    Raises
    ------
    ConfigError
        The price table lists other models or another order.
    """

    def __init__(
        self,
        price_table: PriceTable | None,
        cost_model: CostModel | None,
        model_ids: Sequence[str],
    ) -> None:
        self.model_ids = tuple(model_ids)
        if price_table is not None and price_table.model_ids != self.model_ids:
            raise ConfigError(
                f"The price table is for {', '.join(price_table.model_ids)}, "
                f"but costs are wanted for {', '.join(self.model_ids)}."
            )
        self._prices = price_table
        self._learned = None if cost_model is None else cost_model.for_models(self.model_ids)

    @cached_property
    def unit(self) -> CostUnit:
        """``usd``, ``relative`` or ``unknown``."""
        if self._prices is not None and self._prices.unit != "unknown":
            return self._prices.unit
        return "usd" if self._learned is not None and self._learned.usd.learned.any() else "unknown"

    def expected(self, queries: Sequence[Query]) -> F64:
        """Return the expected cost in ``unit``, (n_queries, n_models) float64, NaN = unknown."""
        Z = query_sizes(queries)
        cost = np.full((len(queries), len(self.model_ids)), np.nan)
        if self._prices is not None:
            cost = self._prices.expected(*self._expected_tokens(queries, Z))
        if self._learned is not None and self.unit == "usd" and np.isnan(cost).any():
            cost = np.where(np.isnan(cost), self._learned.expected_usd(Z), cost)
        return cost

    def _expected_tokens(self, queries: Sequence[Query], Z: F64) -> tuple[F64, F64, F64]:
        n_chars = np.array([query.total_chars for query in queries], dtype=np.float64)
        tokens_in = estimate_tokens(n_chars)[:, None]  # one column for all models
        tokens_out = np.full((len(queries), len(self.model_ids)), DEFAULT_OUTPUT_TOKENS)
        if self._learned is not None:
            learned_in = self._learned.expected_input_tokens(Z)
            learned_out = self._learned.expected_output_tokens(Z)
            tokens_in = np.where(np.isnan(learned_in), tokens_in, learned_in)
            tokens_out = np.where(np.isnan(learned_out), tokens_out, learned_out)
        caps = [query.requirements.max_output_tokens for query in queries]
        bound = np.array([np.inf if cap is None else cap for cap in caps])
        n_images = np.array([len(query.images) for query in queries], dtype=np.float64)
        return tokens_in, np.minimum(tokens_out, bound[:, None]), n_images
