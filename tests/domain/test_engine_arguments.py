import pytest

from cotenant.domain.engine_arguments import reserved_word
from cotenant.domain.engine_kinds import EngineKind

LLAMA, VLLM, COMMAND = EngineKind.LLAMA_CPP, EngineKind.VLLM, EngineKind.COMMAND


@pytest.mark.parametrize(
    ("kind", "args", "word"),
    [
        (LLAMA, ["--host", "0.0.0.0"], "--host"),
        (LLAMA, ["--top-k", "4", "--port=1"], "--port"),
        (LLAMA, ["--api-key-file", "x"], "--api-key-file"),
        (LLAMA, ["--cors-origins", "*"], "--cors-origins"),
        (LLAMA, ["--path", "/"], "--path"),
        (LLAMA, ["--media-path", "/"], "--media-path"),
        (LLAMA, ["--slot-save-path", "/"], "--slot-save-path"),
        (LLAMA, ["--ssl-key-file", "/k"], "--ssl-key-file"),
        (LLAMA, ["--tools", "all"], "--tools"),
        (VLLM, ["--uds", "/x"], "--uds"),
        (VLLM, ["--api_key=k"], "--api_key"),
        (VLLM, ["--allowed-local-media-path", "/"], "--allowed-local-media-path"),
        (VLLM, ["--middle", "x.y"], "--middle"),
        (VLLM, ["--config", "x.yaml"], "--config"),
        (VLLM, ["--config-format", "hf", "--dtype", "half"], None),
        (LLAMA, ["--rope-freq-base", "1e6", "--slot-prompt-similarity", "0.5", "-t", "4"], None),
        (LLAMA, ["--chat-template", "--host"], "--host"),
        (COMMAND, ["--host", "{host}", "--port", "{port}"], None),
    ],
)
def test_what_would_open_an_engine_is_found(kind: EngineKind, args: list[str], word: str | None) -> None:
    assert reserved_word(kind, args, {}) == word


@pytest.mark.parametrize(
    ("kind", "variable", "found"),
    [
        (LLAMA, "LLAMA_ARG_HOST", True),
        (LLAMA, "LLAMA_ARG_MEDIA_PATH", True),
        (LLAMA, "LLAMA_ARG_STATIC_PATH", True),
        (LLAMA, "LLAMA_API_KEY", True),
        (VLLM, "VLLM_API_KEY", True),
        (VLLM, "VLLM_SERVER_DEV_MODE", True),
        (LLAMA, "GGML_CUDA_ENABLE_UNIFIED_MEMORY", False),
        (VLLM, "HF_TOKEN", False),
        (COMMAND, "LLAMA_API_KEY", False),
    ],
)
def test_variables_that_do_the_same_are_found(kind: EngineKind, variable: str, found: bool) -> None:
    assert (reserved_word(kind, (), {variable: "x"}) == variable) is found
