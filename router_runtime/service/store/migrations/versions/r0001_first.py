"""The first tables: keys, decisions, attempts, feedback, content, losses."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "keys",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("allowed_models", sa.JSON),
        sa.Column("limits", sa.JSON, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("revoked_at", sa.Double),
    )
    _decisions()
    op.create_table(
        "attempts",
        sa.Column("decision_id", sa.Text, primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("model_id", sa.Text, nullable=False),
        sa.Column("error", sa.Text),
        sa.Column("seconds", sa.Double, nullable=False),
        sa.Column("first_byte_s", sa.Double, nullable=False),
        sa.Column("input_tokens", sa.BigInteger),
        sa.Column("output_tokens", sa.BigInteger),
        sa.Column("cached_input_tokens", sa.BigInteger),
        sa.Column("images", sa.BigInteger),
        sa.Column("estimated", sa.Boolean, nullable=False),
        sa.Column("cost_usd", sa.BigInteger),
    )
    op.create_index("attempts_by_time", "attempts", ["at"])
    op.create_table(
        "feedback",
        sa.Column("decision_id", sa.Text, primary_key=True),
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("score", sa.Double, nullable=False),
        sa.Column("comment", sa.Text),
    )
    op.create_table(
        "content",
        sa.Column("decision_id", sa.Text, primary_key=True),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("messages", sa.Text, nullable=False),
    )
    op.create_index("content_by_time", "content", ["at"])
    op.create_table(
        "losses",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("records", sa.BigInteger, nullable=False),
        sa.Column("cost_usd", sa.BigInteger, nullable=False),
    )
    op.create_index("losses_by_key", "losses", ["key_id", "at"])


def _decisions() -> None:
    op.create_table(
        "decisions",
        sa.Column("decision_id", sa.Text, primary_key=True),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("endpoint", sa.Text, nullable=False),
        sa.Column("requested", sa.Text, nullable=False),
        sa.Column("chosen", sa.Text),
        sa.Column("served", sa.Text),
        sa.Column("reason", sa.Text),
        sa.Column("policy", sa.Text),
        sa.Column("artifact_id", sa.Text, nullable=False),
        sa.Column("config_sha256", sa.Text, nullable=False),
        sa.Column("features_sha256", sa.Text, nullable=False),
        sa.Column("session", sa.Text, nullable=False),
        sa.Column("cached", sa.Boolean, nullable=False),
        sa.Column("novelty", sa.Double),
        sa.Column("propensity", sa.Double),
        sa.Column("ranking", sa.JSON, nullable=False),
        sa.Column("probabilities", sa.JSON, nullable=False),
        sa.Column("expected_cost", sa.JSON, nullable=False),
        sa.Column("thresholds", sa.JSON, nullable=False),
        sa.Column("ineligible", sa.JSON, nullable=False),
        sa.Column("steps", sa.JSON, nullable=False),
        sa.Column("status", sa.Integer, nullable=False),
        sa.Column("stream", sa.Boolean, nullable=False),
        sa.Column("error", sa.Text),
        sa.Column("total_s", sa.Double, nullable=False),
        sa.Column("decide_s", sa.Double, nullable=False),
        sa.Column("encode_s", sa.Double, nullable=False),
        sa.Column("upstream_s", sa.Double, nullable=False),
        sa.Column("estimated", sa.Boolean, nullable=False),
        sa.Column("cost_usd", sa.BigInteger, nullable=False),
    )
    op.create_index("decisions_by_key", "decisions", ["key_id", "at"])
    op.create_index("decisions_by_time", "decisions", ["at"])
