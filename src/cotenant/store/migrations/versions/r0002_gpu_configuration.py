"""GPU configuration of services: assignments, GPUs seen, settings, and the history of configurations."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_JSON = sa.JSON().with_variant(JSONB(), "postgresql")
_INSTANT = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Make `gpu_configurations`, `gpu_devices`, `system_settings` and `gpu_config_history`."""
    on_postgres = op.get_bind().dialect.name == "postgresql"
    new_id = sa.text("gen_random_uuid()" if on_postgres else "(lower(hex(randomblob(16))))")
    now, number = sa.func.now(), sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "gpu_configurations",
        sa.Column("id", sa.Uuid, primary_key=True, server_default=new_id),
        sa.Column("service_name", sa.String(64), nullable=False, unique=True),
        sa.Column("gpu_index", sa.Integer),
        sa.Column("strategy", sa.String(32), server_default="manual"),
        sa.Column("vram_budget_override", sa.Float),
        sa.Column("enabled", sa.Boolean, server_default=sa.true()),
        sa.Column("created_at", _INSTANT, server_default=now),
        sa.Column("updated_at", _INSTANT, server_default=now),
        sa.Column("device_id", sa.String(128)),
        sa.Column("position", sa.Integer, nullable=False, server_default="0"),
    )
    op.create_table(
        "gpu_devices",
        sa.Column("id", sa.Uuid, primary_key=True, server_default=new_id),
        sa.Column("gpu_index", sa.Integer, nullable=False, unique=True),
        sa.Column("name", sa.String(128)),
        sa.Column("vram_total_mb", sa.Integer),
        sa.Column("vram_available_mb", sa.Integer),
        sa.Column("compute_capability", sa.String(16)),
        sa.Column("last_seen_at", _INSTANT, server_default=now),
        sa.Column("device_id", sa.String(128), nullable=False),
    )
    op.create_table(
        "system_settings",
        sa.Column("key", sa.String(64), primary_key=True),
        sa.Column("value", _JSON, nullable=False),
        sa.Column("updated_at", _INSTANT, server_default=now),
    )
    op.create_table(
        "gpu_config_history",
        sa.Column("number", number, primary_key=True, autoincrement=False),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("strategy", sa.String(32), nullable=False),
        sa.Column("assignments", _JSON, nullable=False),
        sa.Column("apply", _JSON),
    )
