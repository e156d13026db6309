"""How a field of a settings class is declared once, for the file, the environment, flags, forms and docs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any, Final, get_args, get_type_hints

_KEY: Final = "setting"


@dataclass(frozen=True, slots=True)
class Setting:
    """What is declared of one setting.

    `key` is its name in `cotenant.yaml`; `flag` is that of its flag and of its variable, with underscores
    (`n_ctx` is `--n-ctx` and COTENANT_N_CTX), None for a setting of the file alone. `text` says what it does,
    `help` does so at greater length on the command line. `reads` names how a value is read where the field's
    type does not say (`config/fields.py`), `least` and `most` bound a whole number. `group` is the heading of
    its flag in `--help`, `metavar` the placeholder of its value there. `shown` is its default in the
    documentation, where it is not simply the field's. `label` is its name in the console's form, which has no
    field for a setting without one. `every_engine` says of a recipe's setting that every kind of engine takes
    it; the others are taken by llama.cpp and by the kinds whose traits name them.
    """

    name: str
    type: Any
    default: Any
    key: str
    flag: str | None
    text: str
    help: str
    reads: str
    least: int
    most: int
    group: str
    metavar: str
    shown: str
    label: str
    every_engine: bool

    @property
    def option(self) -> str:
        """The flag as it is typed."""
        return f"--{(self.flag or self.key).replace('_', '-')}"


def setting(
    default: Any,
    text: str,
    *,
    key: str = "",
    flag: str | None = "",
    help: str = "",  # noqa: A002
    reads: str = "",
    least: int = 0,
    most: int = 1 << 31,
    group: str = "",
    metavar: str = "N",
    shown: str = "",
    label: str = "",
    every_engine: bool = False,
    secret: bool = False,
) -> Any:
    """Declare a dataclass field that users set; see Setting. Names that are left empty are the field's own.

    A `secret` one is left out of the dataclass's repr.
    """
    declared = {
        "key": key,
        "flag": flag,
        "text": text,
        "help": help or text,
        "reads": reads,
        "least": least,
        "most": most,
        "group": group,
        "metavar": metavar,
        "shown": shown,
        "label": label,
        "every_engine": every_engine,
    }
    return field(default=default, repr=not secret, metadata={_KEY: declared})


def settings_of(owner: type) -> Iterator[Setting]:
    """Yield the settings that a dataclass declares, in its order."""
    hints = get_type_hints(owner)
    for each in fields(owner):
        if _KEY in each.metadata:
            declared = dict(each.metadata[_KEY])
            declared["key"] = declared["key"] or each.name
            if declared["flag"] == "":
                declared["flag"] = declared["key"]
            yield Setting(
                name=each.name, type=_without_none(hints[each.name]), default=each.default, **declared
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
