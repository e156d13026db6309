import pytest

from cotenant.domain.engine_arguments import refused_argument
from cotenant.domain.engine_kinds import EngineKind

LLAMA, VLLM, COMMAND = EngineKind.LLAMA_CPP, EngineKind.VLLM, EngineKind.COMMAND
LISTENS, ACCESS, NO_KEY = "at the host and port of `server:`", "`server:` has `api_keys`", "no key says it"

LLAMA_OPENS = {
    LISTENS: "--host --port",
    ACCESS: "--api-key --api-key-file",
    "Leave it out.": "--cors-origins --path --media-path --slot-save-path --ssl-key-file --tools "
    "--api-prefix --models-dir --models-preset --props --reuse-port --agent -ag --mcp-servers-json",
}
LLAMA_TAKES = {
    "`path:`": "-m --model -mu --model-url -hf -hfr --hf-repo -hff --hf-file -dr --docker-repo",
    "`name:`": "-a --alias",
    "`ctx:`": "-c --ctx-size --n-ctx --n_ctx --ctx_size --kv-unified-per-slot",
    "`parallel:`": "-np --parallel",
    "`n_batch:`": "-b --batch-size",
    "`n_ubatch:`": "-ub --ubatch-size",
    "`cache_type_k:`": "-ctk --cache-type-k --cache_type_k",
    "`cache_type_v:`": "-ctv --cache-type-v",
    "`flash_attn:`": "-fa --flash-attn",
    "`kv_unified:`": "-kvu --kv-unified -no-kvu --no-kv-unified",
    "`n_gpu_layers:`": "-ngl --gpu-layers --n-gpu-layers",
    "`n_cpu_moe:`": "-ncmoe --n-cpu-moe --n_cpu_moe -cmoe --cpu-moe -ot --override-tensor",
    "`tensor_split:`": "-ts --tensor-split",
    "`split_mode:`": "-sm --split-mode",
    "`gpus:`": "-dev --device -mg --main-gpu --rpc",
    "`mmap` or `mlock:`": "-lm --load-mode --mlock --no-mmap -dio",
    "`draft:`": "-md --model-draft --spec-draft-model --model_draft -hfd -ngld --spec-draft-ngl -devd",
    "`lora:`": "--lora --lora-scaled --lora_scaled --lora-init-without-apply",
    "`control_vectors:`": "--control-vector --control-vector-scaled --control-vector-layer-range",
    "`mmproj:`": "-mm --mmproj -mmu --mmproj-url --no-mmproj --no-mmproj-offload -mmdev",
    "--use-fit-params": "-fit --fit -fitt --fit-target -fitc --fit-ctx",
    NO_KEY: "-ctkd -ctvd --spec-draft-type-k -otd -ncmoed -cd "
    "--swa-full -nkvo --no-kv-offload -ncffn -cram --cache-ram "
    "--fim-qwen-7b-default --gpt-oss-20b-default",
}
VLLM_OPENS = {
    LISTENS: "--host --port",
    ACCESS: "--api-key --api_key",
    "Leave it out.": "--uds --allowed-local-media-path --middle --config --root-path --fd",
}
VLLM_TAKES = {
    "`path:`": "--model",
    "`name:`": "--served-model-name --served_model_name",
    "`ctx:`": "--max-model-len --max_model_len --max-model --kv-cache-memory-bytes --gpu-memory-utilization",
    "`parallel:`": "--max-num-seqs",
    "`n_batch:`": "--max-num-batched-tokens",
    "`cache_type_k` and `cache_type_v:`": "--kv-cache-dtype",
    "`gpus:`": "-tp --tensor-parallel-size -pp -dp --data-parallel-size",
    NO_KEY: "--speculative-config --speculative-config.model -sc --enable-lora --lora-modules --lora-dtype "
    "--max-loras --cpu-offload-gb --swap-space",
}
OPENS, TAKES = "or others reach the engine", "no plan would count it"
CASES = [
    (kind, word, why, says)
    for kind, why, table in [
        (LLAMA, OPENS, LLAMA_OPENS),
        (LLAMA, TAKES, LLAMA_TAKES),
        (VLLM, OPENS, VLLM_OPENS),
        (VLLM, TAKES, VLLM_TAKES),
    ]
    for says, words in table.items()
    for word in words.split()
]


