"""AMD's cards for containers: the device files for ROCm, and the groups that may open them.

https://rocm.docs.amd.com/projects/install-on-linux/en/latest/how-to/docker.html
"""

import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from cotenant.domain.devices import Device
from cotenant.domain.errors import EngineLacksDevice
from cotenant.domain.launching import CardStyle

DEVICES: Final = Path("/dev")
"""The device files of this machine; in a container they are under /dev."""

_COMPUTE: Final = "kfd"
_FOR_ALL: Final = stat.S_IROTH | stat.S_IWOTH


def amd_options(model: str, cards: Sequence[Device], style: CardStyle, rootless: bool) -> Iterator[str]:
    """Yield the options that give a container these cards and no other. Raises EngineLacksDevice.

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
    for name in dict.fromkeys((_COMPUTE, *(f"dri/renderD{card.render_node}" for card in cards))):
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
