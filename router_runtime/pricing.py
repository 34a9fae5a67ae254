"""Prices, usage, and what a call cost or is expected to cost.

What was spent is exact (``Decimal``, from the tokens that a provider reports); what will be spent
is an estimate (float64, from predicted tokens). Prices are US dollars per million tokens, as
providers publish them. Where no dollars are known, relative factors (1.0, 0.3, 0.1) order
the candidates instead; the two are never mixed in one table, because their sum means nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from decimal import Context, Decimal, InvalidOperation, localcontext
from functools import cached_property
from typing import Literal, TypeAlias, overload

import numpy as np

from router_runtime.errors import ConfigError
from router_runtime.types import F64

_EXACT = Context(prec=100)  # whatever precision the caller's thread rounds to

CHARS_PER_TOKEN = 4.0
"""Characters of English prose per token of current byte-pair vocabularies, roughly."""

CostUnit: TypeAlias = Literal["usd", "relative", "unknown"]


@dataclass(frozen=True, slots=True)
class Usage:
    """What one call, or the sum of several, consumed.

    Parameters
    ----------
    input_tokens, output_tokens : int
        As providers bill them; ``input_tokens`` includes the cached ones.
    cached_input_tokens : int
        The part of ``input_tokens`` that was read from the provider's prompt cache.
    images : int
        Pictures sent.

    Raises
    ------
    ConfigError
        A count is negative, or more tokens are cached than were sent.
    """

    input_tokens: int
    output_tokens: int
    cached_input_tokens: int = 0
    images: int = 0

    def __post_init__(self) -> None:
        counts = (self.input_tokens, self.output_tokens, self.cached_input_tokens, self.images)
        if min(counts) < 0:
            name, count = next(
                (f.name, n) for f, n in zip(fields(self), counts, strict=True) if n < 0
            )
            raise ConfigError(f"Usage.{name} must be >= 0, not {count}.")
        if self.cached_input_tokens > self.input_tokens:
            raise ConfigError(
                f"Usage.cached_input_tokens ({self.cached_input_tokens}) must not exceed "
                f"input_tokens ({self.input_tokens}), of which it is a part."
            )

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cached_input_tokens + other.cached_input_tokens,
            self.images + other.images,
        )


@dataclass(frozen=True, slots=True)
class Price:
    """What a candidate charges, in US dollars.

    Parameters
    ----------
    input_mtok, output_mtok : Decimal
        Per million input / output tokens. Numbers and strings are converted by their decimal
        spelling, so that ``0.1`` means one tenth exactly.
    cached_input_mtok : Decimal or None
        Per million cached input tokens; None: they cost what other input tokens cost.
    image : Decimal
        Per picture, on top of the tokens that it may count as.

    Raises
    ------
    ConfigError
        A price is negative, infinite or not a number.
    """

    input_mtok: Decimal
    output_mtok: Decimal
    cached_input_mtok: Decimal | None = None
    image: Decimal = Decimal(0)

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if value is not None or f.name != "cached_input_mtok":
                object.__setattr__(self, f.name, _usd(value, f.name))

    def cost(self, usage: Usage) -> Decimal:
        """Return the exact US dollars of ``usage``."""
        cached = self.input_mtok if self.cached_input_mtok is None else self.cached_input_mtok
        with localcontext(_EXACT):
            per_million = (
                (usage.input_tokens - usage.cached_input_tokens) * self.input_mtok
                + usage.cached_input_tokens * cached
                + usage.output_tokens * self.output_mtok
            )
            return per_million.scaleb(-6) + usage.images * self.image


def price_from_mapping(mapping: Mapping[str, object], *, owner: str = "price") -> Price:
    """Make a ``Price`` from configured plain values.

    Parameters
    ----------
    mapping : mapping
        ``input_mtok`` and ``output_mtok``, optionally ``cached_input_mtok`` and ``image``;
        numbers or decimal strings in US dollars.
    owner : str
        Named in messages, such as ``candidates.gpt-4o.price``.

    Raises
    ------
    ConfigError
        A key is unknown or missing, or a value is not a price.
    """
    known = [f.name for f in fields(Price)]
    unknown = [key for key in mapping if key not in known]
    missing = [key for key in ("input_mtok", "output_mtok") if key not in mapping]
    if unknown or missing:
        problem = f"unknown: {', '.join(unknown)}" if unknown else f"missing: {', '.join(missing)}"
        raise ConfigError(f"{owner}: {problem} (a price has the keys {', '.join(known)}).")
    try:
        # __post_init__ converts and checks every value, whatever its type.
        return Price(**mapping)  # type: ignore[arg-type]
    except ConfigError as error:
        raise ConfigError(f"{owner}: {error}") from None


def _usd(value: object, name: str) -> Decimal:
    try:
        price = Decimal(str(value))
    except InvalidOperation:
        price = Decimal("NaN")
    if isinstance(value, bool) or not price.is_finite() or price < 0:
        raise ConfigError(f"{name} must be a finite number of US dollars >= 0, not {value!r}.")
    return price


@overload
def estimate_tokens(n_chars: float) -> float: ...
@overload
def estimate_tokens(n_chars: F64) -> F64: ...
def estimate_tokens(n_chars: float | F64) -> float | F64:
    """Estimate tokens from characters as ``n_chars / 4``, unrounded.

    Good to about 15 % on English prose. It is too low for source code and numbers (nearer 3
    characters per token), for most other European languages (3 to 3.5), and far too low for
    Chinese, Japanese and Korean (1 to 2 characters per token). A ``CostModel`` learned from
    recorded usage replaces it wherever there is one.

    Parameters
    ----------
    n_chars : float or ndarray
        Characters, >= 0.
    """
    return n_chars / CHARS_PER_TOKEN


@dataclass(frozen=True)
class PriceTable:
    """Prices or relative factors of all candidates, in the column order of ``P``.

    Parameters
    ----------
    model_ids : tuple of str
    prices : tuple of Price or None
        None: no price is configured.
    factors : tuple of float or None
        Relative cost of one call, >= 0; None: no factor is configured.

    Raises
    ------
    ConfigError
        The lengths differ, a factor is not a finite number >= 0, or prices and factors are mixed.
    """

    model_ids: tuple[str, ...]
    prices: tuple[Price | None, ...]
    factors: tuple[float | None, ...]

    def __post_init__(self) -> None:
        if not len(self.model_ids) == len(self.prices) == len(self.factors):
            raise ConfigError(
                f"A price table of {len(self.model_ids)} models needs as many prices and factors "
                f"(None where unknown), not {len(self.prices)} and {len(self.factors)}."
            )
        for model, factor in zip(self.model_ids, self.factors, strict=True):
            if factor is not None and not 0 <= factor < np.inf:
                raise ConfigError(
                    f"The relative cost of '{model}' must be a finite number >= 0, not {factor}."
                )
        priced = [m for m, p in zip(self.model_ids, self.prices, strict=True) if p is not None]
        scaled = [m for m, f in zip(self.model_ids, self.factors, strict=True) if f is not None]
        if priced and scaled:
            raise ConfigError(
                f"Prices in dollars ({', '.join(priced)}) and relative costs "
                f"({', '.join(scaled)}) cannot be mixed. Give every model the same kind."
            )

    @cached_property
    def unit(self) -> CostUnit:
        """``usd`` with prices, ``relative`` with factors, ``unknown`` with neither."""
        if any(price is not None for price in self.prices):
            return "usd"
        return "relative" if any(f is not None for f in self.factors) else "unknown"

    def expected(
        self,
        input_tokens: F64,
        output_tokens: F64,
        n_images: F64,
        *,
        cached_input_tokens: F64 | None = None,
    ) -> F64:
        """Return the expected cost of each query at each model.

        Parameters
        ----------
        input_tokens : ndarray of shape (n_queries, n_models) or (n_queries,)
        output_tokens : ndarray of shape (n_queries, n_models)
        n_images : ndarray of shape (n_queries,)
        cached_input_tokens : ndarray of shape (n_queries, n_models), optional
            The part of ``input_tokens`` at the cached price; NaN counts as none.

        Returns
        -------
        ndarray of shape (n_queries, n_models), float64
            US dollars, or the factor itself in every row; NaN where neither is configured.
        """
        if self.unit != "usd":
            return np.tile(_column_values(self.factors), (len(output_tokens), 1))
        if input_tokens.ndim == 1:
            input_tokens = input_tokens[:, None]
        dollars: F64 = (
            input_tokens * self._rate("input_mtok") + output_tokens * self._rate("output_mtok")
        ) / 1e6 + np.asarray(n_images)[:, None] * self._rate("image")
        if cached_input_tokens is not None:
            full, cached = self._rate("input_mtok"), self._rate("cached_input_mtok")
            discount = full - np.where(np.isnan(cached), full, cached)
            dollars -= np.nan_to_num(cached_input_tokens) * discount / 1e6
        return dollars

    def _rate(self, field: str) -> F64:
        return self._rates[field]

    @cached_property
    def _rates(self) -> dict[str, F64]:
        """Every price as a number by column, NaN where there is none."""
        return {
            f.name: _column_values(
                tuple(
                    None
                    if price is None or (rate := getattr(price, f.name)) is None
                    else float(rate)
                    for price in self.prices
                )
            )
            for f in fields(Price)
        }


def _column_values(values: tuple[float | None, ...]) -> F64:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
