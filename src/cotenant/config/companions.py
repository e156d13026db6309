"""The files that are loaded next to a model's own: its draft, LoRA adapters and control vectors."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

from cotenant.analysis.drafts import draft_problem
from cotenant.analysis.shape import adapter_sizes, with_control_vectors
from cotenant.config.configuration import ModelEntry
from cotenant.config.issues import KeyPath, shown
from cotenant.config.model_file_cache import ModelFile, signature
from cotenant.config.scalars import scalar
from cotenant.domain.engine_kinds import EngineKind
from cotenant.domain.engines import Adapter
from cotenant.domain.errors import BadSetting, ModelFileError
from cotenant.domain.models import ModelKind
from cotenant.domain.requests import RequestRules
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

    base: str | None
    name: str | None
    draft: str | None
    lora: tuple[Adapter, ...] | None
    control_vectors: tuple[Adapter, ...] | None

    @property
    def rules(self) -> RequestRules:
        """What is changed in its requests."""

    @property
    def model_fields_set(self) -> set[str]:
        """The names of the fields that the entry has."""

    @classmethod
    def fields_by_key(cls) -> dict[str, str]:
        """Return the names of the fields by their keys."""


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

    def with_served_entries(
        self, given: Sequence[Given], entries: Mapping[int, ModelEntry]
    ) -> dict[int, ModelEntry]:
        """Return the entries, by their place in the file, with those that their engines serve as well.

        Each of these is a name of the other model, whose requests say which adapters they are for. So do all
        requests of that model then: llama.cpp continues from what it keeps of a prompt, for a request that
        says nothing, even if another adapter computed it (`launch_slot_with_task`).
        """
        found = dict(entries)
        served: dict[int, list[Given]] = {}
        for number, each in enumerate(given):
            if each.base is None:
                continue
            base = next((n for n, entry in entries.items() if each.base in entry.names), None)
            if base is None:
                what = f"no model of an entry is named {shown(each.base)}"
                self.report(("models", number, "base"), what, "Give that model an entry.")
                continue
            if not self._can_serve(("models", number), each, entries[base]):
                continue
            off = [replace(adapter, scale=0.0) for adapter in each.lora or ()]
            found[base] = self.with_adapters(("models", number, "lora"), off, found[base])
            served.setdefault(base, []).append(each)
        for base, those in served.items():
            found[base] = self._chosen_by_name(found[base], those)
        return found

    def _can_serve(self, key: KeyPath, given: Given, base: ModelEntry) -> bool:
        keys = (key for key, name in given.fields_by_key().items() if name in given.model_fields_set)
        others = sorted({*keys} - _OWN_KEYS)
        kind = base.recipe.engine
        problem = None
        if others:
            problem = others[0], f"{others[0]} is that of its base", "Leave it out."
        elif not given.name:
            problem = "base", "it has no name", "Add `name:`."
        elif not given.lora:
            problem = "base", "it has no adapter", "Add `lora:`, or give names to requests by `variants:`."
        elif kind is not EngineKind.LLAMA_CPP or base.shape.kind is not ModelKind.TEXT:
            what = f"{base.name}, of {kind}, takes no adapters by request"
            problem = "base", what, "Name a model of llama.cpp that generates text."
        if problem is not None:
            self.report((*key, problem[0]), *problem[1:])
        return problem is None

    def _chosen_by_name(self, entry: ModelEntry, served: Iterable[Given]) -> ModelEntry:
        adapters = entry.companions.adapters

        def choosing(scales: Mapping[str, float]) -> RequestRules:
            chosen = [{"id": n, "scale": scales.get(each.path, 0.0)} for n, each in enumerate(adapters)]
            return RequestRules({"lora": chosen})

        by_default = choosing({each.path: each.scale for each in adapters})
        variants = {name: rules.over(by_default) for name, rules in entry.variants.items()}
        for each in served:
            own = choosing({str(self.absolute(a.path)): a.scale for a in each.lora or ()})
            variants[each.name or ""] = each.rules.over(own.over(entry.rules))
        return replace(
            entry,
            rules=entry.rules.over(by_default),
            variants=variants,
            companions=replace(entry.companions, by_request=True),
        )
