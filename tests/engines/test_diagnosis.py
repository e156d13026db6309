from __future__ import annotations

import pytest

from cotenant.engines.diagnosis import describe_exit, explain_failure

ENDING = """\
0.00.004.500 E llama_model_load: error loading model: llama_model_loader: failed to load model from m.gguf
0.00.004.512 E llama_model_load_from_file_impl: failed to load model
0.00.004.514 E cmn  common_init_: failed to load model 'm.gguf'
0.00.004.516 E srv    load_model: failed to load model, 'm.gguf'
0.00.004.998 E srv  llama_server: exiting due to model loading error
"""


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (
            "0.00 E gguf_init_from_file: failed to open GGUF file 'm.gguf' (No such file or directory)",
            "there is no such model file (failed to open GGUF file 'm.gguf' (No such file or directory))",
        ),
        (
            "0.00.004.445 E gguf_init_from_reader: invalid magic characters: 'XXXX', expected 'GGUF'",
            "the model file is not a GGUF file (invalid magic characters: 'XXXX', expected 'GGUF')",
        ),
        (
            "0.00.004.587 E llama_model_load: error loading model: tensor 'blk.1.ffn_up.weight' data is not "
            "within the file bounds, model is corrupted or incomplete",
            "the model file is truncated or damaged (tensor 'blk.1.ffn_up.weight' data is not within the "
            "file bounds, model is corrupted or incomplete)",
        ),
        (
            "0.00.004.943 E llama_model_load: error loading model: unknown model architecture: 'llomo'",
            "its build does not know the architecture 'llomo' (unknown model architecture: 'llomo')",
        ),
        (
            "0.01.002.000 E ggml_backend_cuda_buffer_type_alloc_buffer: allocating 9216.00 MiB on device 1: "
            "cudaMalloc failed: out of memory",
            "its GPU 1 has no room for another 9216.00 MiB (allocating 9216.00 MiB on device 1: "
            "cudaMalloc failed: out of memory)",
        ),
        (
            "0.00.252.568 E llama_init_from_model: failed to initialize the context: std::bad_alloc",
            "it is out of memory (failed to initialize the context: std::bad_alloc)",
        ),
        (
            "0.00.002.501 E srv  start: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 81",
            "its port 81 is in use (couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 81)",
        ),
        (
            "llama-server: error while loading shared libraries: libcudart.so.12: cannot open shared object "
            "file: No such file or directory",
            "a library is missing on this machine: libcudart.so.12 (error while loading shared libraries: "
            "libcudart.so.12: cannot open shared object file: No such file or directory)",
        ),
        (
            "error: invalid argument: --bogus",
            "it does not know the argument --bogus (invalid argument: --bogus)",
        ),
        (
            "0.00.100.000 E some_function: the reason nobody foresaw",
            "it exited with status 1 (the reason nobody foresaw)",
        ),
    ],
)
def test_a_failed_load_is_explained_in_one_sentence_with_evidence(line: str, sentence: str) -> None:
    assert explain_failure(1, f"0.00.001.000 I srv  init: fine\n{line}\n{ENDING}") == sentence


@pytest.mark.parametrize(
    ("returncode", "says"),
    [(-4, "instruction that this processor does not have"), (-9, "signal 9 (SIGKILL)"), (-11, "SIGSEGV")],
)
def test_a_signal_is_named(returncode: int, says: str) -> None:
    assert says in explain_failure(returncode, "0.00.001.000 I fine\n")


def test_an_abort_brings_the_assertion_that_failed() -> None:
    log = "/src/ggml.c:1234: GGML_ASSERT(n > 0) failed\n"
    assert explain_failure(-6, log) == f"it gave up on an internal check ({log.strip()})"


def test_silence_is_explained_by_the_exit_status() -> None:
    assert explain_failure(7, "") == "it exited with status 7"


def test_long_evidence_is_cut() -> None:
    assert len(explain_failure(1, f"E srv: {'x' * 5000}")) < 400


@pytest.mark.parametrize(
    ("returncode", "text"),
    [
        (0, "exited with status 0"),
        (-15, "was killed by signal 15 (SIGTERM)"),
        (-64, "was killed by signal 64"),
    ],
)
def test_every_exit_has_words(returncode: int, text: str) -> None:
    assert describe_exit(returncode).startswith(text)
