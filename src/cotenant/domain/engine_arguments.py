"""Arguments and variables of engines that only Cotenant may set: others would open the engine."""

from collections.abc import Iterable, Mapping
from typing import Final

from cotenant.domain.engine_kinds import EngineKind

_SERVER: Final = ("--host", "--port", "--api-key", "--api-key-file", "--ssl-", "--root-path")
RESERVED_ARGUMENTS: Final[Mapping[EngineKind, tuple[str, ...]]] = {
    EngineKind.LLAMA_CPP: (
        *_SERVER,
        "--api-prefix",
        "--cors-",
        "--media-path",
        "--models-dir",
        "--models-preset",
        "--path",
        "--props",
        "--public-path",
        "--reuse-port",
        "--slot-save-path",
        "--tools",
        "--ui-mcp-proxy",
        "--webui-mcp-proxy",
    ),
    EngineKind.VLLM: (
        *_SERVER,
        "--allow-credentials",
        "--allowed-",
        "--config",
        "--enable-ssl-refresh",
        "--fd",
        "--middleware",
        "--uds",
    ),
}
"""Whole names, and beginnings of names that end with a dash, for kinds whose command line is ours."""

_RESERVED_VARIABLES: Final = ("LLAMA_API_KEY", "VLLM_API_KEY", "VLLM_SERVER_DEV_MODE", "COTENANT_ENGINE")
_SHORTEST: Final = 4
"""vLLM takes a beginning of a name for the whole; a shorter one is not unique."""


def reserved_word(kind: EngineKind, args: Iterable[str], env: Iterable[str]) -> str | None:
    """Return the first argument, or variable, that only Cotenant may set; None if there is none."""
    reserved = RESERVED_ARGUMENTS.get(kind, ())
    for word in args:
        name = word.partition("=")[0].replace("_", "-")
        if name.startswith("--") and any(_means(name, each) for each in reserved):
            return word.partition("=")[0]
    for variable in env if reserved else ():
        # llama-server reads each of its arguments from a variable, too.
        name = f"--{variable.removeprefix('LLAMA_ARG_').lower().replace('_', '-')}"
        of_argument = variable.startswith("LLAMA_ARG_") and any(_means(name, each) for each in reserved)
        if variable in _RESERVED_VARIABLES or of_argument or variable == "LLAMA_ARG_STATIC_PATH":
            return variable
    return None


def _means(name: str, reserved: str) -> bool:
    if reserved.endswith("-"):
        return name.startswith(reserved)
    return name == reserved or (len(name) > _SHORTEST and reserved.startswith(name))
