"""Combines settings that are valid one by one into a consistent Configuration."""

import os
import re
from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from cotenant.config.companions import CompanionReader
from cotenant.config.configuration import (
    AdvisorSettings,
    AlertSettings,
    Configuration,
    DeviceSettings,
    ModelDefaults,
    ModelEntry,
    OllamaSettings,
    Problem,
    ServerSettings,
)
from cotenant.config.engine_options import (
    UNREAD_PERCENT,
    endpoint,
    entry_problems,
    launch_of,
    options_of,
    unread_shape,
    weights_bytes,
)
from cotenant.config.fields import values_of
from cotenant.config.issues import KeyPath, shown
from cotenant.config.model_file_cache import Library, ModelFile, signature
from cotenant.config.models_dir import Catalogue, find_projector, read_folder
from cotenant.config.names import NAME, clean_name, free_name
from cotenant.config.schema import CheckedSettings, Model, RecipeSection
from cotenant.config.services import services_settings
from cotenant.config.values.groups import groups_of
from cotenant.config.values.listen import listen_faults
from cotenant.config.values.nodes import NodesSettings
from cotenant.domain.advisors import AdvisorMode
from cotenant.domain.engine_kinds import DEFAULT_KIND, OLLAMA_ADDRESS, ModelFormat
from cotenant.domain.errors import BadRecipe, ModelFileError
from cotenant.domain.hub import hub_name
from cotenant.domain.keys import ApiKey
from cotenant.domain.models import ModelKind, Recipe, check_recipe, with_micro_batch
from cotenant.domain.profiles import keep_alive_s, max_loaded, recipe_values
from cotenant.domain.units import MIB
from cotenant.http.addresses import api_endpoint
from cotenant.planning.budgets import BudgetRules
from cotenant.scheduling.model_spec import SchedulerSettings

_FLAG: Final = re.compile(r"--(?=[a-z])[a-z-]+")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def resolve(checked: CheckedSettings, library: Library, unsettled: Set[Path]) -> Configuration:
    """Fill in defaults, open every file, and name every model. Raises BadSetting with all issues."""
    configuration = _Resolution(checked, library, unsettled).configuration()
    checked.refuse(configuration)
    return configuration


