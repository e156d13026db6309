"""Cuts from an engine's words what is for operators: paths of this machine, and what others asked."""

import re
from typing import Final

_FOLDERS: Final = re.compile(r"(?<![\w.:/~])~?/(?!v\d+/|api/)(?:[^\s/'\"`,;()|]{1,255}/)+(?=[^\s/'\"`,;()|])")
_ASKED: Final = re.compile(
    r"(\b(?:prompt\w{0,20}|messages|content)['\"]?\s{0,3}[:=]\s{0,3})"
    r"(?:'[^'\n]{0,2000}'|\"[^\"\n]{0,2000}\"|\[[^\]\n]{0,2000}\]|[^|)\n]{1,2000})",
    re.IGNORECASE,
)


def for_clients(text: str) -> str:
    """Return an error's text with file names in place of paths, and without prompts.

    The engine's log and the decisions have the whole.
    """
    return _FOLDERS.sub("…/", _ASKED.sub(r"\1…", text))