@pytest.mark.parametrize("with_value", [False, True], ids=["apart", "after ="])
@pytest.mark.parametrize(("kind", "word", "why", "says"), CASES, ids=[f"{c[0]} {c[1]}" for c in CASES])
def test_an_argument_that_opens_the_engine_or_brings_bytes_is_refused_with_what_says_it(
    kind: EngineKind, word: str, why: str, says: str, with_value: bool
) -> None:
    args = ["--seed", "1", *([f"{word}=1"] if with_value else [word, "1"])]
    refused = refused_argument(kind, args, {})
    assert refused is not None
    assert refused.word == word
    assert why in refused.why
    assert says in refused.hint


@pytest.mark.parametrize(
    ("kind", "args"),
    [
        (VLLM, ["--config-format", "hf", "--dtype", "half", "--enforce-eager", "--enable-sleep-mode"]),
        (VLLM, ["--block-size", "32", "--quantization=awq", "--task", "embed", "--dtype=auto"]),
        (LLAMA, ["--rope-freq-base", "1e6", "--slot-prompt-similarity", "0.5", "-t", "4", "--no-warmup"]),
        (
            LLAMA,
            ["--chat-template-file", "t.jinja", "--jinja", "--threads", "8", "-nr", "--cache-reuse", "8"],
        ),
        (LLAMA, ["--spec-type", "ngram-mod", "--draft-max", "8", "--temp", "-1"]),
        (COMMAND, ["--host", "{host}", "--port", "{port}", "-c", "1"]),
    ],
)
def test_what_is_harmless_is_not_refused(kind: EngineKind, args: list[str]) -> None:
    assert refused_argument(kind, args, {}) is None


def test_ways_to_draft_that_bring_another_model_or_more_layers_are_refused() -> None:
    for value, says in (("draft-simple", "`draft:`"), ("ngram-mod,draft-mtp", NO_KEY)):
        for args in (["--spec-type", value], [f"--spec-type={value}"]):
            refused = refused_argument(LLAMA, args, {})
            assert refused is not None
            assert says in refused.hint


@pytest.mark.parametrize(
    "args", [["--dtype", "float32"], ["--dtype=float"], ["--seed", "1", "--dtype=float32"]]
)
def test_a_number_format_of_twice_the_bytes_is_refused(args: list[str]) -> None:
    refused = refused_argument(VLLM, args, {})
    assert refused is not None
    assert refused.word == "--dtype"


@pytest.mark.parametrize(
    ("kind", "variable", "says"),
    [
        (LLAMA, "LLAMA_ARG_HOST", LISTENS),
        (LLAMA, "LLAMA_ARG_MEDIA_PATH", "Leave"),
        (LLAMA, "LLAMA_ARG_STATIC_PATH", "Leave"),
        (LLAMA, "LLAMA_ARG_ENDPOINT_PROPS", "Leave"),
        (LLAMA, "LLAMA_API_KEY", ACCESS),
        (LLAMA, "LLAMA_ARG_CTX_SIZE", "`ctx:`"),
        (LLAMA, "LLAMA_ARG_BATCH", "`n_batch:`"),
        (LLAMA, "LLAMA_ARG_UBATCH", "`n_ubatch:`"),
        (LLAMA, "LLAMA_ARG_N_PARALLEL", "`parallel:`"),
        (LLAMA, "LLAMA_ARG_N_GPU_LAYERS", "`n_gpu_layers:`"),
        (LLAMA, "LLAMA_ARG_KV_OFFLOAD", NO_KEY),
        (VLLM, "VLLM_API_KEY", ACCESS),
        (VLLM, "VLLM_SERVER_DEV_MODE", "Leave"),
        (LLAMA, "GGML_CUDA_ENABLE_UNIFIED_MEMORY", None),
        (LLAMA, "LLAMA_ARG_THREADS", None),
        (LLAMA, "CTX_SIZE", None),
        (VLLM, "HF_TOKEN", None),
        (COMMAND, "LLAMA_API_KEY", None),
    ],
)
def test_variables_that_do_the_same_are_refused(kind: EngineKind, variable: str, says: str | None) -> None:
    refused = refused_argument(kind, (), {variable: "x"})
    assert (refused is None) is (says is None)
    if refused is not None:
        assert refused.word == variable
        assert refused.is_variable
        assert says is not None
        assert says in refused.hint
