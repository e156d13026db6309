"""LlamaArguments as the command line of a llama-server, whose flags differ between builds."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from cotenant.analysis.footprint import DRAFTED_TOKENS
from cotenant.domain.errors import EngineMissing
from cotenant.domain.models import FlashAttention, SplitMode
from cotenant.engines.llama_cpp.arguments import ALL_DRAFT_LAYERS, LlamaArguments

SLOT_FOLDER: Final = "--slot-save-path"
_FLAG: Final = re.compile(r"--?[A-Za-z][A-Za-z0-9-]*")
# A line that starts at the margin with a dash introduces an option; longer explanations are indented.
_OPTION: Final = re.compile(rf"^((?:{_FLAG.pattern},?[^\S\n]+)*{_FLAG.pattern})(?: (\S+))?", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class ServerFlags:
    """The options that one binary knows. `valued` are those that take a value.

    With `lists_scales`, files and their scales are one value, `FILE:SCALE,…`; otherwise each file is an
    option with two values.
    """

    known: frozenset[str]
    valued: frozenset[str]
    names_log_levels: bool
    lists_scales: bool = False

    @classmethod
    def parse(cls, help_text: str) -> ServerFlags:
        """Read the output of `--help`."""
        options = [(_FLAG.findall(names), value) for names, value in _OPTION.findall(help_text)]
        return cls(
            known=frozenset(name for names, _ in options for name in names),
            valued=frozenset(name for names, value in options if value for name in names),
            names_log_levels="4: trace" in help_text,
            lists_scales="FNAME:SCALE" in help_text,
        )

    def first(self, *names: str) -> str | None:
        """Return the first of `names` that the binary knows."""
        return next((name for name in names if name in self.known), None)

    def optional(self, names: tuple[str, ...], *values: object) -> Sequence[str]:
        """Return an option by the first of its `names` that the binary knows; nothing if it knows none."""
        name = self.first(*names)
        return () if name is None else (name, *map(str, values))

    def required(self, names: tuple[str, ...], *values: object) -> Sequence[str]:
        """Return an option. Raises EngineMissing if the binary does not have it."""
        if not (words := self.optional(names, *values)):
            raise EngineMissing(
                f"this llama-server does not know {names[0]}",
                hint="Use a newer llama-server, or none: the embedded engine knows every setting.",
            )
        return words


def server_argv(arguments: LlamaArguments, flags: ServerFlags) -> list[str]:
    """Render for one binary, without the program itself.

    An option that the binary does not know is written in an older form, or left out if its default is the
    same. Raises EngineMissing if an option that matters is unknown.
    """
    recipe = arguments.recipe
    always: tuple[tuple[tuple[str, ...], object], ...] = (
        (("--model", "-m"), arguments.model_path),
        (("--alias", "-a"), arguments.alias),
        (("--host",), arguments.host),
        (("--port",), arguments.port),
        (("--ctx-size", "-c"), recipe.n_ctx),
        (("--parallel", "-np"), recipe.parallel),
        (("--batch-size", "-b"), recipe.n_batch),
        (("--ubatch-size", "-ub"), recipe.n_ubatch),
        (("--threads", "-t"), arguments.threads),
        (("--threads-http",), arguments.threads_http),
        (("--cache-type-k", "-ctk"), recipe.cache_type_k),
        (("--cache-type-v", "-ctv"), recipe.cache_type_v),
    )
    return [
        *(word for names, value in always for word in flags.required(names, value)),
        *_flash_attention(recipe.flash_attention, flags),
        *_layers(arguments, flags),
        *_memory(arguments, flags),
        *_switches(arguments, flags),
        *arguments.extra,
    ]


def _flash_attention(chosen: FlashAttention, flags: ServerFlags) -> Sequence[str]:
    names = ("--flash-attn", "-fa")
    if flags.first(*names) in flags.valued:
        return flags.required(names, chosen)
    # In older builds it has no value and is off by default.
    return flags.required(names) if chosen is FlashAttention.ON else ()


def _layers(arguments: LlamaArguments, flags: ServerFlags) -> Iterator[str]:
    if arguments.rpc_servers:
        yield from flags.required(("--rpc",), ",".join(arguments.rpc_servers))
        yield from flags.required(("--device", "-dev"), ",".join(arguments.devices))
    if not arguments.use_gpu:
        # No device at all, not just no layers: with devices, large batches are still computed on the first.
        yield from flags.required(("--n-gpu-layers", "--gpu-layers", "-ngl"), 0)
        yield from flags.optional(("--split-mode", "-sm"), SplitMode.NONE)
        yield from flags.optional(("--main-gpu", "-mg"), -1)
    else:
        yield from flags.required(("--split-mode", "-sm"), arguments.split_mode)
        if arguments.n_gpu_layers is not None:
            yield from flags.required(("--n-gpu-layers", "--gpu-layers", "-ngl"), arguments.n_gpu_layers)
        if arguments.host_tensors:
            # Older builds know only the pattern, which stands for the same tensors.
            pattern = f"{arguments.host_tensors}=CPU"
            yield from (
                flags.optional(("--n-cpu-moe", "-ncmoe"), arguments.recipe.n_cpu_moe)
                or flags.required(("--override-tensor", "-ot"), pattern)
            )
        if arguments.tensor_split:
            split = ",".join(map(str, arguments.tensor_split))
            yield from flags.required(("--tensor-split", "-ts"), split)
    if arguments.fit:
        yield from flags.required(("--fit", "-fit"), "on")
        if arguments.fit_margins_mib:
            margins = ",".join(map(str, arguments.fit_margins_mib))
            yield from flags.required(("--fit-target", "-fitt"), margins)
    else:
        yield from flags.optional(("--fit", "-fit"), "off")


def _memory(arguments: LlamaArguments, flags: ServerFlags) -> Iterator[str]:
    recipe = arguments.recipe
    if recipe.kv_unified:
        yield from flags.required(("--kv-unified",))
    else:
        yield from flags.optional(("--no-kv-unified",))
    if not arguments.repack:
        yield from flags.optional(("--no-repack", "-nr"))
    if name := flags.first("--load-mode", "-lm"):
        mode = {
            (True, False): None,  # The engine's default: mapped, unless a device does not support it.
            (True, True): "mmap+mlock",
            (False, True): "mlock",
            (False, False): "none",
        }[recipe.mmap, recipe.mlock]
        yield from () if mode is None else (name, mode)
    else:
        if not recipe.mmap:
            yield from flags.required(("--no-mmap",))
        if recipe.mlock:
            yield from flags.required(("--mlock",))
    yield from flags.optional(("--cache-ram", "-cram"), arguments.prompt_cache_mib)
    if arguments.keeps_idle_slots:
        yield from flags.optional(("--no-cache-idle-slots",))
    if arguments.slot_folder is not None:
        yield from flags.optional((SLOT_FOLDER,), f"{arguments.slot_folder}/")
    if arguments.projector_path is not None:
        yield from flags.required(("--mmproj", "-mm"), arguments.projector_path)
    if arguments.draft_path is not None:
        yield from _draft(arguments, flags)
    for name, files in (
        ("--lora-scaled", arguments.adapters),
        ("--control-vector-scaled", arguments.control_vectors),
    ):
        if files and flags.lists_scales:
            yield from flags.required((name,), ",".join(f"{each.path}:{each.scale:g}" for each in files))
        for each in () if flags.lists_scales else files:
            yield from flags.required((name,), each.path, f"{each.scale:g}")


def _draft(arguments: LlamaArguments, flags: ServerFlags) -> Iterator[str]:
    """Yield a draft with all of its layers where the model's first ones are."""
    yield from flags.required(("--spec-draft-model", "--model-draft", "-md"), arguments.draft_path)
    yield from flags.optional(("--spec-type",), "draft-simple")
    yield from flags.optional(("--spec-draft-n-max", "--draft-max"), DRAFTED_TOKENS)
    layers = ALL_DRAFT_LAYERS if arguments.use_gpu else 0
    yield from flags.required(("--spec-draft-ngl", "--gpu-layers-draft", "-ngld"), layers)
    if arguments.draft_device:
        yield from flags.required(("--spec-draft-device", "--device-draft", "-devd"), arguments.draft_device)


def _switches(arguments: LlamaArguments, flags: ServerFlags) -> Iterator[str]:
    if arguments.embedding:
        yield from flags.required(("--embedding", "--embeddings"))
    if arguments.rerank:
        yield from flags.required(("--rerank", "--reranking"))
    for names in (("--reuse-port",), ("--metrics",), ("--slots",), ("--no-ui", "--no-webui")):
        yield from flags.optional(names)
    yield from flags.optional(("--cors-origins",), "localhost")
    if flags.names_log_levels:
        yield from flags.required(("--verbosity", "-lv", "--log-verbosity"), arguments.verbosity)
