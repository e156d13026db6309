"""Names for several models: their members, checked against what is served."""

from collections.abc import Collection, Iterator

from cotenant.config.configuration import ModelEntry
from cotenant.config.issues import nearest
from cotenant.config.schema import CheckedSettings
from cotenant.domain.requests import GroupUse, ModelGroup


def groups_of(checked: CheckedSettings, models: Collection[ModelEntry]) -> tuple[ModelGroup, ...]:
    """Return the groups of a configuration that serves these models, and report what is wrong with them."""
    return tuple(_groups(checked, models))


def _groups(checked: CheckedSettings, models: Collection[ModelEntry]) -> Iterator[ModelGroup]:
    own = {name: entry.name for entry in models for name in (entry.name, *entry.aliases)}
    taken = {name for entry in models for name in entry.names}
    for number, group in enumerate(checked.settings.groups):
        key = ("groups", number)
        if group.name in taken:
            checked.report(
                (*key, "name"), f"the name {group.name} is taken", "Give each model and group its own."
            )
        taken.add(group.name)
        for place, member in enumerate(group.members):
            # What an Ollama daemon has is known only when it answers.
            if member not in own and checked.settings.ollama is None:
                what = f"no model is named {member}"
                checked.report((*key, "members", place), what, nearest(member, own))
        members = tuple(dict.fromkeys(own.get(member, member) for member in group.members))
        yield ModelGroup(group.name, members, group.use or GroupUse.WARM, group.spill_over, group.rules)