class _Resolution:
    """Resolves one configuration and reports its issues."""

    def __init__(self, checked: CheckedSettings, library: Library, unsettled: Set[Path]) -> None:
        self._checked = checked
        self._report = checked.report
        self._settings = checked.settings
        self._library = library
        self._unsettled = unsettled
        self._companions = CompanionReader(checked.report, checked.absolute, self._open)
        self._defaults = ModelDefaults()

    def configuration(self) -> Configuration:
        settings, defaults = self._settings, self._settings.defaults
        self._defaults = replace(
            ModelDefaults(
                self._recipe(("defaults",), {}, defaults),
                keep_alive_s=keep_alive_s(defaults.profile, ModelDefaults().keep_alive_s),
                timeouts_s=defaults.timeouts.by_kind,
                vision_timeout_s=defaults.timeouts.vision,
            ),
            **values_of(defaults, ModelDefaults),
        )
        own = ((n, model) for n, model in enumerate(settings.models) if model.base is None)
        entries = ((number, self._entry(number, model)) for number, model in own)
        listed = {number: entry for number, entry in entries if entry is not None}
        listed = self._companions.with_served_entries(settings.models, listed)
        self._refuse_shared_names(listed)
        server = self._server()
        for key, what, hint in listen_faults(settings.models, server.port):
            self._report(key, what, hint)
        models_dir = self._path(settings.models_dir)
        catalogue = self._catalogue(models_dir)
        others, problems = self._from_folder(catalogue, listed.values())
        models = (*listed.values(), *others)
        advisor, database, ollama = _advisor_settings(self._checked), settings.database, settings.ollama
        return Configuration(
            path=self._checked.path,
            is_empty=not (self._checked.document and self._checked.document.settings),
            server=server,
            devices=self._devices(),
            defaults=self._defaults,
            scheduling=SchedulerSettings(
                **{
                    **values_of(settings.scheduling, SchedulerSettings),
                    "max_loaded": defaults.max_loaded or max_loaded(defaults.profile),
                }
            ),
            alerts=AlertSettings(**values_of(settings.alerts, AlertSettings)),
            advisor=advisor,
            nodes=_nodes_settings(self._checked),
            warm_ram_bytes=None if settings.warm.ram_mib is None else settings.warm.ram_mib * MIB,
            warm_kv_bytes=None if settings.warm.kv_mib is None else settings.warm.kv_mib * MIB,
            warm_kv_dir=self._path(settings.warm.kv_dir),
            models_dir=models_dir,
            models=models,
            groups=groups_of(self._checked, models),
            services=services_settings(settings.services, self._checked) if settings.services else None,
            database=database if database is None or "://" in database else str(self._path(database)),
            ollama=OllamaSettings(endpoint(ollama.address or OLLAMA_ADDRESS), ollama.gpus or ())
            if ollama
            else None,
            problems=(*catalogue.problems, *problems, *_advisor_problems(advisor, models)),
        )

    def _server(self) -> ServerSettings:
        server = self._settings.server
        key_file = self._path(server.api_key_file)
        if key_file is not None and not os.path.isfile(key_file):
            self._report(
                ("server", "api_key_file"), f"{key_file} does not exist", "Put one key on each line."
            )
        request_log = self._path(server.request_log)
        if request_log is not None and (os.path.isdir(request_log) or not os.path.isdir(request_log.parent)):
            self._report(
                ("server", "request_log"),
                f"{request_log} cannot be a file",
                "Give a file in a folder that exists.",
            )
        values = values_of(server, ServerSettings)
        keys = tuple(ApiKey(key.name, key.digest, **values_of(key, ApiKey)) for key in server.keys)
        return ServerSettings(**{**values, "api_key_file": key_file, "request_log": request_log}, keys=keys)

    def _devices(self) -> DeviceSettings:
        devices = self._settings.devices
        gpus = devices.gpus
        from_file = ("devices", "gpus") not in self._checked.sources
        if gpus is not None and from_file and gpus.lower().endswith((".yaml", ".yml", ".json")):
            gpus = str(self._path(gpus))
        rules = BudgetRules(**values_of(devices, BudgetRules))
        return DeviceSettings(rules=rules, **{**values_of(devices, DeviceSettings), "gpus": gpus})

    def _entry(self, number: int, model: Model) -> ModelEntry | None:
        key: KeyPath = ("models", number)
        kind = model.engine or DEFAULT_KIND
        recipe = replace(self._recipe(key, self._settings.defaults.recipe, model), engine=kind)
        problems = entry_problems(model, recipe)
        for at, what, hint in problems:
            self._report((*key, *at), what, hint)
        unset = model.api_key_env
        if unset is not None and not os.environ.get(unset):
            self._report((*key, "api_key_env"), f"the variable {unset} is not set", "Set it, or correct it.")
        base = None if problems else self._base_entry(key, model, recipe)
        if base is None:
            return None
        for variable in model.env or {}:
            if not _VARIABLE.fullmatch(variable):
                self._report((*key, "env", variable), "it is not a variable name", "Write NAME: value.")
        ollama, server = self._settings.ollama, self._path(model.llama_server)
        options = options_of(model, kind.traits, ollama.address if ollama else None, os.environ)
        if server is not None:
            options = replace(options, command=(str(server),))
            if server.is_dir() or not os.access(server, os.X_OK):
                what = f"{server} is not a program that can be run"
                self._report((*key, "llama_server"), what, "Correct the path.")
        entry = replace(
            base,
            keep_alive_s=self._defaults.keep_alive_s,
            env=dict(model.env or {}),
            from_folder=False,
            launch=launch_of(model, self._checked),
            options=options,
            rules=model.rules,
        )
        entry = replace(entry, **values_of(model, ModelDefaults), **values_of(model, ModelEntry))
        variants = {
            f"{entry.name}:{name}": each.rules.over(entry.rules) for name, each in model.variants.items()
        }
        return replace(entry, variants=variants)

    def _base_entry(self, key: KeyPath, model: Model, recipe: Recipe) -> ModelEntry | None:
        """Return the entry with what the model's file says, if its engine kind has a file to read."""
        reads, path = recipe.engine.traits.reads, self._path(model.path)
        if path is not None and reads is not ModelFormat.NOTHING:
            file = self._open((*key, "path"), path, is_folder=reads is ModelFormat.FOLDER)
            if file is None:
                return None
            if reads is ModelFormat.FOLDER:
                longest = file.shape.n_ctx_train
                if longest and "n_ctx" not in model.recipe:
                    # vLLM refuses a context longer than the model was trained for; llama.cpp accepts it.
                    recipe = replace(recipe, n_ctx=min(recipe.n_ctx, longest))
                return self._served(model.name or path.name, file, None, recipe)
            if file.is_projector:
                hint = "Give it as `mmproj:` of its model."
                self._report((*key, "path"), f"{path} is a vision projector", hint)
                return None
            projector = self._projector(key, model, file)
            entry = self._served(model.name or clean_name(file.path), file, projector, recipe)
            return self._companions.with_companions(key, model, entry)
        name = model.name or model.model or ""
        if not NAME.fullmatch(name):
            self._report((*key, "model"), f"{shown(name)} cannot be a name", "Add `name:`.")
            return None
        stated = model.memory
        if stated is None and path is not None:
            stated = UNREAD_PERCENT * weights_bytes(path) // 100
        return ModelEntry(
            name=name,
            path=path,
            recipe=recipe,
            shape=unread_shape(name, model.kind or ModelKind.TEXT),
            signature=() if path is None else tuple(filter(None, [signature(path)])),
            parts=(),
            stated_bytes=stated or None,
            stated_is_guess=model.memory is None,
            timeout_s=self._defaults.timeout_for(model.kind or ModelKind.TEXT, vision=False),
            answer_timeout_s=self._defaults.answer_timeout_s,
        )

    def _served(self, name: str, file: ModelFile, projector: ModelFile | None, recipe: Recipe) -> ModelEntry:
        return ModelEntry(
            name=name,
            path=file.path,
            recipe=with_micro_batch(recipe, file.shape.kind),
            shape=file.shape,
            signature=(*file.signature, *(projector.signature if projector else ())),
            parts=file.parts,
            projector_path=projector.path if projector else None,
            projector=projector.shape.projector if projector else None,
            keep_alive_s=self._defaults.keep_alive_s,
            timeout_s=self._defaults.timeout_for(file.shape.kind, vision=projector is not None),
            answer_timeout_s=self._defaults.answer_timeout_s,
            from_folder=True,
        )

    def _projector(self, key: KeyPath, model: Model, file: ModelFile) -> ModelFile | None:
        path = self._path(model.mmproj)
        if path is not None:
            projector = self._open((*key, "mmproj"), path)
            if projector is not None and not projector.is_projector:
                self._report((*key, "mmproj"), f"{path} is not a vision projector", "Give an mmproj file.")
            return projector
        return find_projector(file.path, self._library, self._unsettled) if model.mmproj is None else None

    def _open(self, key: KeyPath, path: Path, *, is_folder: bool = False) -> ModelFile | None:
        try:
            return self._library.open(path, self._unsettled, is_folder=is_folder)
        except ModelFileError as error:
            self._report(key, error.message, error.hint)
            return None

    def _recipe(self, key: KeyPath, defaults: Mapping[str, Any], section: RecipeSection) -> Recipe:
        """Build a recipe; a micro-batch larger than the batch is reduced to it, as in llama.cpp."""
        own = section.recipe
        if own.get("smart_split") and own.get("tensor_split"):
            self._report(key, "smart_split and tensor_split exclude each other", "Keep one.")
        values = {**defaults, **own}
        recipe = replace(Recipe(), **values, **recipe_values(self._settings.defaults.profile, values))
        recipe = with_micro_batch(recipe)
        try:
            check_recipe(recipe)
        except BadRecipe as error:
            self._report(key, _by_key(error.message), _by_key(error.hint))
        return recipe

    def _refuse_shared_names(self, listed: Mapping[int, ModelEntry]) -> None:
        owners: dict[str, int] = {}
        for number, entry in listed.items():
            named = ("models", number, "name" if self._settings.models[number].name else "path")
            aliases = [(("models", number, "aliases", at), alias) for at, alias in enumerate(entry.aliases)]
            variants = [
                (("models", number, "variants", name.rpartition(":")[2]), name) for name in entry.variants
            ]
            for key, name in [(named, entry.name), *aliases, *variants]:
                if name in owners:
                    what = f"the name {name} is taken by models[{owners[name]}]"
                    self._report(key, what, "Give each model its own names.")
                owners.setdefault(name, number)

    def _catalogue(self, models_dir: Path | None) -> Catalogue:
        if models_dir is None:
            return Catalogue()
        try:
            return read_folder(models_dir, self._library, self._unsettled)
        except OSError as error:
            what = f"{models_dir} cannot be read: {error.strerror}"
            hint = "Give a folder of GGUF files, and mount its disk; a restart accepts an empty one."
            self._report(("models_dir",), what, hint)
            return Catalogue()

    def _from_folder(
        self, catalogue: Catalogue, listed: Collection[ModelEntry]
    ) -> tuple[list[ModelEntry], list[Problem]]:
        """Return entries with unique names for the models in the folder that have no entry."""
        taken = {name for entry in listed for name in entry.names}
        named = {os.path.realpath(entry.path) for entry in listed if entry.path is not None}
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
            entry = self._served(name, found.model, found.projector, self._defaults.recipe)
            pulled = hub_name(path.parent.name, path.name)
            if pulled is not None and str(pulled) not in taken:
                taken.add(str(pulled))
                entry = replace(entry, aliases=(str(pulled),))
            entries.append(entry)
        return entries, problems

    def _path(self, text: str | None) -> Path | None:
        """Return an absolute path; relative ones start from the file's folder. None stays None."""
        return self._checked.absolute(text) if text else None


