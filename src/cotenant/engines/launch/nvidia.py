"""NVIDIA's cards for containers, through its container toolkit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cotenant.domain.devices import Device
from cotenant.domain.launching import LauncherKind


def nvidia_options(
    model: str, cards: Sequence[Device], kind: LauncherKind, *, rootless: bool
) -> Iterator[str]:
    """Yield what gives a container these cards."""
    if kind is LauncherKind.APPTAINER:
        yield "--nv"
    elif kind is LauncherKind.PODMAN:
        for card in cards:
            yield f"--device=nvidia.com/gpu={card.id}"
    else:
        # The value is read as CSV: without the quotes the second card would be an option of its own.
        yield f'--gpus="device={",".join(card.id for card in cards)}"'
