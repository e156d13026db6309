"""The options that give cards to containers, by vendor."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Protocol

from cotenant.domain.devices import Device, DeviceKind
from cotenant.domain.errors import EngineLacksDevice
from cotenant.domain.launching import CardStyle
from cotenant.domain.vendors import Vendor
from cotenant.engines.launch.amd import amd_options
from cotenant.engines.launch.nvidia import nvidia_options


class CardOptions(Protocol):
    """Gives cards of one vendor to containers."""

    def __call__(
        self, model: str, cards: Sequence[Device], style: CardStyle, *, rootless: bool
    ) -> Iterator[str]:
        """Yield the options that give a container these cards and no others.

        `rootless` says that an ordinary user starts it. Raises EngineLacksDevice for unusable cards.
        """
        ...


CARD_OPTIONS: Final[Mapping[Vendor, CardOptions]] = {
    Vendor.NVIDIA: nvidia_options,
    Vendor.AMD: amd_options,
}


def card_options(model: str, cards: Sequence[Device], style: CardStyle, *, rootless: bool) -> list[str]:
    """Return the options that give a container these cards. Raises EngineLacksDevice."""
    if not cards:
        return []
    options = None if cards[0].vendor is None else CARD_OPTIONS.get(cards[0].vendor)
    if options is None:
        raise EngineLacksDevice(
            f"{model} cannot be loaded: containers cannot be given {cards[0].label}",
            hint="Give the model `launcher: host`, or other GPUs by `gpus:`.",
        )
    return list(options(model, cards, style, rootless=rootless))


def real_cards(devices: Sequence[Device]) -> list[Device]:
    """Return the devices without host RAM and described GPUs."""
    return [device for device in devices if device.kind is not DeviceKind.HOST and not device.described]