def _advisor_settings(checked: CheckedSettings) -> AdvisorSettings:
    """Return the section with all defaults filled in, and report conflicts between its keys."""
    settings = AdvisorSettings(**values_of(checked.settings.advisor, AdvisorSettings))
    if settings.mode is AdvisorMode.OFF:
        return settings
    if settings.api_key is not None and settings.address is None:
        hint = "Give `address:`, or leave the key out: a model served here needs none."
        checked.report(("advisor", "api_key"), "there is no address for this key", hint)
    elif settings.model is None:
        checked.report(("advisor", "mode"), "there is no model to ask", "Give `model:`.")
    elif settings.address is not None:
        try:
            api_endpoint(settings.address)
        except ValueError:
            hint = "Write http://host:port or https://host/path, with nothing after the path."
            checked.report(("advisor", "address"), "it is not the address of an API", hint)
    return settings


def _advisor_problems(settings: AdvisorSettings, models: Sequence[ModelEntry]) -> list[Problem]:
    """Return a problem if the advisor's model is not served; no error, as its file may be added later."""
    names = {name for entry in models for name in entry.names}
    if settings.mode is AdvisorMode.OFF or settings.address is not None or settings.model in names:
        return []
    return [Problem(Path("advisor"), f"{settings.model} is not served here, so there is no advice")]


