"""Writes the documentation of `cotenant.yaml` from the declared settings.

`python -m cotenant.config.documentation docs` writes `cotenant.schema.json`, with which editors complete and
check the file, and the tables in `configuration.md`. A table is between `<!-- settings: SECTION -->` and
`<!-- end -->`.
"""

import json
import re
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from cotenant.config.fields import SECTIONS, in_units_of_file
from cotenant.config.schema import Settings
from cotenant.config.sections import Section, sections_in
from cotenant.domain.settings import Setting

SCHEMA: Final = "cotenant.schema.json"
PAGE: Final = "configuration.md"
_TABLE: Final = re.compile(r"(<!-- settings: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
_UNITS: Final = ((3600, "h"), (60, "m"), (1, "s"))


def json_schema() -> str:
    """Render the schema."""
    schema: dict[str, Any] = Settings.model_json_schema()
    # `warm: off` is allowed besides a mapping.
    warm = schema["properties"]["warm"]
    schema["properties"]["warm"] = {"anyOf": [warm, {"enum": ["off", False]}]}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def with_tables(page: str) -> str:
    """Return the page with its tables rewritten. Raises LookupError for an unknown section."""
    return _TABLE.sub(lambda found: f"{found[1]}{''.join(_rows(found[2]))}{found[3]}", page)


def _rows(path: str) -> Iterator[str]:
    section: type[Section] = Settings
    for name in path.split("."):
        section = next(sections_in(section.model_fields[name].annotation))
    declared = {each.key: each for each in SECTIONS.get(path, ())}
    inherited = {each.key for each in SECTIONS["defaults"]} if path == "models" else set()
    yield "| key | default | what it does |\n|---|---|---|\n"
    for key, name in section.fields_by_key().items():
        field = section.model_fields[name]
        if key not in inherited and next(sections_in(field.annotation), None) is None:
            default = _default(declared[key]) if key in declared else "needed" if field.is_required() else ""
            yield f"| `{key}` | {default} | {field.description or ''} |\n"


def _default(setting: Setting) -> str:
    value = in_units_of_file(setting, setting.default)
    if setting.shown or value is None or value == ():
        return setting.shown or "none"
    if isinstance(value, bool):
        return str(value).lower()
    if setting.key != setting.name and isinstance(value, float):
        size, unit = next(each for each in _UNITS if value % each[0] == 0)
        return f"{value / size:.0f}{unit}"
    return value.value if isinstance(value, StrEnum) else str(value)


def main(folder: Path) -> None:
    """Rewrite both files."""
    (folder / SCHEMA).write_text(json_schema(), encoding="utf-8")
    page = folder / PAGE
    page.write_text(with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
