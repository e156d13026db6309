"""Images, audio, video and files in requests: which there are, and from where an engine may fetch them.

An engine fetches what a URL names from where it runs: from hosts that only this machine reaches, and with
some servers from its disk. So only inline data is forwarded, unless the operator allows the host.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

from cotenant.domain.errors import BadRequest
from cotenant.domain.units import KIB

_FIELDS: Final = ("messages", "input", "system", "prompt", "query", "documents", "images", "image", "mask")
"""Fields of a request, in any dialect, in which parts may be."""
_MEDIA: Final = ("image_url", "video_url", "audio_url", "input_audio", "input_video")
_LINKS: Final = (*_MEDIA, "file_url", "image", "video", "audio")
_HOLDERS: Final = (*_LINKS, "file", "source")
"""Fields with a URL, or with an object that has one."""
_TYPES: Final = {
    **dict.fromkeys(("image", "input_image", "image_url"), "image"),
    **dict.fromkeys(("video", "input_video", "video_url"), "video"),
    **dict.fromkeys(("audio", "input_audio", "audio_url"), "audio"),
    **dict.fromkeys(("file", "input_file", "document"), "file"),
}
"""The modality of a part by its type, in any dialect."""
_HINTS: Final = (b"image", b"audio", b"video", b"file", b"_url", b"source", b"\\u")
"""A body with parts of interest has one of these, if only within an escape."""
_SCHEME: Final = 1024
_LARGE_BYTES: Final = 64 * KIB
"""A body over this length may hold a million numbers, which are not looked at one by one."""
_INLINE: Final = re.compile(r"data:|(?:/9j/|[A-Z0-9])[A-Z0-9+/=_-]{60}", re.IGNORECASE)
"""A `data:` URL, or base64 alone, which a path does not resemble for that long (`/9j/` begins a JPEG)."""
_HOST: Final = re.compile(r"https?://([a-z0-9.-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?(?=[/?#]|$)", re.IGNORECASE)
"""A URL whose host every parser reads alike: without a user, a backslash or an escape before its path."""


def check_media(request: Mapping[str, Any], body: bytes, hosts: Collection[str]) -> Collection[str]:
    """Return what a request has besides text: `image`, `audio`, `video`, `file`.

    Raises BadRequest if one is not inline.

    `hosts` are those from which engines may fetch; `*` stands for any.
    """
    if len(body) > _LARGE_BYTES and not any(hint in body for hint in _HINTS):
        return ()
    found: set[str] = set()
    for field in _FIELDS:
        value = request.get(field)
        for part in _parts(value) if isinstance(value, (dict, list)) else ():
            if (modality := _TYPES.get(str(part.get("type")))) is not None:
                found.add(modality)
            found.update(_TYPES[name] for name in _MEDIA if part.get(name))
            for url in _urls(part):
                _check_url(url, hosts)
    return found


def _parts(value: Any) -> Iterator[dict[str, Any]]:
    """Yield the objects in a list of parts, and within them: of messages, and of results of tools."""
    pending = [value]
    while pending:
        value = pending.pop()
        if isinstance(value, list):
            pending.extend(item for item in value if isinstance(item, (dict, list)))
        elif isinstance(value, dict):
            content = value.get("content")
            if isinstance(content, str) and "role" in value:
                continue  # most messages: a text alone
            yield value
            pending += content, value.get("output")


def _urls(part: Mapping[str, Any]) -> Iterator[str]:
    for name in _HOLDERS:
        link = part.get(name)
        if isinstance(link, dict):
            yield from (url for key in ("url", "file_url") if isinstance(url := link.get(key), str))
            data = link.get("data")
            if isinstance(data, str) and ":" in data[:_SCHEME]:  # base64 has no colon
                yield data
        elif isinstance(link, str) and name in _LINKS:
            yield link


def _check_url(url: str, hosts: Collection[str]) -> None:
    if _INLINE.match(url):
        return
    found = _HOST.match(url)
    host = found[1].lower() if found else None
    if host is None or (host not in hosts and "*" not in hosts):
        raise BadRequest(
            f"media at {host or url[:60]!r} are not fetched for clients",
            hint="Send a `data:` URL, or ask the operator to allow the host (server.media_hosts).",
        )
