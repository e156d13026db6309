"""What all tables share."""

from typing import Final

import sqlalchemy as sa

metadata: Final = sa.MetaData()

Count = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
"""Bytes and numbers. SQLite's integers have 64 bits under any name, and its keys must be INTEGER."""
