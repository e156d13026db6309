"""How several engines share a card through CUDA's Multi-Process Service (MPS)."""

from enum import StrEnum


class MpsMode(StrEnum):
    """When engines run under MPS: where it is needed, always, or never."""

    AUTO = "auto"
    REQUIRED = "required"
    OFF = "off"


class MpsGroup(StrEnum):
    """Which cards one MPS daemon serves: all of them together, or each by itself."""

    ALL = "all"
    CARD = "card"
