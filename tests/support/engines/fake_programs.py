"""Programs that stand in for engines which cannot run here, and small model folders for them."""

import contextlib
import json
import os
import socket
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent


def vllm_program(folder: Path) -> Path:
    """Write a program that behaves as `fake_vllm` does, under the name `vllm`."""
    program = folder / "vllm"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {_HERE / "fake_vllm.py"} "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program


def hugging_face_folder(folder: Path, *, layers: int = 2, width: int = 64, vocab: int = 256) -> Path:
    """Write a Hugging Face folder of a small Llama, its weights zeroes."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": layers,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": vocab,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {"model.embed_tokens.weight": [vocab, width], "lm_head.weight": [vocab, width]}
    for layer in range(layers):
        shapes[f"model.layers.{layer}.mlp.up_proj.weight"] = [2 * width, width]
        shapes[f"model.layers.{layer}.self_attn.q_proj.weight"] = [width, width]
    header: dict[str, Any] = {}
    at = 0
    for name, shape in shapes.items():
        size = 2 * shape[0] * shape[1]
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    head = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + bytes(at))
    return folder


@contextlib.contextmanager
def ollama_daemon(env: Mapping[str, str] | None = None, port: int = 0) -> Iterator[int]:
    """Run the stand-in of an Ollama daemon; give its port."""
    with _running(["fake_ollama.py", str(port)], env) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())


@contextlib.contextmanager
def openai_server(
    name: str, env: Mapping[str, str] | None = None
) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """Run a server of OpenAI's API that knows one model; give its port and its process."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        argv = ["fake_vllm.py", "serve", "x", "--served-model-name", name, "--host", "127.0.0.1"]
        with _running([*argv, "--port", str(port)], env) as process:
            wait_for(f"http://127.0.0.1:{port}/health")
            yield port, process


@contextlib.contextmanager
def _running(argv: list[str], env: Mapping[str, str] | None) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, str(_HERE / argv[0]), *argv[1:]],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **(env or {})},
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def wait_for(url: str, within_s: float = 60) -> None:
    """Wait until somebody answers there."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            with urllib.request.urlopen(url, timeout=60):
                return
        except (urllib.error.URLError, OSError):
            assert time.monotonic() < deadline, f"nobody answers at {url}"
            time.sleep(0.02)


def ask(url: str, body: Mapping[str, object] | None = None) -> Any:
    """Return the JSON that a URL answers."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)
