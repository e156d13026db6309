"""Reads and checks the configuration: flags override the environment, which overrides the file."""

import operator
import os
from collections.abc import Mapping, Sequence, Set
from copy import deepcopy
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from cotenant.config.configuration import Configuration
from cotenant.config.environment import notes
from cotenant.config.issues import CONFIG_ISSUE, KeyPath, nearest, shown
from cotenant.config.layers import layered
from cotenant.config.model_file_cache import Library
from cotenant.config.resolution import resolve
from cotenant.config.schema import CheckedSettings, Settings
from cotenant.config.sections import Section, sections_in
from cotenant.config.yaml_document import EXAMPLE, Document, read_document

_EXPECTED: Final = {
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "dict_type": "a mapping",
    "list_type": "a list",
}


def read_configuration(
    source: Path | Document | None,
    *,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
    library: Library | None = None,
    unsettled: Set[Path] = frozenset(),
) -> Configuration:
    """Read the configuration: `flags` override `environment`, which overrides `source`, if there is one.

    `environment` None is that of the process. `library` caches model files: pass the same one each time.
    `unsettled` are files still being written (`watch.Change`), skipped for now. Raises BadSetting.
    """
    document = read_document(source) if isinstance(source, Path) else source
    variables = os.environ if environment is None else environment
    found = resolve(check(document, variables, flags or {}), library or Library(), unsettled)
    return replace(found, problems=(*found.problems, *notes(variables)))


def check(
    document: Document | None, environment: Mapping[str, str], flags: Mapping[str, object]
) -> CheckedSettings:
    """Check every setting separately, and note all issues. Raises them if they are all that can be found."""
    given = layered(document, environment, flags)
    values, issues = given.values, given.issues
    faults: list[Any] = []
    rest: Settings | None = None
    try:
        rest = Settings.model_validate(values)
    except ValidationError as error:
        faults = error.errors(include_url=False)
        rest = _without(values, [fault["loc"] for fault in faults])
    settings = rest or Settings.model_construct()
    checked = CheckedSettings(settings, document, given.sources)
    unread = {key for key, _, _ in issues}
    for issue in (*issues, *(_explained(fault) for fault in faults if fault["loc"] not in unread)):
        checked.report(*issue)
    checked.faulty.extend([*unread, *(fault["loc"] for fault in faults)])
    if rest is None:
        checked.refuse()
    return checked


def _without(values: Mapping[str, Any], faulty: Sequence[KeyPath]) -> Settings | None:
    """Return the settings besides the faulty ones, to be checked together; None if they are none."""
    kept: Any = deepcopy(values)
    for *parents, last in faulty:
        try:
            reduce(operator.getitem, parents, kept).pop(last, None)
        except (LookupError, TypeError, AttributeError):
            return None
    try:
        return Settings.model_validate(kept)
    except ValidationError:
        return None


def _explained(fault: Any) -> tuple[KeyPath, str, str]:
    """Return the key of pydantic's fault, what is wrong, and a hint."""
    key: KeyPath = fault["loc"]
    kind: str = fault["type"]
    if kind == CONFIG_ISSUE:
        return key, fault["msg"], fault["ctx"]["hint"]
    if kind == "extra_forbidden":
        section: type[Section] = Settings
        for part in key[:-1]:
            if part in section.model_fields:
                section = next(sections_in(section.model_fields[part].annotation))
        return key, "unknown setting", nearest(str(key[-1]), section.fields_by_key())
    if kind == "missing":
        return key[:-1], f"it has no {key[-1]}", f"Add `{key[-1]}:`."
    if kind in _EXPECTED:
        return key, f"{shown(fault['input'])} is not {_EXPECTED[kind]}", EXAMPLE
    return key, str(fault["msg"]), EXAMPLE
