"""What a new configuration changes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

from cotenant.config.configuration import Configuration, ModelEntry
from cotenant.config.values.nodes import NodesSettings
from cotenant.domain.settings import settings_of

_RULES = {
    "name",
    "aliases",
    "gpus_fallback",
    "keep_alive_s",
    "preload",
    "pinned",
    "copies",
    "listen",
    "priority",
    "timeout_s",
    "answer_timeout_s",
    "rules",
    "variants",
}
_ORIGINS = {"from_folder", "stated_is_guess"}
"""With the rules, the fields of ModelEntry that the running engine does not depend on."""
_AT_ONCE = {
    *(f"nodes.{key}" for key in ("suspect_after", "lost_after", "lease", "gate_port", "pull", "tls")),
    "models_dir",
    "groups",
    "ollama",
    "devices.drain",
    "server.api_keys",
    "server.api_key_file",
    "server.keys",
    "server.insecure",
}
"""Settings that a running daemon follows; the others take effect at the next start."""


@dataclass(frozen=True, slots=True)
class Changes:
    """Models by what is to be done: with their new entries, those removed with their old ones.

    The engine of a `reloaded` model must be restarted; that of an `adjusted` one keeps running, since only
    its scheduling rules changed. `settings` are other settings that changed, such as `server.port`.
    """

    added: tuple[ModelEntry, ...] = ()
    removed: tuple[ModelEntry, ...] = ()
    reloaded: tuple[ModelEntry, ...] = ()
    adjusted: tuple[ModelEntry, ...] = ()
    settings: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.reloaded or self.adjusted or self.settings)

    def sentences(self) -> Sequence[str]:
        """Describe each change in one line."""
        return (
            *(f"{model.name} is new" for model in self.added),
            *(f"{model.name} is removed" for model in self.removed),
            *(f"{model.name} changed: it is loaded again" for model in self.reloaded),
            *(f"{model.name} has new rules: it stays loaded" for model in self.adjusted),
            *(
                f"{setting} changed{'' if setting in _AT_ONCE else ': it takes effect at the next start'}"
                for setting in self.settings
            ),
        )


def diff(old: Configuration, new: Configuration) -> Changes:
    """Compare two configurations; models are matched by name."""
    before = {model.name: model for model in old.models}
    after = {model.name: model for model in new.models}
    kept = [(before[name], model) for name, model in after.items() if name in before]
    reloaded = tuple(new for old, new in kept if {*_differ(old, new)} - _RULES - _ORIGINS)
    return Changes(
        added=tuple(model for name, model in after.items() if name not in before),
        removed=tuple(model for name, model in before.items() if name not in after),
        reloaded=reloaded,
        adjusted=tuple(new for old, new in kept if _differ(old, new) and new not in reloaded),
        settings=tuple(_changed_settings(old, new)),
    )


def _differ(old: Any, new: Any) -> list[str]:
    """Name the fields in which two values of a dataclass differ."""
    return [field.name for field in fields(old) if getattr(old, field.name) != getattr(new, field.name)]


def _changed_settings(old: Configuration, new: Configuration) -> Iterator[str]:
    for section in ("server", "devices", "scheduling", "alerts", "advisor"):
        yield from (f"{section}.{name}" for name in _differ(getattr(old, section), getattr(new, section)))
    if old.nodes is not None and new.nodes is not None:
        keys = {each.name: each.key for each in settings_of(NodesSettings)}
        yield from (f"nodes.{keys[name]}" for name in _differ(old.nodes, new.nodes))
    elif old.nodes != new.nodes:
        yield "nodes"
    warm = ("warm_ram_bytes", "warm_kv_bytes", "warm_kv_dir")
    for name in (*warm, "models_dir", "groups", "services", "database", "ollama"):
        if getattr(old, name) != getattr(new, name):
            yield name
