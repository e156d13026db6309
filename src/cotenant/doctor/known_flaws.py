"""Known flaws of the engines that are found, by their versions."""

import asyncio
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from cotenant.doctor.findings import Observation, ok, warning
from cotenant.doctor.host_context import HostContext
from cotenant.domain.engine_kinds import EngineKind
from cotenant.domain.errors import EngineMissing
from cotenant.engines.llama_cpp.builds import discover
from cotenant.engines.ollama.client import OllamaClient
from cotenant.engines.vllm.release import installed_release

Version = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Flaw:
    """A flaw of an engine from version `first` on, until `fixed`. `id` names its public record, the source.

    Versions of llama.cpp are build numbers.
    """

    engine: EngineKind
    first: Version
    fixed: Version
    id: str
    what: str


# Only what an update removes, and no release that is refused anyway (vLLM's older than 0.10.2).
FLAWS: Final = (
    Flaw(EngineKind.LLAMA_CPP, (0,), (8146,), "CVE-2026-27940", "a model file can overflow its memory"),
    # Merged on 23 April 2026; b8940 is the first release that is known to have it.
    Flaw(EngineKind.LLAMA_CPP, (0,), (8940,), "CVE-2026-21869", "a request can write beyond its memory"),
    Flaw(EngineKind.VLLM, (0, 10, 2), (0, 11, 1), "CVE-2025-62164", "a request can write beyond its memory"),
    Flaw(EngineKind.VLLM, (0, 6, 4), (0, 12, 0), "CVE-2026-22773", "an image can stop it"),
    Flaw(EngineKind.VLLM, (0, 10, 1), (0, 14, 0), "CVE-2026-22807", "a model's folder can run its own code"),
    Flaw(EngineKind.VLLM, (0, 8, 3), (0, 14, 1), "CVE-2026-22778", "images and videos can run code"),
    Flaw(EngineKind.VLLM, (0,), (0, 20, 0), "CVE-2026-44222", "a prompt can stop it"),
    Flaw(EngineKind.VLLM, (0, 3, 0), (0, 22, 0), "CVE-2026-48746", "it can be used without its key"),
    Flaw(EngineKind.OLLAMA, (0,), (0, 1, 29), "CVE-2024-28224", "a web page can give it orders"),
    Flaw(EngineKind.OLLAMA, (0,), (0, 1, 34), "CVE-2024-37032", "a model hub can write any file"),
    Flaw(EngineKind.OLLAMA, (0,), (0, 1, 47), "CVE-2024-45436", "an archive can write any file"),
    Flaw(EngineKind.OLLAMA, (0,), (0, 17, 1), "CVE-2026-7482", "a model file can read its memory"),
)

_RELEASE: Final = re.compile(r"(?:^|[-_/])v?(\d+)\.(\d+)\.(\d+)(?!\S*dev)")
"""Also in the name of an image."""
_BUILD: Final = re.compile(r"(?:^b?|^\d{4}\.\d+\.|build )(\d{4,})(?![\d.])")
"""As `llama-server --version` has it, and xllamacpp: YEAR.MONTH.BUILD."""
_PATTERNS: Final[Mapping[EngineKind, re.Pattern[str]]] = {EngineKind.LLAMA_CPP: _BUILD}


def known_flaws(host: HostContext) -> Iterator[Observation]:
    """Check the engines' versions for known flaws; a version that is not recognised has none."""
    for engine, name, text in dict.fromkeys(_found(host)):
        match = _PATTERNS.get(engine, _RELEASE).search(text)
        if match is None:
            continue
        version = tuple(map(int, match.groups()))
        flaws = [flaw for flaw in FLAWS if flaw.engine is engine and flaw.first <= version < flaw.fixed]
        if flaws:
            newest = ".".join(map(str, max(flaw.fixed for flaw in flaws)))
            yield warning(
                f"{name} {text} has known flaws: {', '.join(flaw.id for flaw in flaws)}",
                "; ".join(f"{flaw.id}: {flaw.what}" for flaw in flaws) + ".",
                f"Update it: {newest} or newer has none of them.",
            )
        else:
            yield ok(f"{name} {text} has no flaw that is known here")


def _found(host: HostContext) -> Iterator[tuple[EngineKind, str, str]]:
    """Yield the kind, name and version of each engine that this machine has or uses."""
    try:
        builds = discover(host.llama_server).all
    except EngineMissing:
        builds = ()
    yield from ((build.kind, build.form, build.version) for build in builds if build.problem is None)
    settings = host.settings
    addresses = [settings.ollama.address] if settings.ollama else []
    for model in settings.models:
        if model.recipe.engine is EngineKind.OLLAMA and model.options.address is not None:
            addresses.append(model.options.address)
        elif model.recipe.engine is EngineKind.VLLM:
            image = model.launch.image
            tag = image.rpartition(":")[2] if image else installed_release(model.options.command)
            yield EngineKind.VLLM, "vLLM", tag or "unknown"
    for address in dict.fromkeys(addresses):
        version = asyncio.run(OllamaClient(address).version())
        yield EngineKind.OLLAMA, f"Ollama at {address.authority}", version or "unknown"
