"""API keys that `cotenant keys` made: a file in the state directory, with their hashes."""

import dataclasses
import fcntl
import json
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cotenant.atomic_files import staged, sync_folder
from cotenant.domain.errors import BadSetting
from cotenant.domain.keys import ApiKey, KeyScope, check_keys, check_name, key_digest

NAME: Final = "keys.json"
_OWN_ONLY: Final = 0o600
_PREFIX: Final = "sk-cotenant-"
_RANDOM_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class KeyFile:
    """The keys in a file; none if there is no file. Daemons of the same state directory accept them."""

    path: Path

    def read(self) -> tuple[ApiKey, ...]:
        """Return the keys. Raises BadSetting for a file that cannot be read: then no key can be told."""
        try:
            return tuple(_key(each) for each in json.loads(self.path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return ()
        except OSError as error:
            why = error.strerror or str(error)
        except (ValueError, TypeError, KeyError, AttributeError):
            why = "it is not what `cotenant keys` writes"
        raise BadSetting(
            f"{self.path} cannot be read: {why}", hint="Restore it, or delete it to have no keys."
        )

    def change(self, change: Callable[[Sequence[ApiKey]], Sequence[ApiKey]]) -> None:
        """Replace the keys by what `change` makes of them, one process at a time. Raises BadSetting."""
        folder = self.path.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with open(self.path.with_suffix(".lock"), "ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                rows = [_row(key) for key in change(self.read())]
                replacement = staged(self.path, json.dumps(rows, indent=1).encode(), _OWN_ONLY)
                if os.geteuid() == 0:
                    # Root makes keys for the daemon's account, which has to read them.
                    owner = folder.stat()
                    os.chown(replacement, owner.st_uid, owner.st_gid)
                replacement.replace(self.path)
                sync_folder(folder)
        except OSError as error:
            what = f"{self.path} cannot be written: {error.strerror or error}"
            raise BadSetting(what, hint="Run it as the daemon's account, or as root.") from None

    def add(self, key: ApiKey) -> None:
        """Add a key. Raises BadSetting, also for one that cannot be told from another."""

        def added(keys: Sequence[ApiKey]) -> Sequence[ApiKey]:
            check_keys([*keys, key])
            return [*keys, key]

        self.change(added)

    def revoke(self, name: str, *, others: bool = False) -> None:
        """Remove a key. Raises BadSetting if it is not in the file.

        So it does for the last one, unless the daemon has `others`, of its configuration.
        """

        def left(keys: Sequence[ApiKey]) -> Sequence[ApiKey]:
            found = [key for key in keys if key.name != name]
            if len(found) == len(keys):
                hint = "See `cotenant keys list`; those of the configuration are revoked there."
                raise BadSetting(f"there is no key {name!r} in {self.path}", hint=hint)
            if not found and not others:
                # A daemon on a public address would go on with it, and one on loopback need no key at all.
                hint = f"Add another one first, or delete {self.path} for a daemon that needs no key."
                raise BadSetting(f"{name!r} is the last key", hint=hint)
            return found

        self.change(left)


def new_key(name: str, rights: Mapping[str, Any]) -> tuple[str, ApiKey]:
    """Make a key: its text, which is random, and what is stored. Raises BadSetting for its name."""
    text = _PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
    return text, ApiKey(check_name(name), key_digest(text), **rights)


def _row(key: ApiKey) -> dict[str, Any]:
    return {**dataclasses.asdict(key), "digest": key.digest.hex()}


def _key(row: Any) -> ApiKey:
    values = {**row, "digest": bytes.fromhex(row["digest"]), "scope": KeyScope(row["scope"])}
    return ApiKey(**{**values, "models": tuple(row["models"])})
