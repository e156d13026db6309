"""GGUF models in several files: `name-00001-of-00003.gguf`, as llama.cpp's gguf-split writes them."""

import re
from collections.abc import Sequence
from typing import Final

from cotenant.analysis.gguf import GgufHeader
from cotenant.domain.errors import CorruptModelFile, SplitPartMissing

_PART_NAME: Final = re.compile(r"(?P<prefix>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)
_MOST_PARTS: Final = 1000


def part_of(header: GgufHeader) -> tuple[int, int]:
    """Return the number of this file, from 1, and of all files of its model: (1, 1) if it is not split.

    A file that does not say is what its name says. Raises CorruptModelFile for numbers that no model has.
    """
    count = _number(header, "split.count", default=1)
    if count in (0, 1):
        match = _PART_NAME.fullmatch(header.source_name)
        named = int(match["count"]) if match else 1
        return (int(match["number"]), named) if match and 1 < named <= _MOST_PARTS else (1, 1)
    number = _number(header, "split.no")
    if not (1 < count <= _MOST_PARTS and 0 <= number < count):
        raise CorruptModelFile(
            f"{header.source_name} says that it is part {number + 1} of {count}",
            hint=f"A model has at most {_MOST_PARTS} parts: fetch the file again.",
        )
    return number + 1, count


def part_names(first_name: str, header: GgufHeader) -> tuple[str, ...]:
    """Return the file names of all parts, including the given first one; only that one if it is not split.

    Raises SplitPartMissing if a later part was given, CorruptModelFile if name and header disagree.
    """
    number, count = part_of(header)
    if count == 1:
        return (first_name,)
    match = _PART_NAME.fullmatch(first_name)
    if number != 1:
        first = f"{match['prefix']}-00001-of-{count:05}.gguf" if match else "the first part"
        raise SplitPartMissing(
            f"{first_name} is part {number} of {count} and needs {first}", hint="Give the first part."
        )
    if match is None or int(match["number"]) != 1 or int(match["count"]) != count:
        raise CorruptModelFile(
            f"{first_name} holds part 1 of {count}, but its name does not say so",
            hint=f"Name the parts NAME-00001-of-{count:05}.gguf and so on, as they were published.",
        )
    return tuple(f"{match['prefix']}-{n:05}-of-{count:05}.gguf" for n in range(1, count + 1))


def join_parts(parts: Sequence[GgufHeader]) -> GgufHeader:
    """Join the headers of all parts, in order: the metadata of the first, the tensors of all.

    Raises CorruptModelFile if they do not belong together.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    _number(first, "split.count")  # Without it, engines load the first part only.
    names: dict[str, str] = {}
    for index, part in enumerate(parts):
        if part_of(part) != (index + 1, len(parts)):
            raise CorruptModelFile(
                f"{part.source_name} does not hold part {index + 1} of {len(parts)}",
                hint="The parts come from different models: fetch them again.",
            )
        for tensor in part.tensors:
            if tensor.name in names:
                raise CorruptModelFile(
                    f"{names[tensor.name]} and {part.source_name} both hold the tensor {tensor.name}",
                    hint="The parts come from different models: fetch them again.",
                )
            names[tensor.name] = part.source_name
    promised = _number(first, "split.tensors.count", default=len(names))
    if promised != len(names):
        raise CorruptModelFile(
            f"{first.source_name} promises {promised} tensors, its {len(parts)} parts hold {len(names)}",
            hint="The parts come from different models: fetch them again.",
        )
    return GgufHeader(
        first.source_name,
        first.version,
        first.metadata,
        tuple(tensor for part in parts for tensor in part.tensors),
        sum(part.file_bytes for part in parts),
    )


def _number(header: GgufHeader, key: str, default: int | None = None) -> int:
    value = header.metadata.get(key, default)
    if not isinstance(value, int):
        raise CorruptModelFile(
            f"{header.source_name} is part of a split model, but does not say which ({key})",
            hint="Fetch the file again, or merge the parts with llama.cpp's gguf-split.",
        )
    return value
