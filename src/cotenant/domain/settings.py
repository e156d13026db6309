"""How a field of a settings class is declared once, for the file, the environment, flags, forms and docs."""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final, get_args, get_type_hints

_KEY: Final = "setting"


@dataclass(frozen=True, slots=True)
class Setting:
    """The declaration of one setting.

    `key` is its name in `cotenant.yaml`, by default that of the field; `flag` is the name of its flag and its
    variable, with underscores (`n_ctx` is `--n-ctx` and COTENANT_N_CTX), by default the key, and None for
    a setting of the file alone. `text` says what it does, `help` says more on the command line. `reads` names
    how a value is read if the field's type does not say it (`config/fields.py`); `least` and `most` bound a
    whole number. `group` is the heading of its flag in `--help`, `metavar` its placeholder there.
    `shown` is its default in the documentation, if that is not the field's. `label` is its name in the
    console's form, which leaves out settings without one. `every_engine` says that every kind of engine
    accepts a recipe's setting; the others are for llama.cpp and the kinds whose traits name them.
    """

    name: str
    type: Any
    default: Any
    text: str
    key: str = ""
    flag: str | None = ""
    help: str = ""
    reads: str = ""
    least: int = 0
    most: int = 1 << 31
    group: str = ""
    metavar: str = "N"
    shown: str = ""
    label: str = ""
    every_engine: bool = False

    @property
    def option(self) -> str:
        """The flag as it is typed."""
        return f"--{(self.flag or self.key).replace('_', '-')}"


def setting(default: Any, text: str, *, secret: bool = False, **declared: Any) -> Any:
    """Declare a dataclass field that users set; `declared` are fields of Setting.

    A `secret` one is left out of the dataclass's repr.
    """
    found = Setting(name="", type=None, default=default, text=text, **declared)
    return field(default=default, repr=not secret, metadata={_KEY: found})


def settings_of(owner: type) -> Iterator[Setting]:
    """Yield the settings that a dataclass declares, in its order."""
    hints = get_type_hints(owner)
    for each in fields(owner):
        if (found := each.metadata.get(_KEY)) is not None:
            key = found.key or each.name
            yield replace(
                found,
                name=each.name,
                type=_without_none(hints[each.name]),
                key=key,
                flag=key if found.flag == "" else found.flag,
                help=found.help or found.text,
            )


def setting_of(owner: type, name: str) -> Setting:
    """Return one setting of a dataclass, by its field's name. Raises LookupError."""
    for each in settings_of(owner):
        if each.name == name:
            return each
    raise LookupError(f"{owner.__name__} declares no setting {name}")


def _without_none(hint: Any) -> Any:
    inner = [each for each in get_args(hint) if each is not type(None)]
    return inner[0] if len(inner) == 1 and len(get_args(hint)) == 2 else hint
