"""NVIDIA's cards for containers, through its container toolkit."""

from collections.abc import Iterator, Sequence

from cotenant.domain.devices import Device
from cotenant.domain.launching import CardStyle


def nvidia_options(model: str, cards: Sequence[Device], style: CardStyle, *, rootless: bool) -> Iterator[str]:
    """Yield the options that give a container these cards."""
    if style is CardStyle.SWITCH:
        yield "--nv"
    elif style is CardStyle.CDI:
        for card in cards:
            yield f"--device=nvidia.com/gpu={card.id}"
    else:
        # Docker reads the value as CSV: without the quotes the second card is a separate option.
        yield f'--gpus="device={",".join(card.id for card in cards)}"'
