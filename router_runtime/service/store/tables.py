"""The tables of the store, alike on SQLite and PostgreSQL.

Times are seconds since the epoch, as in ``RouteEvent``. US dollars are whole numbers of a millionth
of a millionth (10^-12): a price per million tokens with six decimals is exact for a single token,
and so are sums, also on SQLite, whose only other number is a float. There are no foreign keys:
rows may arrive in any order, and content leaves before the decision that it belongs to.

A change of a table comes with a revision in ``migrations/versions``; a test compares the two.
"""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Context, Decimal

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Dialect,
    Double,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    TypeDecorator,
)

_EXACT = Context(prec=100)
_DECIMALS = 12


class PicoUSD(TypeDecorator[Decimal]):
    """``Decimal`` US dollars, kept as a whole number of 10^-12 dollars."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: Decimal | None, dialect: Dialect) -> int | None:
        return None if value is None else to_pico(value)

    def process_result_value(self, value: int | None, dialect: Dialect) -> Decimal | None:
        return None if value is None else from_pico(value)


def to_pico(usd: Decimal) -> int:
    """Return dollars as a whole number of 10^-12, what is finer rounded half to even."""
    scaled = _EXACT.scaleb(usd, _DECIMALS)
    return int(scaled.to_integral_value(rounding=ROUND_HALF_EVEN, context=_EXACT))


def from_pico(pico: int) -> Decimal:
    """Return 10^-12 dollars as dollars."""
    return _EXACT.scaleb(Decimal(int(pico)), -_DECIMALS)


metadata = MetaData()

keys = Table(
    "keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("allowed_models", JSON(none_as_null=True)),
    Column("limits", JSON, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("revoked_at", Double),
)
"""API keys; ``digest`` is keyed, the key itself is nowhere."""

decisions = Table(
    "decisions",
    metadata,
    Column("decision_id", Text, primary_key=True),
    Column("at", Double, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("endpoint", Text, nullable=False),
    Column("requested", Text, nullable=False),
    Column("chosen", Text),
    Column("served", Text),
    Column("reason", Text),
    Column("policy", Text),
    Column("artifact_id", Text, nullable=False),
    Column("config_sha256", Text, nullable=False),
    Column("features_sha256", Text, nullable=False),
    Column("session", Text, nullable=False),
    Column("cached", Boolean, nullable=False),
    Column("novelty", Double),
    Column("propensity", Double),
    Column("ranking", JSON, nullable=False),
    Column("probabilities", JSON, nullable=False),
    Column("expected_cost", JSON, nullable=False),
    Column("thresholds", JSON, nullable=False),
    Column("ineligible", JSON, nullable=False),
    Column("steps", JSON, nullable=False),
    Column("status", Integer, nullable=False),
    Column("stream", Boolean, nullable=False),
    Column("error", Text),
    Column("total_s", Double, nullable=False),
    Column("decide_s", Double, nullable=False),
    Column("encode_s", Double, nullable=False),
    Column("upstream_s", Double, nullable=False),
    Column("estimated", Boolean, nullable=False),
    Column("cost_usd", PicoUSD, nullable=False),
    Index("decisions_by_key", "key_id", "at"),
    Index("decisions_by_time", "at"),
)
"""One request each. ``chosen`` is the first of the ranking, ``served`` whose answer went out."""

attempts = Table(
    "attempts",
    metadata,
    Column("decision_id", Text, primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("at", Double, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("model_id", Text, nullable=False),
    Column("error", Text),
    Column("seconds", Double, nullable=False),
    Column("first_byte_s", Double, nullable=False),
    Column("input_tokens", BigInteger),
    Column("output_tokens", BigInteger),
    Column("cached_input_tokens", BigInteger),
    Column("images", BigInteger),
    Column("estimated", Boolean, nullable=False),
    Column("cost_usd", PicoUSD),
    Index("attempts_by_time", "at"),
)
"""Calls of a request in their order; ``cost_usd`` is null where the candidate has no price."""

feedback = Table(
    "feedback",
    metadata,
    Column("decision_id", Text, primary_key=True),
    Column("key_id", Text, nullable=False),
    Column("at", Double, nullable=False),
    Column("score", Double, nullable=False),
    Column("comment", Text),
)
"""What a caller said last of an answer; ``comment`` only where content is kept."""

content = Table(
    "content",
    metadata,
    Column("decision_id", Text, primary_key=True),
    Column("at", Double, nullable=False),
    Column("messages", Text, nullable=False),
    Index("content_by_time", "at"),
)
"""Messages of a request as JSON, only where the store is told to keep them."""

losses = Table(
    "losses",
    metadata,
    Column("id", Text, primary_key=True),
    Column("at", Double, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("records", BigInteger, nullable=False),
    Column("cost_usd", PicoUSD, nullable=False),
    Index("losses_by_key", "key_id", "at"),
)
"""Records that could not be kept, and what they had cost, so that budgets still hold."""
