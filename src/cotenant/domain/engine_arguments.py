"""Arguments and variables of engines that are refused: they open the engine, or take memory unplanned.

Sources: `common/arg.cpp` of llama.cpp at commit 0c1e570, and `engine/arg_utils.py` of vLLM 0.10.2 to 0.32.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Final

from cotenant.domain.engine_kinds import EngineKind

_OPENS: Final = "is set by Cotenant alone, or others reach the engine"
_UNPLANNED: Final = "changes what the engine takes, or where, and no plan would count it"
_LEAVE_OUT: Final = "Leave it out."
_NO_KEY: Final = "Leave it out: no key says it, so it cannot be planned."
_LISTENER: Final = (
    "Leave it out: clients reach the model through Cotenant, at the host and port of `server:`."
)
_ACCESS: Final = "Leave it out: `server:` has `api_keys` and `keys`, for all models."


@dataclass(frozen=True, slots=True)
class RefusedArgument:
    """An argument, or a variable, as the operator wrote it; why it is refused, and what says it properly."""

    word: str
    why: str
    hint: str

    @property
    def is_variable(self) -> bool:
        """Whether it is a variable of the environment."""
        return not self.word.startswith("-")


_SERVER: Final = {
    (_OPENS, _LISTENER): "--host --port",
    (_OPENS, _ACCESS): "--api-key --api-key-file",
    (_OPENS, _LEAVE_OUT): "--ssl- --root-path",
}

_REFUSED: Final[Mapping[EngineKind, Sequence[tuple[tuple[str, str], str]]]] = {
    EngineKind.LLAMA_CPP: (
        *_SERVER.items(),
        (
            (_OPENS, _LEAVE_OUT),
            "--api-prefix --cors- --media-path --models-dir --models-preset --path --static-path --props "
            "--endpoint-props --public-path --reuse-port --slot-save-path --tools --tools-runtime "
            "--agent -ag --mcp-servers-config --mcp-servers-json --ui-mcp-proxy --webui-mcp-proxy",
        ),
        *(
            ((_UNPLANNED, f"Give it as `{key}:`."), spellings)
            for key, spellings in {
                "path": "--model -m --model-url -mu --hf-repo -hf -hfr --hf-file -hff --docker-repo -dr",
                "name": "--alias -a",
                "ctx": "--ctx-size -c --n-ctx --kv-unified-per-slot",
                "parallel": "--parallel -np --n-parallel",
                "n_batch": "--batch-size -b --batch --n-batch",
                "n_ubatch": "--ubatch-size -ub --ubatch --n-ubatch",
                "cache_type_k": "--cache-type-k -ctk",
                "cache_type_v": "--cache-type-v -ctv",
                "flash_attn": "--flash-attn -fa --flash-attn-type",
                "kv_unified": "--kv-unified -kvu --no-kv-unified -no-kvu",
                "n_gpu_layers": "--n-gpu-layers --gpu-layers -ngl",
                "n_cpu_moe": "--n-cpu-moe -ncmoe --cpu-moe -cmoe --override-tensor -ot "
                "--tensor-buft-overrides",
                "tensor_split": "--tensor-split -ts",
                "split_mode": "--split-mode -sm",
                "gpus": "--device -dev --main-gpu -mg --rpc",
                "mmap` or `mlock": "--load-mode -lm --mmap --no-mmap --mlock --direct-io -dio "
                "--lazy-mode -lzm",
                "draft": "--model-draft -md --spec-draft-model --spec-draft-hf --hf-repo-draft -hfd -hfrd "
                "--gpu-layers-draft --n-gpu-layers-draft -ngld --spec-draft-ngl --device-draft -devd "
                "--spec-draft-device --mtp --dflash --eagle3",
                "lora": "--lora --lora-scaled --lora-adapters --lora-init-without-apply",
                "control_vectors": "--control-vector --control-vector-scaled --control-vector-layer-range",
                "mmproj": "--mmproj -mm --mmproj-url -mmu --mmproj-auto --no-mmproj --no-mmproj-auto "
                "--mmproj-offload --no-mmproj-offload --mmproj-device -mmdev",
            }.items()
        ),
        (
            (_UNPLANNED, "Leave it out: `cotenant serve --use-fit-params` leaves the layout to the engine."),
            "--fit -fit --fit-params --fit-target -fitt --fit-ctx -fitc",
        ),
        (
            (_UNPLANNED, _NO_KEY),
            "--swa-full --kv-offload --no-kv-offload -kvo -nkvo --n-cpu-ffn -ncffn "
            "--no-host --cache-ram -cram --ctx-size-draft -cd --cache-type-k-draft -ctkd --spec-draft-type- "
            "--cache-type-v-draft -ctvd --spec-draft-cache-type- --override-tensor-draft -otd "
            "--spec-draft-override-tensor --cpu-moe-draft -cmoed --spec-draft-cpu-moe --n-cpu-moe-draft "
            "-ncmoed --spec-draft-n-cpu-moe --spec-draft-ncmoe --embd-gemma-default "
            "--fim-qwen- --gpt-oss- --vision-gemma-",
        ),
    ),
    EngineKind.VLLM: (
        *_SERVER.items(),
        (
            (_OPENS, _LEAVE_OUT),
            "--allow-credentials --allowed- --config --enable-ssl-refresh --fd --middleware --uds",
        ),
        *(
            ((_UNPLANNED, f"Give it as `{key}:`."), spellings)
            for key, spellings in {
                "path": "--model",
                "name": "--served-model-name",
                "ctx": "--max-model-len --kv-cache-memory-bytes --gpu-memory-utilization "
                "--num-gpu-blocks-override",
                "parallel": "--max-num-seqs",
                "n_batch": "--max-num-batched-tokens",
                "cache_type_k` and `cache_type_v": "--kv-cache-dtype",
                "gpus": "--tensor-parallel-size -tp --pipeline-parallel-size -pp --data-parallel- -dp",
            }.items()
        ),
        (
            (_UNPLANNED, _NO_KEY),
            "--speculative- -sc --num-speculative-tokens --enable-lora --lora- --max-loras --max-lora- "
            "--max-cpu-loras --default-mm-loras --cpu-offload-gb --swap-space --kv-offloading-",
        ),
    ),
}
"""Why and what to do instead → names; those that end with a dash are beginnings. For kinds whose command
line is ours. Short names, and those of variables and of the embedded engine's settings, are here, too."""

