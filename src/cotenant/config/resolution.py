"""From settings that are right one by one to a Configuration that holds together."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Set
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from cotenant.config.catalogue import Catalogue, read_folder
from cotenant.config.complaints import Complaint, KeyPath, refusal
from cotenant.config.configuration import (
    Configuration,
    DeviceSettings,
    ModelDefaults,
    ModelEntry,
    Problem,
    SchedulingSettings,
    ServerSettings,
)
from cotenant.config.library import Library, ModelFile
from cotenant.config.names import clean_name, free_name
from cotenant.config.schema import Model, RecipeSection
from cotenant.config.settings import Given
from cotenant.domain.errors import BadRecipe, ModelFileError
from cotenant.domain.models import ModelKind, Recipe
from cotenant.domain.recipes import check_recipe
from cotenant.domain.units import MIB
from cotenant.model_files import find_projectors
from cotenant.planning.budgets import BudgetRules

_FLAG: Final = re.compile(r"--(?=[a-z])[a-z-]+")
_RECIPE_NAMES: Final = {"ctx": "n_ctx", "flash_attn": "flash_attention"}
"""Settings that a Recipe calls something else."""
_RECIPE_SETTINGS: Final = tuple(
    key for key in RecipeSection.model_fields if key not in ("keep_alive", "timeout")
)
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def resolve(given: Given, library: Library, unsettled: Set[Path]) -> Configuration:
    """Fill in defaults, open every file, and name everyone. Raises BadSetting with all that is wrong."""
    resolution = _Resolution(given, library, unsettled)
    configuration = resolution.configuration()
    if resolution.complaints:
        raise refusal(sorted(resolution.complaints, key=lambda complaint: complaint.line or 0))
    return configuration


class _Resolution:
    """One reading of a configuration, collecting what is wrong with it."""

    def __init__(self, given: Given, library: Library, unsettled: Set[Path]) -> None:
        self._given = given
        self._settings = given.settings
        self._base = given.base
        self._library = library
        self._unsettled = unsettled
        self._defaults = ModelDefaults()
        self.complaints: list[Complaint] = []

    def configuration(self) -> Configuration:
        """Return the whole; it means nothing if there are complaints."""
        settings = self._settings
        self._defaults = ModelDefaults(
            self._recipe(("defaults",), {}, settings.defaults),
            _keep_alive(settings.defaults, ModelDefaults().keep_alive_s),
            settings.defaults.timeout or ModelDefaults().timeout_s,
        )
        listed = [
            entry for number, model in enumerate(settings.models) if (entry := self._entry(number, model))
        ]
        self._refuse_shared_names(listed)
        models_dir = self._path(settings.models_dir)
        catalogue = self._catalogue(models_dir)
        others, problems = self._from_folder(catalogue, [entry for _, entry in listed])
        document = self._given.document
        return Configuration(
            path=Path(document.name) if document else None,
            server=self._server(),
            devices=self._devices(),
            defaults=self._defaults,
            scheduling=self._scheduling(),
            warm_ram_bytes=settings.warm.ram_mib * MIB if settings.warm.ram_mib else None,
            models_dir=models_dir,
            models=(*(entry for _, entry in listed), *others),
            problems=(*catalogue.problems, *problems),
        )

    def _server(self) -> ServerSettings:
        server = self._settings.server
        key_file = self._path(server.api_key_file)
        if key_file is not None and not os.path.isfile(key_file):
            self._complain(
                ("server", "api_key_file"), f"{key_file} does not exist", "Put one key on each line."
            )
        return replace(
            ServerSettings(api_keys=tuple(server.api_keys or ()), api_key_file=key_file),
            **_told(server, "host", "port", "insecure"),
        )

    def _devices(self) -> DeviceSettings:
        devices = self._settings.devices
        gpus = devices.gpus
        from_file = ("devices", "gpus") not in self._given.sources
        if gpus is not None and from_file and gpus.lower().endswith((".yaml", ".yml")):
            gpus = str(self._path(gpus))
        mib = _told(devices, "reserve_mib", "min_budget_mib", "overhead_mib")
        sizes = {key.replace("_mib", "_bytes"): count * MIB for key, count in mib.items()}
        return DeviceSettings(
            devices.use or (), replace(BudgetRules(), **_told(devices, "order"), **sizes), gpus
        )

    def _scheduling(self) -> SchedulingSettings:
        scheduling = self._settings.scheduling
        seconds = _told(scheduling, "overdue", "min_residency", "drain_limit", "reclaim_bound")
        return replace(
            SchedulingSettings(max_loaded=self._settings.defaults.max_loaded),
            **_told(scheduling, "policy", "drain_share", "max_queue", "max_queue_total", "prefetch"),
            **{f"{key}_s": value for key, value in seconds.items()},
        )

    def _entry(self, number: int, model: Model) -> tuple[int, ModelEntry] | None:
        key: KeyPath = ("models", number)
        path = self._path(model.path)
        file = None if path is None else self._open((*key, "path"), path)
        if file is None:
            return None
        if file.is_projector:
            self._complain(
                (*key, "path"), f"{path} is a vision projector", "Give it as `mmproj:` of its model."
            )
            return None
        for variable in model.env or {}:
            if not _VARIABLE.fullmatch(variable):
                self._complain((*key, "env", variable), "it is no name of a variable", "Write NAME: value.")
        recipe = self._recipe(key, _recipe_values(self._settings.defaults), model)
        return number, replace(
            self._served(
                model.name or clean_name(file.path), file, self._projector(key, model, file), recipe
            ),
            aliases=tuple(model.aliases or ()),
            gpus=model.gpus or (),
            keep_alive_s=_keep_alive(model, self._defaults.keep_alive_s),
            env=dict(model.env or {}),
            args=tuple(model.args or ()),
            from_folder=False,
            timeout_s=model.timeout or self._defaults.timeout_s,
            **_told(model, "preload", "pinned", "priority"),
        )

    def _served(self, name: str, file: ModelFile, projector: ModelFile | None, recipe: Recipe) -> ModelEntry:
        if file.shape.kind is ModelKind.EMBEDDING:
            # An engine embeds a text in one micro-batch: a longer text would be refused.
            recipe = replace(recipe, n_ubatch=recipe.n_batch)
        return ModelEntry(
            name=name,
            path=file.path,
            recipe=recipe,
            shape=file.shape,
            signature=(*file.signature, *(projector.signature if projector else ())),
            parts=file.parts,
            projector_path=projector.path if projector else None,
            projector_bytes=projector.shape.tensor_bytes if projector else 0,
            keep_alive_s=self._defaults.keep_alive_s,
            timeout_s=self._defaults.timeout_s,
            from_folder=True,
        )

    def _projector(self, key: KeyPath, model: Model, file: ModelFile) -> ModelFile | None:
        if model.mmproj is None:
            return self._projector_beside(file)
        path = self._path(model.mmproj)
        projector = None if path is None else self._open((*key, "mmproj"), path)
        if projector is not None and not projector.is_projector:
            self._complain((*key, "mmproj"), f"{path} is not a vision projector", "Give an mmproj file.")
        return projector

    def _projector_beside(self, file: ModelFile) -> ModelFile | None:
        """Find it as in `models_dir`, so that an entry changes only what it says."""
        if not find_projectors(file.path):
            return None
        try:
            found = read_folder(file.path.parent, self._library, self._unsettled).found
        except OSError:
            return None
        return next((each.projector for each in found if each.model.path == file.path), None)

    def _open(self, key: KeyPath, path: Path) -> ModelFile | None:
        if path in self._unsettled:
            self._complain(key, f"{path} is still being written", "Wait for it to be complete.")
            return None
        try:
            return self._library.open(path)
        except ModelFileError as error:
            self._complain(key, error.message, error.hint)
            return None

    def _recipe(self, key: KeyPath, defaults: Mapping[str, Any], section: RecipeSection) -> Recipe:
        """Build a recipe; a micro-batch larger than the batch is cut to it, as llama.cpp does."""
        own = _recipe_values(section)
        if own.get("smart_split") and own.get("tensor_split"):
            self._complain(key, "smart_split and tensor_split exclude each other", "Keep one.")
        recipe = replace(Recipe(), **{**defaults, **own})
        recipe = replace(recipe, n_ubatch=min(recipe.n_ubatch, recipe.n_batch))
        try:
            check_recipe(recipe)
        except BadRecipe as error:
            self._complain(key, _by_key(error.message), _by_key(error.hint))
        return recipe

    def _refuse_shared_names(self, listed: list[tuple[int, ModelEntry]]) -> None:
        owners: dict[str, int] = {}
        for number, entry in listed:
            named = ("models", number, "name" if self._settings.models[number].name else "path")
            aliases = [(("models", number, "aliases", at), alias) for at, alias in enumerate(entry.aliases)]
            for key, name in [(named, entry.name), *aliases]:
                if name in owners:
                    other = f"models[{owners[name]}]"
                    self._complain(
                        key, f"the name {name} is taken by {other}", "Give each model its own names."
                    )
                owners.setdefault(name, number)

    def _catalogue(self, models_dir: Path | None) -> Catalogue:
        if models_dir is None:
            return Catalogue()
        try:
            return read_folder(models_dir, self._library, self._unsettled)
        except OSError as error:
            what = f"{models_dir} cannot be read: {error.strerror}"
            self._complain(("models_dir",), what, "Give a folder of GGUF files.")
            return Catalogue()

    def _from_folder(
        self, catalogue: Catalogue, listed: list[ModelEntry]
    ) -> tuple[list[ModelEntry], list[Problem]]:
        """Serve what the folder holds and no entry names, each under a name of its own."""
        taken = {name for entry in listed for name in (entry.name, *entry.aliases)}
        named = {os.path.realpath(entry.path) for entry in listed}
        entries: list[ModelEntry] = []
        problems: list[Problem] = []
        for found in catalogue.found:
            path = found.model.path
            if os.path.realpath(path) in named:
                continue
            wanted = clean_name(path)
            name = free_name(wanted, taken)
            if name != wanted:
                problems.append(Problem(path, f"it is served as {name}, since the name {wanted} is taken"))
            taken.add(name)
            entries.append(self._served(name, found.model, found.projector, self._defaults.recipe))
        return entries, problems

    def _path(self, text: str | None) -> Path | None:
        """Return a path of the file, meant against its folder; None for none."""
        return Path(os.path.abspath(self._base / text)) if text else None

    def _complain(self, key: KeyPath, what: str, hint: str) -> None:
        self.complaints.append(self._given.complain(key, what, hint))


def _recipe_values(section: RecipeSection) -> dict[str, Any]:
    """Return what a section says of the recipe, by the recipe's names."""
    told = _told(section, *_RECIPE_SETTINGS)
    return {_RECIPE_NAMES.get(key, key): value for key, value in told.items()}


def _told(section: Any, *keys: str) -> dict[str, Any]:
    """Return those settings of a section that were given."""
    return {key: value for key in keys if (value := getattr(section, key)) is not None}


def _keep_alive(section: RecipeSection, default: float | None) -> float | None:
    if section.keep_alive is None:
        return default
    return None if math.isinf(section.keep_alive) else section.keep_alive


def _by_key(text: str) -> str:
    """Name keys where a message for the command line names flags."""
    return _FLAG.sub(lambda match: match[0][2:].replace("-", "_"), text)
