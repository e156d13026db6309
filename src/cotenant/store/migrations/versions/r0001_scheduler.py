"""The scheduler's records: what loads took and what was decided.

In SQLite these are the tables of the files that carry `user_version` 1 and no revision.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_COUNT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make `footprints`, `loads` and `decisions`."""
    parts = ("weights", "kv", "compute", "overhead")
    op.create_table(
        "footprints",
        sa.Column("id", _COUNT, primary_key=True),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("model", sa.String, nullable=False),
        sa.Column("file_fingerprint", sa.String, nullable=False),
        sa.Column("recipe_fingerprint", sa.String, nullable=False),
        sa.Column("device_id", sa.String, nullable=False),
        sa.Column("device_name", sa.String, nullable=False),
        sa.Column("engine", sa.String),
        *(sa.Column(f"predicted_{part}_bytes", _COUNT, nullable=False) for part in parts),
        *(sa.Column(f"reported_{part}_bytes", _COUNT) for part in parts),
        sa.Column("measured_bytes", _COUNT),
    )
    op.create_table(
        "loads",
        sa.Column("id", _COUNT, primary_key=True),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("model", sa.String, nullable=False),
        sa.Column("seconds", sa.Float, nullable=False),
        sa.Column("bytes", _COUNT, nullable=False),
        sa.Column("warmth", sa.String, nullable=False),
    )
    op.create_table(
        "decisions",
        sa.Column("id", _COUNT, primary_key=True),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("number", _COUNT, nullable=False),
        sa.Column("scheduler_at", sa.Float, nullable=False),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("model", sa.String),
        sa.Column("text", sa.String, nullable=False),
        sa.Column("cause", sa.String, nullable=False),
        sa.Column("facts", sa.JSON, nullable=False),
    )
    op.create_index("ix_decisions_model", "decisions", ["model"])
