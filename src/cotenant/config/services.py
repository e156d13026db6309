"""Reads the `services` section into ServicesSettings."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from cotenant.config.checked import CheckedSettings
from cotenant.config.issues import ConfigIssue
from cotenant.config.service_schema import ServiceItem, Services
from cotenant.domain.units import MIB
from cotenant.services.model import Service, ServicesSettings

_OUTPUT: Final = "config"


def services_settings(
    section: Services, checked: CheckedSettings
) -> tuple[ServicesSettings, list[ConfigIssue]]:
    """Return the section with all defaults filled in, and conflicts between its keys.

    Relative paths start from the folder of the file. Whether the compose files exist is not checked: models
    are served without them.
    """
    files = tuple(_path(checked, file) for file in section.compose.files)
    output = section.output_dir
    settings = replace(
        ServicesSettings(
            compose_files=files,
            output_dir=_path(checked, output) if output else files[0].parent / _OUTPUT,
            command=section.compose.command or None,
            project=section.compose.project,
            items=tuple(_service(item) for item in section.items),
        ),
        **_given(
            strategy=section.strategy,
            device_ids=section.device_ids,
            on_failure=section.on_failure,
            parallel=section.parallel,
            command_timeout_s=section.command_timeout,
        ),
    )
    return settings, _shared_names(section, checked)


def _service(item: ServiceItem) -> Service:
    vram_bytes = item.vram if item.vram_mib is None else item.vram_mib * MIB
    return replace(
        Service(item.name, model=item.model, vram_bytes=vram_bytes),
        **_given(
            role=item.role,
            latency_critical=item.latency_critical,
            enabled=item.enabled,
            budget_env=item.vram_budget_env,
            health_url=item.health,
            health_timeout_s=item.health_timeout,
        ),
    )


def _shared_names(section: Services, checked: CheckedSettings) -> list[ConfigIssue]:
    first: dict[str, int] = {}
    issues = []
    for number, item in enumerate(section.items):
        if item.name in first:
            issues.append(
                checked.issue(
                    ("services", "items", number, "name"),
                    f"the service {item.name} is listed already, as items[{first[item.name]}]",
                    "Keep one.",
                )
            )
        first.setdefault(item.name, number)
    return issues


def _path(checked: CheckedSettings, text: str) -> Path:
    return Path(os.path.abspath(checked.base / text))


def _given(**settings: Any) -> dict[str, Any]:
    """Return the settings that are not None."""
    return {key: value for key, value in settings.items() if value is not None}
