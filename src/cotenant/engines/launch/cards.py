"""The options that give cards to containers, by vendor."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from cotenant.domain.devices import Device, DeviceKind
from cotenant.domain.errors import EngineLacksDevice
from cotenant.domain.launching import CardStyle
from cotenant.domain.vendors import Vendor
from cotenant.engines.launch.amd import amd_options


def nvidia_options(model: str, cards: Sequence[Device], style: CardStyle, rootless: bool) -> Iterator[str]:
    """Yield the options that give a container these cards, through NVIDIA's container toolkit."""
    if style is CardStyle.SWITCH:
        yield "--nv"
    elif style is CardStyle.CDI:
        yield from (f"--device=nvidia.com/gpu={card.id}" for card in cards)
    else:
        # Docker reads the value as CSV: without the quotes the second card is a separate option.
        yield f'--gpus="device={",".join(card.id for card in cards)}"'


CARD_OPTIONS: Final[Mapping[Vendor, Callable[[str, Sequence[Device], CardStyle, bool], Iterator[str]]]] = {
    Vendor.NVIDIA: nvidia_options,
    Vendor.AMD: amd_options,
}
"""What `card_options` calls, with the same arguments, for cards of each vendor."""


def card_options(model: str, cards: Sequence[Device], style: CardStyle, *, rootless: bool) -> list[str]:
    """Return the options that give a container these cards and no others.

    `rootless` says that an ordinary user starts it. Raises EngineLacksDevice for unusable cards.
    """
    if not cards:
        return []
    options = None if cards[0].vendor is None else CARD_OPTIONS.get(cards[0].vendor)
    if options is None:
        raise EngineLacksDevice(
            f"{model} cannot be loaded: containers cannot be given {cards[0].label}",
            hint="Give the model `launcher: host`, or other GPUs by `gpus:`.",
        )
    return list(options(model, cards, style, rootless))


def real_cards(devices: Sequence[Device]) -> list[Device]:
    """Return the devices without host RAM and described GPUs."""
    return [device for device in devices if device.kind is not DeviceKind.HOST and not device.described]
