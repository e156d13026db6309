"""Which files of a repository make the model that was asked for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cotenant.domain.errors import NotOnHub
from cotenant.domain.hub import HubName, quant_of

_PART: Final = re.compile(r"-(?P<number>\d{5})-of-(?P<count>\d{5})$")
_USUAL: Final = ("Q4_K_M", "Q4_K_S", "Q4_0", "Q5_K_M", "IQ4_XS", "MXFP4", "Q6_K", "Q8_0")
"""Which quantisation is taken where none is asked for, the first that there is."""
_PROJECTOR: Final = "mmproj"
_PROJECTOR_TYPES: Final = ("F16", "BF16", "Q8_0", "F32")
_NAMED: Final = 12


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository by its path there; the hub may not tell its size and checksum."""

    path: str
    size_bytes: int | None = None
    sha256: str | None = None

    @property
    def name(self) -> str:
        """The path's last part."""
        return self.path.rpartition("/")[2]


def choose(name: HubName, files: Sequence[HubFile]) -> tuple[HubFile, ...]:
    """Return the files of a model in the order in which they may appear: its first part is the last.

    A vision projector of the repository goes with it. Raises NotOnHub, which says what there is.
    """
    ggufs = [file for file in files if file.path.endswith(".gguf") and "imatrix" not in file.name.lower()]
    projectors = [file for file in ggufs if _PROJECTOR in file.name.lower()]
    models: dict[str, list[HubFile]] = {}
    for file in ggufs:
        if file not in projectors:
            models.setdefault(_PART.sub("", file.path.removesuffix(".gguf")), []).append(file)
    if not models:
        raise NotOnHub(
            f"{name.repository} has no GGUF file", hint="Name a repository of GGUF files; many end in -GGUF."
        )
    parts = sorted(models[_wanted(name, models)], key=lambda file: file.path, reverse=True)
    _check_complete(name, parts)
    return (*_preferred(projectors), *parts)


def _wanted(name: HubName, models: Mapping[str, Sequence[HubFile]]) -> str:
    if name.quant is None:
        usual = (stem for quant in _USUAL for stem in sorted(models) if quant_of(stem) == quant)
        return next(usual, min(models))
    asked = name.quant.lower()
    matches = [stem for stem in sorted(models) if asked in (stem.rpartition("/")[2].lower(), _quant(stem))]
    if len(matches) == 1:
        return matches[0]
    stems = [stem.rpartition("/")[2] for stem in matches or sorted(models)]
    there = list(dict.fromkeys(stems if matches else (quant_of(stem) or stem for stem in stems)))
    more = f" and {len(there) - _NAMED} more" if len(there) > _NAMED else ""
    what = "has several models of" if matches else "has no"
    raise NotOnHub(
        f"{name.repository} {what} {name.quant}",
        hint=f"Write one of these after the colon: {', '.join(there[:_NAMED])}{more}.",
    )


def _quant(stem: str) -> str:
    return (quant_of(stem) or "").lower()


def _check_complete(name: HubName, parts: Sequence[HubFile]) -> None:
    match = _PART.search(parts[0].path.removesuffix(".gguf"))
    if match is not None and int(match["count"]) != len(parts):
        raise NotOnHub(
            f"{name.repository} has {len(parts)} of the {int(match['count'])} parts of {parts[-1].name}",
            hint="Ask for another quantisation.",
        )


def _preferred(projectors: Sequence[HubFile]) -> Sequence[HubFile]:
    def rank(file: HubFile) -> tuple[int, str]:
        quant = quant_of(file.path)
        known = quant in _PROJECTOR_TYPES
        return _PROJECTOR_TYPES.index(quant) if quant and known else len(_PROJECTOR_TYPES), file.path

    return sorted(projectors, key=rank)[:1]
