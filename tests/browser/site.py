"""What the browser tests look at: described GPUs, tiny real models, the services of a stand-in docker."""

import json
import os
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from cotenant.demo_model import write_demo_model
from tests.support.containers.fake_compose import StandInCompose
from tests.support.daemon.serving import Serving

CARDS = "RTX A5500:24564:19304,RTX A400:4094:329"
SERVICES = (
    {"name": "ai-llm", "model": "Nemotron-3-Nano-30B (Q4_K_M)", "vram_mib": 22221, "role": "llm"},
    {"name": "ai-yolo26", "model": "YOLO26", "vram_mib": 650, "latency_critical": True},
    {"name": "ai-florence", "model": "Florence-2-Large", "vram_mib": 1536},
    {"name": "ai-clip", "model": "CLIP ViT-L", "vram_mib": 1229},
    {
        "name": "ai-enrichment",
        "model": "Model Zoo (9 models)",
        "vram_mib": 6963,
        "vram_budget_env": "VRAM_BUDGET_GB",
    },
)
"""The five of the document."""


class Site:
    """A folder with a configuration, a compose file and models, of which daemons are started."""

    def __init__(
        self,
        folder: Path,
        *,
        models: Mapping[str, Mapping[str, Any]] | None = None,
        services: tuple[Mapping[str, Any], ...] = SERVICES,
        gpus: str | None = CARDS,
        server: Mapping[str, Any] | None = None,
        project: str = "site",
        definition: Mapping[str, Any] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.project = project
        self.compose = StandInCompose(folder / "bin")
        self.env = {"PATH": f"{self.compose.folder}{os.pathsep}{os.environ['PATH']}"}
        settings: dict[str, Any] = {"models": [], "server": dict(server or {})}
        if gpus is not None:
            settings["devices"] = {"gpus": gpus, "reserve_mib": 100, "min_budget_mib": 100}
        for name, more in (models or {}).items():
            path = folder / "tiny.gguf"
            if not path.exists():
                write_demo_model(path)
            settings["models"].append({"name": name, "path": str(path), "ctx": 512, **more})
        if services:
            file = folder / "docker-compose.prod.yml"
            each = dict(definition or {"image": "site:1"})
            file.write_text(yaml.safe_dump({"services": {item["name"]: each for item in services}}))
            command = {} if definition else {"command": [str(self.compose.folder / "docker"), "compose"]}
            settings["services"] = {
                "compose": {"files": [str(file)], "project": project, **command},
                "items": [dict(item) for item in services],
            }
        self.config = folder / "cotenant.yaml"
        self.config.write_text(yaml.safe_dump(settings), encoding="utf-8")

    @contextmanager
    def daemon(self, port: int = 0, **env: str) -> Iterator[Serving]:
        argv = ["serve", "--config", str(self.config), "--port", str(port), "--parallel", "1"]
        settled = {"SETTLE_S": "0.1"}
        module = "tests.support.daemon.short_settle"
        with Serving(argv, self.folder / "state", {**settled, **self.env, **env}, module) as daemon:
            daemon.address()
            yield daemon
            assert "Traceback" not in daemon.output


def ask(
    address: str,
    path: str,
    body: Mapping[str, Any] | None = None,
    *,
    method: str | None = None,
    key: str | None = None,
) -> Any:
    """Ask the API as a program does; a body makes it a POST, unless `method` is another."""
    request = urllib.request.Request(
        address + path,
        data=None if body is None else json.dumps(body).encode(),
        headers={"content-type": "application/json", **({"authorization": f"Bearer {key}"} if key else {})},
        method=method,
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def complete(address: str, model: str, tokens: int = 8) -> Any:
    """Have a model go on for some tokens."""
    return ask(
        address, "/v1/completions", {"model": model, "prompt": "Once upon a time", "max_tokens": tokens}
    )


@contextmanager
def traffic(address: str, *models: str) -> Iterator[None]:
    """Ask each model again and again until the block ends."""
    stop = threading.Event()

    def keep_asking(model: str) -> None:
        while not stop.wait(0.05):
            complete(address, model, 16)

    threads = [threading.Thread(target=keep_asking, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
