"""The options that give cards to containers, by vendor."""

import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from cotenant.domain.devices import Device, DeviceKind
from cotenant.domain.errors import EngineLacksDevice
from cotenant.domain.launching import CardStyle
from cotenant.domain.vendors import Vendor

DEVICES: Final = Path("/dev")
"""The device files of this machine; in a container they are under /dev."""
_FOR_ALL: Final = stat.S_IROTH | stat.S_IWOTH


def nvidia_options(model: str, cards: Sequence[Device], style: CardStyle, rootless: bool) -> Iterator[str]:
    """Yield the options that give a container these cards, through NVIDIA's container toolkit."""
    if style is CardStyle.SWITCH:
        yield "--nv"
    elif style is CardStyle.CDI:
        yield from (f"--device=nvidia.com/gpu={card.id}" for card in cards)
    else:
        # Docker reads the value as CSV: without the quotes the second card is a separate option.
        yield f'--gpus="device={",".join(card.id for card in cards)}"'


def amd_options(model: str, cards: Sequence[Device], style: CardStyle, rootless: bool) -> Iterator[str]:
    """Yield the options that give a container these cards and no other. Raises EngineLacksDevice.

    https://rocm.docs.amd.com/projects/install-on-linux/en/latest/how-to/docker.html

    All cards share one compute device; each card also needs its render node. An ordinary user's podman cannot
    add groups of the host, but can keep its user's groups; root's podman and docker can add them.
    """
    if style is CardStyle.SWITCH:
        yield "--rocm"
        return
    for card in cards:
        if card.render_node is None:
            raise EngineLacksDevice(
                f"{model} cannot be loaded: AMD's driver does not report the render node of {card.label}, "
                "and without it a container cannot be given the card",
                hint="Give the model `launcher: host`, or other GPUs by `gpus:`.",
            )
    groups: set[int] = set()
    for name in dict.fromkeys(("kfd", *(f"dri/renderD{card.render_node}" for card in cards))):
        try:
            found = (DEVICES / name).stat()
        except OSError as error:
            raise EngineLacksDevice(
                f"{model} cannot be loaded: its container needs {DEVICES / name}: {error.strerror}",
                hint="See whether AMD's driver is loaded: `lsmod | grep amdgpu`.",
            ) from error
        if found.st_mode & _FOR_ALL != _FOR_ALL:
            groups.add(found.st_gid)
        yield f"--device={DEVICES / name}:/dev/{name}"
    if groups and rootless and style is CardStyle.CDI:
        yield "--group-add=keep-groups"
    elif groups:
        yield from (f"--group-add={group}" for group in sorted(groups))


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
