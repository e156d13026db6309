"""Reads the `services` section into ServicesSettings."""

from typing import Final

from cotenant.config.schema import CheckedSettings, ServiceItem, Services
from cotenant.domain.units import MIB
from cotenant.services.model import Service, ServicesSettings

_OUTPUT: Final = "config"


def services_settings(section: Services, checked: CheckedSettings) -> ServicesSettings:
    """Return the section with all defaults filled in, and report conflicts between its keys.

    Relative paths start from the folder of the file. Whether the compose files exist is not checked: models
    are served without them.
    """
    first: dict[str, int] = {}
    for number, item in enumerate(section.items):
        if first.setdefault(item.name, number) != number:
            checked.report(
                ("services", "items", number, "name"),
                f"the service {item.name} is listed already, as items[{first[item.name]}]",
                "Keep one.",
            )
    files = tuple(map(checked.absolute, section.compose.files))
    output = section.output_dir
    return ServicesSettings(
        compose_files=files,
        output_dir=checked.absolute(output) if output else files[0].parent / _OUTPUT,
        command=section.compose.command or None,
        project=section.compose.project,
        items=tuple(map(_service, section.items)),
        **section.model_dump(exclude_none=True, exclude={"compose", "items", "output_dir"}),
    )


def _service(item: ServiceItem) -> Service:
    vram_bytes = item.vram if item.vram_mib is None else item.vram_mib * MIB
    return Service(**item.model_dump(exclude_none=True, exclude={"vram", "vram_mib"}), vram_bytes=vram_bytes)
