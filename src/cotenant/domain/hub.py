"""Models of a hub: their names, and the progress of a pull."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from cotenant.domain.errors import BadHubName

HOSTS: Final = ("hf.co/", "huggingface.co/")
SHORT_HOST: Final = HOSTS[0]
_PART: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_NAME: Final = re.compile(
    rf"(?P<org>{_PART})/(?P<repo>{_PART})(?::(?P<tag>[A-Za-z0-9][A-Za-z0-9._-]{{0,127}}))?"
)
_SEPARATOR: Final = "--"
_SPLIT: Final = re.compile(r"-\d{5}-of-\d{5}$")
_QUANT: Final = re.compile(
    r"(?:UD-)?(?:I?Q\d[A-Za-z0-9_]*|MXFP4[A-Za-z0-9_]*|BF16|F16|F32|TQ\d_\d)$", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class HubName:
    """A model of a hub: `hf.co/ORG/REPO`, and after a colon the quantisation, None for the default."""

    org: str
    repo: str
    quant: str | None = None

    @classmethod
    def parse(cls, text: str) -> HubName:
        """Read `[https://]hf.co/ORG/REPO[:QUANT]`. Raises BadHubName."""
        bare = text.strip().removeprefix("https://")
        host = next((host for host in HOSTS if bare.startswith(host)), None)
        match = None if host is None else _NAME.fullmatch(bare.removeprefix(host))
        if match is None or ".." in bare:
            raise BadHubName(
                f"{text[:120]!r} names no model that can be pulled",
                hint="Write hf.co/ORG/REPO:QUANT, as hf.co/Qwen/Qwen2.5-0.5B-Instruct-GGUF:Q4_K_M.",
            )
        tag = match["tag"]
        return cls(match["org"], match["repo"], None if tag in (None, "latest") else tag)

    def __str__(self) -> str:
        return f"{SHORT_HOST}{self.repository}" + (f":{self.quant}" if self.quant else "")

    @property
    def repository(self) -> str:
        """The name of the repository on its hub."""
        return f"{self.org}/{self.repo}"

    @property
    def folder(self) -> str:
        """The folder of `models_dir` that its files go to."""
        return f"{self.org}{_SEPARATOR}{self.repo}"


def hub_name(folder: str, file: str) -> HubName | None:
    """Return the hub name of a file, from its folder's name and its own; None if it was not pulled."""
    org, separator, repo = folder.partition(_SEPARATOR)
    if not (separator and org and repo):
        return None
    return HubName(org, repo, quant_of(file))


def quant_of(file: str) -> str | None:
    """Return the quantisation that a file's name ends with, as `Q4_K_M`; None if it names none."""
    stem = _SPLIT.sub("", file.rpartition("/")[2].removesuffix(".gguf"))
    match = _QUANT.search(stem)
    if match is None or (match.start() > 0 and stem[match.start() - 1] not in "-._"):
        return None
    return match[0].upper()


@dataclass(frozen=True, slots=True)
class PullStep:
    """The progress of a pull: the current step, and the received bytes of one file of `total_bytes`.

    The last step has the paths of the model's `files`.
    """

    what: str
    file: str | None = None
    sha256: str | None = None
    total_bytes: int | None = None
    completed_bytes: int = 0
    files: tuple[str, ...] = ()
