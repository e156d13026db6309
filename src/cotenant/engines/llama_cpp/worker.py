"""The child process that runs one model with xllamacpp, llama.cpp's own HTTP server in a Python package.

`python -P -m cotenant.engines.llama_cpp.worker PARENT_PID JSON`, JSON being `LlamaArguments`. It
imports little, since every model needs such a process. It ends without Python's clean-up: the server's
destructor can hang while a request runs.
"""

import ctypes
import json
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, Final, NoReturn

from cotenant.engines.process.guard import die_with_parent

_SERVING_VERBOSITY: Final = 3
_ALL_DRAFT_LAYERS: Final = 999
_SET_VERBOSITY: Final = "_Z30common_log_set_verbosity_tholdi"
_LOG, _FLUSH_LOG = "_Z15common_log_mainv", "_Z16common_log_flushP10common_log"
_LOAD_MODES: Final = {
    (True, False): "auto",
    (True, True): "mmap_mlock",
    (False, True): "mlock",
    (False, False): "none",
}
_FLASH: Final = {"on": "enabled", "off": "disabled", "auto": "auto"}


class _Unusable(Exception):
    """An extra argument that cannot be applied."""


def main(argv: Sequence[str]) -> NoReturn:
    """Load, serve until killed, and never return."""
    parent = int(argv[1])
    if parent:  # else a guard sees to it
        die_with_parent(parent)
    # ^C in a terminal is for the daemon, which drains first.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        import xllamacpp

        arguments = json.loads(argv[2])
        params = xllamacpp.CommonParams()
        _fill(xllamacpp, params, arguments)
        _add_extra(params, arguments["extra"])
        # This blocks the interpreter until the model is loaded; /health answers meanwhile.
        server = xllamacpp.Server(params)
    except (ImportError, RuntimeError, _Unusable) as error:
        if isinstance(error, RuntimeError):
            _flush_log(xllamacpp.xllamacpp.__file__)
        print(f"E worker: {error}", file=sys.stderr, flush=True)  # noqa: T201  the output is the engine's log
        os._exit(3)
    if arguments["verbosity"] > _SERVING_VERBOSITY:
        _lower_verbosity(xllamacpp.xllamacpp.__file__)
    while server is not None:
        signal.pause()
    os._exit(0)


def _fill(xlc: Any, params: Any, arguments: dict[str, Any]) -> None:
    """Set by attribute, never by keyword: unknown keywords are silently ignored."""
    params.model.path = arguments["model_path"]
    params.model_alias = {arguments["alias"]}
    params.hostnames = [arguments["host"]]
    params.port = arguments["port"]
    params.reuse_port = True
    recipe = arguments["recipe"]
    for name in ("n_ctx", "n_batch", "n_ubatch", "kv_unified"):
        setattr(params, name, recipe[name])
    params.n_parallel = recipe["parallel"]
    params.verbosity = arguments["verbosity"]
    params.cpuparams.n_threads = arguments["threads"]
    params.cpuparams_batch.n_threads = arguments["threads"]
    params.n_threads_http = arguments["threads_http"]
    for name in ("cache_type_k", "cache_type_v"):
        setattr(params, name, _member(xlc, "ggml_type", recipe[name]))
    params.flash_attn_type = _member(xlc, "llama_flash_attn_type", _FLASH[recipe["flash_attention"]])
    params.load_mode = _member(xlc, "llama_load_mode", _LOAD_MODES[recipe["mmap"], recipe["mlock"]])
    params.no_extra_bufts = not arguments["repack"]
    params.cache_ram_mib = arguments["prompt_cache_mib"]
    params.cache_idle_slots = not arguments["keeps_idle_slots"]
    if arguments["slot_folder"] is not None:
        params.slot_save_path = f"{arguments['slot_folder']}/"
    params.embedding = arguments["embedding"] or arguments["rerank"]
    if arguments["rerank"]:
        params.pooling_type = _member(xlc, "llama_pooling_type", "rank")
    params.endpoint_metrics = True
    params.endpoint_slots = True
    params.ui = False
    if key := os.environ.get("LLAMA_API_KEY"):
        params.api_keys = [key]
    params.cors_origins = "localhost"
    params.cors_origins_explicit = True
    if arguments["projector_path"] is not None:
        params.mmproj.path = arguments["projector_path"]
    _place(xlc, params, arguments)
    params.lora_adapters = [
        xlc.CommonAdapterLoraInfo(each["path"], each["scale"]) for each in arguments["adapters"]
    ]
    if arguments["draft_path"] is not None:
        draft = params.speculative.draft
        draft.mparams.path = arguments["draft_path"]
        draft.n_gpu_layers = _ALL_DRAFT_LAYERS if arguments["use_gpu"] else 0
        if arguments["draft_device"]:
            draft.devices = arguments["draft_device"]
        params.speculative.types = [_member(xlc, "common_speculative_type", "draft_simple")]


