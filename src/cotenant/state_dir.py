"""Where logs and state live."""

import os
from pathlib import Path


def state_dir() -> Path:
    """Return where logs and state live: `$COTENANT_STATE_DIR`, else the user's XDG state directory."""
    given = os.environ.get("COTENANT_STATE_DIR")
    if given:
        return Path(given).expanduser()
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "cotenant"


def default_database() -> str:
    """Return the path of the database if none is configured."""
    return str(state_dir() / "cotenant.db")
