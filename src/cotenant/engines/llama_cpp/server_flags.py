"""LlamaArguments as the command line of a llama-server, whose flags differ between builds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from cotenant.domain.errors import EngineMissing
from cotenant.domain.models import FlashAttention, SplitMode
from cotenant.engines.llama_cpp.arguments import LlamaArguments

# A line that starts at the margin with a dash introduces an option; longer explanations are indented.
_OPTION_LINE: Final = re.compile(r"^(-[^\n]*)$", re.MULTILINE)
_FLAG: Final = re.compile(r"--?[A-Za-z][A-Za-z0-9-]*")
_NAMES: Final = re.compile(r"((?:--?[A-Za-z][A-Za-z0-9-]*,?\s+)*--?[A-Za-z][A-Za-z0-9-]*)(?: (\S+))?")


@dataclass(frozen=True, slots=True)
class ServerFlags:
    """The options that one binary knows. `valued` are those that take a value."""

    known: frozenset[str]
    valued: frozenset[str]
    names_log_levels: bool

    @classmethod
    def parse(cls, help_text: str) -> ServerFlags:
        """Read the output of `--help`."""
        known: set[str] = set()
        valued: set[str] = set()
        for line in _OPTION_LINE.findall(help_text):
            match = _NAMES.match(line)
            if match is None:
                continue
            names = _FLAG.findall(match[1])
            known.update(names)
            if match[2]:
                valued.update(names)
        return cls(frozenset(known), frozenset(valued), names_log_levels="4: trace" in help_text)

    def first(self, *names: str) -> str | None:
        """Return the first of `names` that the binary knows."""
        return next((name for name in names if name in self.known), None)


def server_argv(arguments: LlamaArguments, flags: ServerFlags) -> list[str]:
    """Render for one binary, without the program itself.

    An option that the binary does not know is written in an older form, or left out if its default is the
    same. Raises EngineMissing if an option that matters is unknown.
    """
    return [
        *(
            word
            for names, value in (
                (("--model", "-m"), arguments.model_path),
                (("--alias", "-a"), arguments.alias),
                (("--host",), arguments.host),
                (("--port",), arguments.port),
                (("--ctx-size", "-c"), arguments.n_ctx),
                (("--parallel", "-np"), arguments.parallel),
                (("--batch-size", "-b"), arguments.n_batch),
                (("--ubatch-size", "-ub"), arguments.n_ubatch),
                (("--threads", "-t"), arguments.threads),
                (("--threads-http",), arguments.threads_http),
                (("--cache-type-k", "-ctk"), arguments.cache_type_k),
                (("--cache-type-v", "-ctv"), arguments.cache_type_v),
            )
            for word in _required(flags, names, value)
        ),
        *_flash_attention(arguments, flags),
        *_layers(arguments, flags),
        *_memory(arguments, flags),
        *_switches(arguments, flags),
        *arguments.extra,
    ]


def _required(flags: ServerFlags, names: tuple[str, ...], *values: object) -> Iterator[str]:
    """Yield an option. Raises EngineMissing if the binary does not have it."""
    if flags.first(*names) is None:
        raise _unknown_flag(names[0])
    yield from _optional(flags, names, *values)


def _optional(flags: ServerFlags, names: tuple[str, ...], *values: object) -> Iterator[str]:
    """Yield an option; nothing if the binary does not have it."""
    name = flags.first(*names)
    if name is not None:
        yield from (name, *map(str, values))


def _flash_attention(arguments: LlamaArguments, flags: ServerFlags) -> Iterator[str]:
    name = flags.first("--flash-attn", "-fa")
    if name is not None and name in flags.valued:
        yield from (name, arguments.flash_attention)
    elif arguments.flash_attention is FlashAttention.ON:
        # In older builds it has no value and is off by default.
        yield from _required(flags, ("--flash-attn", "-fa"))


def _layers(arguments: LlamaArguments, flags: ServerFlags) -> Iterator[str]:
    if not arguments.use_gpu:
        # No device at all, not just no layers: with devices, large batches are still computed on the first.
        yield from _required(flags, ("--n-gpu-layers", "--gpu-layers", "-ngl"), 0)
        yield from _optional(flags, ("--split-mode", "-sm"), SplitMode.NONE)
        yield from _optional(flags, ("--main-gpu", "-mg"), -1)
    else:
        yield from _required(flags, ("--split-mode", "-sm"), arguments.split_mode)
        if arguments.n_gpu_layers is not None:
            yield from _required(flags, ("--n-gpu-layers", "--gpu-layers", "-ngl"), arguments.n_gpu_layers)
        if arguments.tensor_split:
            split = ",".join(map(str, arguments.tensor_split))
            yield from _required(flags, ("--tensor-split", "-ts"), split)
    if arguments.fit:
        yield from _required(flags, ("--fit", "-fit"), "on")
        if arguments.fit_margins_mib:
            margins = ",".join(map(str, arguments.fit_margins_mib))
            yield from _required(flags, ("--fit-target", "-fitt"), margins)
    else:
        yield from _optional(flags, ("--fit", "-fit"), "off")


def _memory(arguments: LlamaArguments, flags: ServerFlags) -> Iterator[str]:
    if name := flags.first("--kv-unified" if arguments.kv_unified else "--no-kv-unified"):
        yield name
    elif arguments.kv_unified:
        raise _unknown_flag("--kv-unified")
    if not arguments.repack:
        yield from _optional(flags, ("--no-repack", "-nr"))
    if name := flags.first("--load-mode", "-lm"):
        mode = {
            (True, False): None,  # The engine's default: mapped, unless a device does not support it.
            (True, True): "mmap+mlock",
            (False, True): "mlock",
            (False, False): "none",
        }[arguments.mmap, arguments.mlock]
        yield from () if mode is None else (name, mode)
    else:
        if not arguments.mmap:
            yield from _required(flags, ("--no-mmap",))
        if arguments.mlock:
            yield from _required(flags, ("--mlock",))
    yield from _optional(flags, ("--cache-ram", "-cram"), arguments.prompt_cache_mib)
    if arguments.projector_path is not None:
        yield from _required(flags, ("--mmproj", "-mm"), arguments.projector_path)


def _switches(arguments: LlamaArguments, flags: ServerFlags) -> Iterator[str]:
    if arguments.embedding:
        yield from _required(flags, ("--embedding", "--embeddings"))
    if arguments.rerank:
        yield from _required(flags, ("--rerank", "--reranking"))
    yield from _optional(flags, ("--reuse-port",))
    yield from _optional(flags, ("--metrics",))
    yield from _optional(flags, ("--slots",))
    yield from _optional(flags, ("--no-ui", "--no-webui"))
    yield from _optional(flags, ("--cors-origins",), "localhost")
    if flags.names_log_levels:
        yield from _required(flags, ("--verbosity", "-lv", "--log-verbosity"), arguments.verbosity)


def _unknown_flag(flag: str) -> EngineMissing:
    return EngineMissing(
        f"this llama-server does not know {flag}",
        hint="Use a newer llama-server, or none: the embedded engine knows every setting.",
    )
