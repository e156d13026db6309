"""Chooses the files of a repository that make up the requested model."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cotenant.domain.errors import NotOnHub
from cotenant.domain.hub import HubName, quant_of

_PART: Final = re.compile(r"-(?P<number>\d{5})-of-(?P<count>\d{5})$")
_PREFERRED_QUANTS: Final = ("Q4_K_M", "Q4_K_S", "Q4_0", "Q5_K_M", "IQ4_XS", "MXFP4", "Q6_K", "Q8_0")
"""The quantisation to take if none is requested: the first of these that exists."""
_PROJECTOR: Final = "mmproj"
_PROJECTOR_TYPES: Final = ("F16", "BF16", "Q8_0", "F32")
_MAX_LISTED: Final = 12


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository by its path there; the hub may not report its size and checksum."""

    path: str
    size_bytes: int | None = None
    sha256: str | None = None

    @property
    def name(self) -> str:
        """The path's last part."""
        return self.path.rpartition("/")[2]


def choose(name: HubName, files: Sequence[HubFile]) -> tuple[HubFile, ...]:
    """Return the files of a model in the order in which they may appear: the first part is last.

    They include a vision projector of the repository. Raises NotOnHub, which lists the available ones.
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
    match = _PART.search(parts[0].path.removesuffix(".gguf"))
    if match is not None and int(match["count"]) != len(parts):
        raise NotOnHub(
            f"{name.repository} has {len(parts)} of the {int(match['count'])} parts of {parts[-1].name}",
            hint="Ask for another quantisation.",
        )
    return (*sorted(projectors, key=_projector_rank)[:1], *parts)


def _wanted(name: HubName, models: Mapping[str, Sequence[HubFile]]) -> str:
    if name.quant is None:
        return next(
            (stem for quant in _PREFERRED_QUANTS for stem in sorted(models) if quant_of(stem) == quant),
            min(models),
        )
    wanted = name.quant.lower()
    matches = [
        stem
        for stem in sorted(models)
        if wanted in (stem.rpartition("/")[2].lower(), (quant_of(stem) or "").lower())
    ]
    if len(matches) == 1:
        return matches[0]
    stems = [stem.rpartition("/")[2] for stem in matches or sorted(models)]
    found = list(dict.fromkeys(stems if matches else (quant_of(stem) or stem for stem in stems)))
    more = f" and {len(found) - _MAX_LISTED} more" if len(found) > _MAX_LISTED else ""
    what = "has several models of" if matches else "has no"
    raise NotOnHub(
        f"{name.repository} {what} {name.quant}",
        hint=f"Write one of these after the colon: {', '.join(found[:_MAX_LISTED])}{more}.",
    )


def _projector_rank(file: HubFile) -> tuple[int, str]:
    quant = quant_of(file.path)
    rank = _PROJECTOR_TYPES.index(quant) if quant in _PROJECTOR_TYPES else len(_PROJECTOR_TYPES)
    return rank, file.path
