"""`cotenant demo`: serves a model and asks it one question, as `make run` does."""

import argparse
import asyncio
import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from cotenant.cli.plan import model_path
from cotenant.cli.serve import add_serve_options, serve_model
from cotenant.daemon.log_format import LogFormat, log_to_stderr
from cotenant.domain.errors import HubError

_PROMPT = "Say in one sentence what a GPU is for."
_MODEL = "hf.co/Qwen/Qwen2.5-0.5B-Instruct-GGUF:Q4_K_M"


def register(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    add_serve_options(parser)


def run(args: argparse.Namespace) -> int:
    """Serve, ask one question, print what to try next, and continue to serve."""
    log_to_stderr(LogFormat.TEXT)
    path = model_path(args) or _from_hub()
    if path is not None:
        serve_model(args, path, _asker(args, random_weights=False))
        return 0
    from cotenant.demo_model import write_demo_model

    with tempfile.TemporaryDirectory(prefix="cotenant-demo-") as folder:
        path = Path(folder) / "demo.gguf"
        print("Making a small model with random weights instead. What it says means nothing;")
        print(
            "everything around it is real. Serve your own with: make run MODEL=path/to/model.gguf", flush=True
        )
        write_demo_model(path)
        serve_model(args, path, _asker(args, random_weights=True))
    return 0


def _from_hub() -> Path | None:
    """Pull a small instruct model, once; None if the hub does not respond soon or refuses."""
    from cotenant.cli.pull import StepPrinter, pull

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cotenant" / "models"
    print(f"No model given: trying {_MODEL}.", flush=True)
    try:
        files = asyncio.run(pull(_MODEL, cache, StepPrinter(), list_within_s=4.0))
    except HubError as error:
        print(f"It cannot be pulled: {error.message}.")
        return None
    return files[-1]


def _asker(args: argparse.Namespace, *, random_weights: bool) -> Any:
    from cotenant.daemon.core.settings import read_api_keys

    async def ask(address: str) -> None:
        key = os.environ.get("COTENANT_API_KEY")
        keys = read_api_keys(args.api_key or ([key] if key else []), args.api_key_file)
        try:
            answer = await _ask(address, next(iter(keys), None))
        except OSError as error:
            print(f"\nAsked: {_PROMPT}\nNo answer: {error}\n")
        else:
            nonsense = " (random weights: nonsense)" if random_weights else ""
            print(f"\nAsked: {_PROMPT}\nAnswer{nonsense}: {answer}\n")
        print("Try next, in another terminal:")
        print(f"  curl {address}/v1/chat/completions -H 'Content-Type: application/json' \\")
        print('    -d \'{"model": "local", "messages": [{"role": "user", "content": "Hello"}]}\'')
        print("Stop with Ctrl-C.", flush=True)

    return ask


async def _ask(address: str, key: str | None) -> str:
    """Return the model's answer. Raises OSError, with the server's reason if it refuses."""
    from cotenant.http.addresses import api_endpoint
    from cotenant.http.client import Limits, Request, fetch

    payload = {"model": "local", "max_tokens": 48, "messages": [{"role": "user", "content": _PROMPT}]}
    request = Request(api_endpoint(address, key), "POST", "/v1/chat/completions", payload)
    response = await fetch(request, Limits(whole_s=300))
    answer = response.json_object(of_any_status=True) or {}
    if response.status != 200:
        reason = f"status {response.status}"
        with contextlib.suppress(KeyError, TypeError):
            # A model for embeddings cannot chat, for instance.
            reason = str(answer["error"]["message"])
        raise OSError(reason)
    return json.dumps(answer["choices"][0]["message"]["content"], ensure_ascii=False)
