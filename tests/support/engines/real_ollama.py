"""A real Ollama daemon, for the tests that `make test-ollama` runs."""

import contextlib
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from cotenant.domain.engines import Endpoint
from tests.support.engines.fake_programs import ask, wait_for
from tests.support.models.gguf_models import build_tiny_embedder, build_tiny_llama


def ollama_program() -> str:
    """Find the program that COTENANT_TEST_OLLAMA names, or skip the test."""
    named = os.environ.get("COTENANT_TEST_OLLAMA")
    if not named:
        pytest.skip("no Ollama is named: run `make test-ollama`, or set COTENANT_TEST_OLLAMA")
    found = shutil.which(named)
    assert found is not None, f"COTENANT_TEST_OLLAMA names no program: {named}"
    return found


class RealOllama:
    """A daemon with a folder and a port of its own, which is there again when it is started anew."""

    def __init__(self, folder: Path) -> None:
        self.program = ollama_program()
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = Endpoint("127.0.0.1", free.getsockname()[1])

    def start(self) -> None:
        """Start it, and return when it answers."""
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(self._folder),
            "OLLAMA_HOST": self.address.authority,
            "OLLAMA_MODELS": str(self._folder / "models"),
            "OLLAMA_NO_CLOUD": "1",
        }
        with (self._folder / "ollama.log").open("ab") as log:
            self._process = subprocess.Popen(
                [self.program, "serve"], env=env, stdout=log, stderr=log, start_new_session=True
            )
        wait_for(f"{self.address.url}/api/version")

    def kill(self) -> None:
        """End it at once, and the processes that run its models, which would outlive it."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def create(self, name: str, *files: Path, **more: object) -> None:
        """Have it make a model of GGUF files."""
        digests = {}
        for file in files:
            data = file.read_bytes()
            digests[file.name] = f"sha256:{hashlib.sha256(data).hexdigest()}"
            blob = f"{self.address.url}/api/blobs/{digests[file.name]}"
            urllib.request.urlopen(urllib.request.Request(blob, data), timeout=60).close()
        told = self.ask("/api/create", {"model": name, "files": digests, "stream": False, **more})
        assert told == {"status": "success"}

    def ask(self, path: str, body: dict[str, object] | None = None) -> object:
        """Return the JSON that it answers."""
        return ask(self.address.url + path, body)

    def loaded(self) -> set[str]:
        """Return the tags of what it has loaded."""
        told = self.ask("/api/ps")
        assert isinstance(told, dict)
        return {model["model"] for model in told["models"]}

    def run(self, *argv: str, host: str | None = None) -> str:
        """Run its own command line, with it or with another `host`; return what it prints."""
        env = {"PATH": os.environ["PATH"], "HOME": str(self._folder), "OLLAMA_HOST": host or self.address.url}
        done = subprocess.run(
            [self.program, *argv],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=60,
            check=False,
        )
        return done.stdout.decode()


@contextlib.contextmanager
def real_ollama(folder: Path) -> Iterator[RealOllama]:
    """Run a daemon that has `tiny`, a chat model; `embedder`; and `broken`, which it cannot load."""
    folder.mkdir(exist_ok=True)
    daemon = RealOllama(folder)
    try:
        daemon.start()
        daemon.create("tiny", build_tiny_llama(folder / "tiny.gguf"), parameters={"num_ctx": 512})
        daemon.create("embedder", build_tiny_embedder(folder / "embedder.gguf"))
        daemon.create("broken", build_tiny_embedder(folder / "ranker.gguf", ranks=True))
        yield daemon
    finally:
        daemon.kill()
