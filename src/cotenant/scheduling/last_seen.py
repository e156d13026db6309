"""What a card showed when an engine was last seen on it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LastSeen:
    """A card in the last Reading that shows an engine there: free bytes, others' bytes and the engine's own.

    None if the driver does not report memory by process.
    """

    free_bytes: int
    foreign_bytes: int | None
    engine_bytes: int | None
