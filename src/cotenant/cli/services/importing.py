"""`cotenant services import`: writes the `services:` section of the configuration from compose files."""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from cotenant.atomic_files import write_durably
from cotenant.config.layers import find_configuration
from cotenant.config.settings import check
from cotenant.config.yaml_document import parse_document
from cotenant.domain.errors import BadSetting, ComposeFileError
from cotenant.domain.units import MIB
from cotenant.services.compose.importing import import_services
from cotenant.services.model import Service, ServiceRole, Strategy


def run(args: argparse.Namespace) -> int:
    """Print the section, or append it. Raises ComposeFileError, BadSetting."""
    services, notes = import_services(args.files)
    if not services:
        raise ComposeFileError(
            "no service of these files asks for a GPU or carries a cotenant.* label",
            hint="Add a GPU reservation, or a label such as cotenant.vram_mib: 650.",
        )
    found = args.config if args.write and args.config else find_configuration(args.config, os.environ)
    target = found or Path("cotenant.yaml")
    section = "".join(f"{line}\n" for line in section_lines(args.files, services, target))
    check(parse_document(section, "the imported section"), {}, {})
    if args.write:
        append_section(target, section)
        count = len(services)
        print(f"{target} has {count} service{'s' if count > 1 else ''} now.")
    else:
        print(section, end="")
    for note in notes:
        print(f"Note: {note}", file=sys.stderr)
    return 0


def section_lines(files: Sequence[Path], services: Sequence[Service], target: Path) -> Iterator[str]:
    """Render the section. The paths of compose files are relative to the folder of `target`."""
    folder = os.path.dirname(os.path.abspath(target))
    paths = ", ".join(_flow(os.path.relpath(file, folder)) for file in files)
    yield "services:"
    yield f"  compose: {{files: [{paths}]}}"
    yield f"  strategy: {Strategy.VRAM_BASED}"
    yield "  items:"
    for service in services:
        yield f"    - name: {_scalar(service.name)}"
        yield from (f"      {key}: {_scalar(value)}" for key, value in _settings_of(service).items())


def append_section(target: Path, section: str) -> None:
    """Append the section to a file, which is created if it does not exist. Raises BadSetting."""
    before = _text(target)
    earlier = parse_document(before, str(target)).settings
    if "services" in earlier:
        raise BadSetting(
            f"{target} has a `services:` section already",
            hint="Without --write the new one is printed: copy from it what you need.",
        )
    line_end = "\r\n" if "\r\n" in before else "\n"
    start = before if not before or before.endswith("\n") else before + line_end
    after = start + (line_end if start else "") + section.replace("\n", line_end)
    try:
        document = parse_document(after, str(target))
    except BadSetting:
        document = None
    if document is None or set(document.settings) != {*earlier, "services"}:
        raise BadSetting(
            f"the section cannot be appended to {target}",
            hint="Without --write the section is printed: paste it where it belongs.",
        )
    check(document, {}, {})
    path = Path(os.path.realpath(target))
    try:
        write_durably(path, after.encode(), path.stat().st_mode & 0o777 if path.exists() else None)
    except OSError as error:
        raise BadSetting(
            f"{path} cannot be written: {error.strerror}", hint="Without --write the section is printed."
        ) from None


def _settings_of(service: Service) -> dict[str, Any]:
    """Return a service's settings by their keys in the configuration."""
    size = service.vram_bytes
    settings = {
        "model": service.model,
        "vram_mib": None if size is None else round(size / MIB),
        "role": None if service.role is ServiceRole.OTHER else str(service.role),
        "latency_critical": service.latency_critical or None,
        "gpu_count": service.gpu_count,
        "vram_budget_env": service.budget_env,
        "health": service.health_url,
    }
    return {key: value for key, value in settings.items() if value is not None}


def _scalar(value: str | int | bool) -> str:
    """Render a value for YAML, in quotation marks where it needs them."""
    if not isinstance(value, str):
        return str(value).lower()
    try:
        plain = yaml.safe_load(f"a: {value}") == {"a": value}
    except yaml.YAMLError:
        plain = False
    return value if plain else _quoted(value)


def _flow(path: str) -> str:
    """Write a path inside brackets."""
    return path if path.replace("/", "").replace(".", "").replace("-", "").isalnum() else _quoted(path)


def _quoted(text: str) -> str:
    return yaml.safe_dump(text, default_style='"', width=10_000, allow_unicode=True).rstrip("\n")


def _text(target: Path) -> str:
    try:
        with target.open(encoding="utf-8", newline="") as file:
            return file.read()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise BadSetting(f"{target} cannot be read: {why}", hint="Check --config.") from None
