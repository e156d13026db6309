"""What API keys have used, by day."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make `key_use`."""
    count = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "key_use",
        sa.Column("key", sa.String(64), primary_key=True),
        sa.Column("day", sa.String(10), primary_key=True),
        sa.Column("requests", count, nullable=False),
        sa.Column("prompt_tokens", count, nullable=False),
        sa.Column("completion_tokens", count, nullable=False),
        sa.Column("wait_s", sa.Float, nullable=False),
    )