def _place(xlc: Any, params: Any, arguments: dict[str, Any]) -> None:
    params.split_mode = _member(xlc, "llama_split_mode", arguments["split_mode"])
    params.fit_params = arguments["fit"]
    if not arguments["use_gpu"]:
        # No device at all, not just no layers: with devices, large batches are still computed on the first.
        params.main_gpu = -1
        params.n_gpu_layers = 0
        return
    if arguments["n_gpu_layers"] is not None:
        params.n_gpu_layers = arguments["n_gpu_layers"]
    if arguments["host_tensors"]:
        params.tensor_buft_overrides = arguments["host_tensors"] + "=CPU"
    if arguments["tensor_split"]:
        split, length = arguments["tensor_split"], len(params.tensor_split)
        params.tensor_split = [*map(float, split), *[0.0] * (length - len(split))]
    if arguments["fit_margins_mib"]:
        margins = [mib << 20 for mib in arguments["fit_margins_mib"]]
        params.fit_params_target = [*margins, *params.fit_params_target[len(margins) :]]


def _add_extra(params: Any, words: Sequence[str]) -> None:
    """Apply `--some-name VALUE`, `--some-name=VALUE`, `--switch` and `--no-switch`.

    The name is llama-server's where CommonParams has an attribute of that name. Raises _Unusable otherwise.
    """
    rest = iter(words)
    for word in rest:
        name, equals, given = word.partition("=")
        attribute = name.removeprefix("--").replace("-", "_")
        negated = attribute.removeprefix("no_")
        if not name.startswith("--"):
            raise _Unusable(f"{word}: the embedded engine takes long options only, such as --rope-freq-base")
        if isinstance(getattr(params, attribute, None), bool) and not equals:
            setattr(params, attribute, True)
        elif negated != attribute and isinstance(getattr(params, negated, None), bool):
            setattr(params, negated, False)
        else:
            value = given if equals else next(rest, None)
            if value is None:
                raise _Unusable(f"{name}: its value is missing")
            _set(params, name, attribute, value)


def _set(params: Any, name: str, attribute: str, value: str) -> None:
    kind = type(getattr(params, attribute, None))
    if kind not in (int, float, str):
        raise _Unusable(f"{name}: the embedded engine has no such setting; a llama-server may")
    try:
        setattr(params, attribute, kind(value))
    except ValueError:
        raise _Unusable(f"{name}: {value!r} is no {kind.__name__}") from None


def _lower_verbosity(library: str) -> None:
    """Log less once loaded: buffer lines need level 4, which then costs 3 kB and 7 % per small request.

    The package does not wrap llama.cpp's setter but exports it; a build that does not stays at level 4.
    """
    set_verbosity = getattr(ctypes.CDLL(library), _SET_VERBOSITY, None)
    if set_verbosity is not None:
        set_verbosity(_SERVING_VERBOSITY)


def _flush_log(library: str) -> None:
    """Write what llama.cpp's logging thread still holds: it says why the load failed, and ends with us."""
    functions = ctypes.CDLL(library)
    log, flush = getattr(functions, _LOG, None), getattr(functions, _FLUSH_LOG, None)
    if log is not None and flush is not None:
        log.restype, flush.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
        flush(log())


def _member(xlc: Any, enum: str, name: str) -> Any:
    return getattr(getattr(xlc, enum), f"{enum}_{name}".upper())


if __name__ == "__main__":
    main(sys.argv)
