"""What `server.keys` holds: keys, their hashes and names, and the instants at which they expire."""

import re
from datetime import UTC, datetime
from typing import Any, Final

from cotenant.config import scalars
from cotenant.config.issues import shown
from cotenant.config.scalars import scalar
from cotenant.domain.errors import BadSetting
from cotenant.domain.keys import check_name, key_digest

_HASHED: Final = "sha256:"
_DIGEST: Final = re.compile(r"[0-9a-fA-F]{64}")


@scalar(type="string")
def key_or_hash(value: Any) -> bytes:
    """A key, or `sha256:` and its digest in hex; returns the digest."""
    text = scalars.text.read(value)
    if not text.startswith(_HASHED):
        return key_digest(scalars.api_key.read(text))
    digest = text.removeprefix(_HASHED)
    if not _DIGEST.fullmatch(digest):
        raise BadSetting("its hash has not 64 hex digits", hint="Write `sha256:` and those of the key.")
    return bytes.fromhex(digest)


@scalar(type="string")
def key_name(value: Any) -> str:
    """The name of a key."""
    return check_name(scalars.text.read(value))


@scalar(type="string")
def instant(value: Any) -> float:
    """A day (its beginning) or an instant in ISO 8601, in UTC unless it says otherwise, as Unix seconds."""
    try:
        at = datetime.fromisoformat(str(value))
    except ValueError:
        hint = "Write 2030-12-31 or 2030-12-31T18:00Z."
        raise BadSetting(f"{shown(value)} is not an instant", hint=hint) from None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
