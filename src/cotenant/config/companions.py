"""The files that are loaded next to a model's own: its draft, LoRA adapters and control vectors."""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

from cotenant.analysis.drafts import draft_problem
from cotenant.analysis.shape import adapter_sizes, with_control_vectors
from cotenant.config.configuration import ModelEntry
from cotenant.config.issues import KeyPath, shown
from cotenant.config.model_file_cache import ModelFile, signature
from cotenant.config.scalars import scalar
from cotenant.domain.engines import Adapter
from cotenant.domain.errors import BadSetting, ModelFileError
from cotenant.model_files import open_header

_SEPARATORS: Final = frozenset(':,"')
_ITEM: Final[dict[str, Any]] = {
    "type": ["string", "object"],
    "properties": {"path": {"type": "string"}, "scale": {"type": "number"}},
    "required": ["path"],
    "additionalProperties": False,
}
_OWN_KEYS: Final = frozenset(["name", "base", "lora", "set", "strip", "limit"])
"""The keys of an entry that another one's engine serves."""


@scalar(type="array", items=_ITEM, examples=[["sql.gguf", {"path": "tone.gguf", "scale": 0.5}]])
def adapters(value: Any) -> tuple[Adapter, ...]:
    """A list of files, each a path or a mapping of its path and its scale, `~` expanded."""
    items = value if isinstance(value, (list, tuple)) else [value]
    return tuple(_adapter(item) for item in items)


def _adapter(item: Any) -> Adapter:
    given = item if isinstance(item, Mapping) else {"path": item}
    path, scale = given.get("path"), given.get("scale", 1.0)
    if not isinstance(path, str) or not path or given.keys() - {"path", "scale"}:
        raise BadSetting(f"{shown(item)} is not a file", hint="Write a path, or {path: FILE, scale: 1.0}.")
    if _SEPARATORS & set(path):
        raise BadSetting(
            f'{shown(path)}: llama-server takes no path with one of : , " in it', hint="Rename the file."
        )
    try:
        number = float(scale)
    except (TypeError, ValueError):
        number = float("nan")
    if not -1000 <= number <= 1000:
        raise BadSetting(f"{shown(scale)} is not a scale", hint="Write a number, such as 1 or 0.5.")
    return Adapter(os.path.expanduser(path), number)


class Given(Protocol):
    """What an entry of the file says of companions."""

    draft: str | None
    lora: tuple[Adapter, ...] | None
    control_vectors: tuple[Adapter, ...] | None


@dataclass(frozen=True, slots=True)
class CompanionReader:
    """Adds companions to entries, and reports what is wrong with them.

    `absolute` completes a path; `open_model` reads a model, or reports why it cannot and returns None.
    """

    report: Callable[[KeyPath, str, str], None]
    absolute: Callable[[str], Path]
    open_model: Callable[[KeyPath, Path], ModelFile | None]

    def with_companions(self, key: KeyPath, given: Given, entry: ModelEntry) -> ModelEntry:
        """Return an entry with its draft, its adapters and its control vectors."""
        if given.draft is not None:
            entry = self._with_draft((*key, "draft"), self.absolute(given.draft), entry)
        entry = self.with_adapters((*key, "lora"), given.lora or (), entry)
        return self._with_control_vectors((*key, "control_vectors"), given.control_vectors or (), entry)

    def _with_draft(self, key: KeyPath, path: Path, entry: ModelEntry) -> ModelEntry:
        file = self.open_model(key, path)
        if file is None:
            return entry
        if (problem := draft_problem(entry.shape, file.shape)) is not None:
            self.report(key, f"{path} {problem}", "Give a smaller model of the same family.")
        return replace(
            entry,
            companions=replace(entry.companions, draft=str(file.path)),
            draft=file.shape,
            signature=(*entry.signature, *file.signature),
        )

    def with_adapters(self, key: KeyPath, added: Iterable[Adapter], entry: ModelEntry) -> ModelEntry:
        """Return an entry with more adapters, those that it does not have yet."""
        for adapter in added:
            path = self.absolute(adapter.path)
            if any(known.path == str(path) for known in entry.companions.adapters):
                continue
            try:
                shape = adapter_sizes(open_header(path)).on(entry.loaded)
            except ModelFileError as error:
                self.report(key, f"{path}: {error.message}", error.hint)
                continue
            known = (*entry.companions.adapters, replace(adapter, path=str(path)))
            entry = replace(entry, companions=replace(entry.companions, adapters=known), adapted=shape)
            entry = replace(entry, signature=(*entry.signature, *filter(None, [signature(path)])))
        return entry

    def _with_control_vectors(
        self, key: KeyPath, given: tuple[Adapter, ...], entry: ModelEntry
    ) -> ModelEntry:
        if not given:
            return entry
        files = tuple(replace(each, path=str(self.absolute(each.path))) for each in given)
        try:
            shape = with_control_vectors(entry.loaded, [open_header(Path(each.path)) for each in files])
        except ModelFileError as error:
            self.report(key, error.message, error.hint)
            return entry
        seen = filter(None, (signature(each.path) for each in files))
        companions = replace(entry.companions, control_vectors=files)
        return replace(entry, companions=companions, adapted=shape, signature=(*entry.signature, *seen))