_REFUSED_VALUES: Final[Mapping[EngineKind, Sequence[tuple[str, re.Pattern[str], str]]]] = {
    EngineKind.LLAMA_CPP: (
        ("--spec-type", re.compile(r"draft-simple|.*,draft-simple"), "Give the other model as `draft:`."),
        ("--spec-type", re.compile(r"draft-|.*,draft-"), _NO_KEY),
    ),
    EngineKind.VLLM: (("--dtype", re.compile(r"float(32)?$"), _NO_KEY),),
}
"""Arguments that are refused with some values alone: name, values, what to do instead."""

_VARIABLES: Final = {
    "LLAMA_API_KEY": (_OPENS, _ACCESS),
    "VLLM_API_KEY": (_OPENS, _ACCESS),
    "VLLM_SERVER_DEV_MODE": (_OPENS, _LEAVE_OUT),
    "COTENANT_ENGINE": (_OPENS, _LEAVE_OUT),
    "MTMD_BACKEND_DEVICE": (_UNPLANNED, _NO_KEY),
}
_OF_ARGUMENT: Final = "LLAMA_ARG_"
"""llama-server reads each of its arguments from a variable, too."""
_SHORTEST: Final = 4
"""vLLM takes a beginning of a name for the whole; a shorter one is not unique."""


def refused_argument(kind: EngineKind, args: Sequence[str], env: Iterable[str]) -> RefusedArgument | None:
    """Return the first argument, or variable, that a model's entry may not give its engine; None without one.

    Names are taken as engines take them: `_` for `-`, with `=` and a value, and for vLLM as a beginning.
    """
    return next(_refused(kind, args, env), None)


def _refused(kind: EngineKind, args: Sequence[str], env: Iterable[str]) -> Iterator[RefusedArgument]:
    if kind not in _REFUSED:
        return
    for word, following in zip_longest(args, args[1:], fillvalue=""):
        given, equals, value = word.partition("=")
        name = given.replace("_", "-")
        if reason := _reason(kind, name):
            yield RefusedArgument(given, *reason)
        for refused, values, hint in _REFUSED_VALUES.get(kind, ()):
            if name == refused and values.match(value if equals else following):
                yield RefusedArgument(given, _UNPLANNED, hint)
    for variable in env:
        name = f"--{variable.removeprefix(_OF_ARGUMENT).lower().replace('_', '-')}"
        reason = _VARIABLES.get(variable)
        if reason is None and kind is EngineKind.LLAMA_CPP and variable.startswith(_OF_ARGUMENT):
            reason = _reason(kind, name)
        if reason:
            yield RefusedArgument(variable, *reason)


def _reason(kind: EngineKind, name: str) -> tuple[str, str] | None:
    """Return why a name is refused, and what says it properly."""
    abbreviates = kind is EngineKind.VLLM and len(name) > _SHORTEST
    # vLLM takes a part of a value after a dot, as in --speculative-config.model.
    name = name.partition(".")[0]
    for reason, names in _REFUSED[kind]:
        for refused in names.split():
            whole = name.startswith(refused) if refused.endswith("-") else name == refused
            if whole or (abbreviates and refused.startswith(name)):
                return reason
    return None
