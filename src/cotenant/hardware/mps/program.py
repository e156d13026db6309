"""Finds the control program of MPS on a machine."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from cotenant.domain.errors import MpsMissing

PROGRAM: Final = "nvidia-cuda-mps-control"
VARIABLE: Final = "COTENANT_MPS_CONTROL"


def find_program(environ: Mapping[str, str]) -> Path | None:
    """Return the control program that COTENANT_MPS_CONTROL names, or the one on PATH; None without one."""
    found = shutil.which(environ.get(VARIABLE) or PROGRAM, path=environ.get("PATH"))
    return None if found is None else Path(found).absolute()


def no_program(environ: Mapping[str, str]) -> MpsMissing:
    """Return the error for a missing control program, with where it comes from."""
    given = environ.get(VARIABLE)
    return MpsMissing(
        f"{VARIABLE} names {given}, which cannot be run" if given else f"{PROGRAM} is not on the PATH",
        hint="It comes with NVIDIA's driver (in some distributions as nvidia-compute-utils); "
        f"{VARIABLE} can name it.",
    )