def _nodes_settings(checked: CheckedSettings) -> NodesSettings | None:
    """Return the section with all defaults filled in, None without it, and report what contradicts itself."""
    section = checked.settings.nodes
    if section is None:
        for number, model in enumerate(checked.settings.models):
            if model.nodes:
                what = f"{', '.join(model.nodes)} cannot be used: there is no section `nodes:`"
                checked.report(("models", number, "nodes"), what, "Add `nodes: {launcher: ray}`.")
            if model.across_nodes:
                what = "there are no other machines: there is no section `nodes:`"
                checked.report(("models", number, "across_nodes"), what, "Add `nodes: {launcher: ray}`.")
        return None
    found = NodesSettings(**values_of(section, NodesSettings))
    if found.lost_after_s < found.suspect_after_s:
        what = f"a machine would be lost after {found.lost_after_s:g} s, before it is suspect"
        checked.report(("nodes", "lost_after"), what, f"Give more than {found.suspect_after_s:g}s.")
    if found.lease_s < found.lost_after_s:
        what = f"engines would end after {found.lease_s:g} s, before their machine counts as lost"
        checked.report(("nodes", "lease"), what, f"Give {found.lost_after_s:g}s or more; 60s is usual.")
    if found.tls is None:
        return found
    files = replace(found.tls, ca=checked.absolute(str(found.tls.ca)))
    if not files.ca.is_file():
        hint = "Give the certificate authority that has signed the agents' certificates."
        checked.report(("nodes", "tls", "ca"), f"{files.ca} does not exist", hint)
    for name, path in (("cert", files.cert), ("key", files.key)):
        if not path.is_absolute():
            hint = "It is a file on each machine: give its whole path there."
            checked.report(("nodes", "tls", name), f"{path} is no absolute path", hint)
    return replace(found, tls=files)


def _by_key(text: str) -> str:
    """Replace flags by keys in a message that was written for the command line."""
    return _FLAG.sub(lambda match: match[0][2:].replace("-", "_"), text)
