"""Services on several GPUs: those after the first."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add `more_gpus` to `gpu_configurations`."""
    kind = sa.JSON().with_variant(JSONB(), "postgresql")
    op.add_column("gpu_configurations", sa.Column("more_gpus", kind))
