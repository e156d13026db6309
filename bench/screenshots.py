"""`make screenshots`: every page of the console, light and dark, wide and narrow, to docs/screenshots/.

The models are files with the headers of real ones and zeros for weights, served by `demo_engine` on described
cards; the services are a stand-in docker's. Everything else is the daemon itself.
"""

import contextlib
import io
import json
import shutil
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any

import yaml
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from tests.browser.site import SERVICES, Site, ask
from tests.support.browser import browsing, chromium, tab
from tests.support.daemon.serving import Serving
from tests.support.models import gguf_models

Colour = tuple[int, int, int]
_FOLDER = Path(__file__).resolve().parents[1] / "docs" / "screenshots"
_SIZES = {"wide": (1440, 900), "narrow": (390, 844)}
_COLOURS = 256
_TELLING = 30
"""Squared distance of colours from which on they are kept apart."""
_TRAFFIC_S = 60.0
_CARDS = [
    {
        "name": "RTX A5500",
        "uuid": "GPU-1f8a5500",
        "total_mib": 24564,
        "used_mib": 3605,
        "processes": [{"pid": 4100, "name": "python3", "used_mib": 3605}],
        "utilisation_percent": 71,
        "temperature_c": 64,
        "power_w": 187.5,
    },
    {
        "name": "GeForce RTX 3090",
        "uuid": "GPU-2c903090",
        "total_mib": 24576,
        "used_mib": 412,
        "processes": [{"pid": 1822, "name": "Xorg", "used_mib": 412}],
        "utilisation_percent": 38,
        "temperature_c": 57,
        "power_w": 214.0,
    },
    {
        "name": "RTX A400",
        "uuid": "GPU-3b77a400",
        "total_mib": 4094,
        "used_mib": 329,
        "processes": [{"pid": 1822, "name": "Xorg", "used_mib": 329}],
        "utilisation_percent": 4,
        "temperature_c": 41,
        "power_w": 12.5,
    },
]
_MODELS: dict[str, dict[str, Any]] = {
    "qwen3-30b-a3b": {"file": "qwen3-30b-a3b", "gpu": 0, "mib": 18730, "word_s": 0.04},
    "llama-3.1-8b-instruct": {
        "file": "llama-8b",
        "gpu": 1,
        "mib": 6120,
        "word_s": 0.01,
        "aliases": ["gpt-4o-mini"],
        "says": (4685.3, 1024.0, 124.5),
    },
    "gemma-3-12b-it": {"file": "gemma3-12b", "gpu": 1, "mib": 8790, "word_s": 0.03, "load_s": 600},
    "llama-3.2-3b-instruct": {"file": "llama-3b-tied", "gpu": 2, "mib": 2710, "ctx": 2048, "pinned": True},
    "deepseek-v2-lite-chat": {"file": "deepseek-v2-lite", "gpu": 1, "mib": 10900},
    "llama-3.1-70b-instruct": {"file": "llama-70b"},
    "deepseek-v3-0324-q4_k_m-imatrix-with-a-long-name": {"file": "deepseek-v3"},
}
_SPLIT, _TOO_LARGE = list(_MODELS)[-2:]
_SAYS = (
    "0.31 I load_tensors:   CPU_Mapped model buffer size = {:8.2f} MiB\n"
    "0.52 I llama_kv_cache:        CPU KV buffer size = {:8.2f} MiB\n"
    "0.55 I sched_reserve:        CPU compute buffer size = {:8.2f} MiB"
)
_ASKED = {"qwen3-30b-a3b": 6, "llama-3.1-8b-instruct": 3, "llama-3.2-3b-instruct": 1}
"""How many clients ask each model: those beyond its slots wait."""


_QUIET = """() => {
  document.activeElement?.blur();
  document.documentElement.style.scrollbarGutter = "auto";
  for (const row of document.querySelectorAll("#models > tr")) row.style.contentVisibility = "visible";
  scrollTo(0, 0);
}"""


def main() -> int:
    executable = chromium()
    if executable is None:
        print("No Chromium is here, and it could not be installed: apt-get install chromium (needs root).")
        return 1
    _FOLDER.mkdir(parents=True, exist_ok=True)
    # Paths are seen in the pictures, so that they are to be the same each time.
    folder = Path(tempfile.gettempdir()) / "demo"
    folder.mkdir()
    try:
        with _daemon(folder) as daemon, _asking(daemon.address()), browsing(executable) as browser:
            _prepare(daemon.address())
            time.sleep(_TRAFFIC_S)
            _pictures(browser, daemon.address())
        with _locked(folder / "locked") as daemon, browsing(executable) as browser:
            _each_way(browser, daemon.address(), "login", "/", lambda page: None)
    finally:
        shutil.rmtree(folder)
    total = sum(path.stat().st_size for path in _FOLDER.glob("*.png"))
    print(f"{len(list(_FOLDER.glob('*.png')))} pictures, {total / 1e6:.2f} MB, in {_FOLDER}")
    return 0


@contextmanager
def _daemon(folder: Path) -> Iterator[Serving]:
    site = Site(folder, services=SERVICES, gpus=None)
    cards = folder / "machine.yaml"
    cards.write_text(json.dumps({"live": True, "gpus": _CARDS}), encoding="utf-8")
    settings = yaml.safe_load(site.config.read_text(encoding="utf-8"))
    settings["devices"] = {"gpus": str(cards), "reserve_mib": 512}
    settings["defaults"] = {"keep_alive": "10m", "parallel": 4, "ctx": 8192}
    settings["models"] = [_entry(name, told, folder, cards) for name, told in _MODELS.items()]
    site.config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    program = folder / "llama-server"
    program.write_text(
        f'#!/bin/sh\nexec {sys.executable} {Path(__file__).with_name("demo_engine.py")} "$@"\n'
    )
    program.chmod(0o755)
    argv = ["serve", "--config", str(site.config), "--port", "0", "--llama-server", str(program)]
    with Serving(argv, folder / "state", site.env) as daemon:
        daemon.address()
        yield daemon
        daemon.terminate()


def _entry(name: str, told: dict[str, Any], folder: Path, cards: Path) -> dict[str, Any]:
    path = folder / f"{name}.gguf"
    gguf_models.REAL_SHAPES[told["file"]](path)
    env = {
        "DEMO_CARDS": str(cards),
        "DEMO_TAKES": f"{told.get('gpu', 0)}:{told.get('mib', 0)}",
        "DEMO_SAYS": _SAYS.format(*told.get("says", (0, 0, 1))),
        "DEMO_WORD_S": str(told.get("word_s", 0.02)),
        "DEMO_LOAD_S": str(told.get("load_s", 1.5)),
    }
    more = {key: told[key] for key in ("aliases", "pinned", "ctx") if key in told}
    if "gpu" in told:
        more["gpus"] = [told["gpu"]]
    return {"name": name, "path": str(path), "env": env, **more}


@contextmanager
def _locked(folder: Path) -> Iterator[Serving]:
    site = Site(folder, models={"tiny": {}}, services=(), server={"api_keys": ["a key for pictures"]})
    with site.daemon() as daemon:
        yield daemon


def _prepare(address: str) -> None:
    ask(address, "/api/models/gemma-3-12b-it/load?wait=0", {})
    with contextlib.suppress(urllib.error.HTTPError):
        ask(address, "/v1/completions", {"model": _TOO_LARGE, "prompt": "Hello"})
    by_hand = [{"service": str(each["name"]), "gpu_index": 0} for each in SERVICES[1:4]]
    by_hand.append({"service": "ai-enrichment", "gpu_index": 2})
    configuration = "/api/system/gpu-config"
    ask(address, configuration, {"strategy": "manual", "assignments": by_hand}, method="PUT")
    ask(address, f"{configuration}/apply", {})


@contextmanager
def _asking(address: str) -> Iterator[None]:
    stop = threading.Event()

    def client(model: str, number: int) -> None:
        while not stop.wait(0.2 * number):
            # A daemon that is ending answers no more.
            try:
                _chat_once(address, model)
            except (urllib.error.URLError, OSError, HTTPException):
                return

    threads = [
        threading.Thread(target=client, args=(model, number), daemon=True)
        for model, count in _ASKED.items()
        for number in range(count)
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()


def _chat_once(address: str, model: str) -> None:
    messages = [{"role": "user", "content": "Who shares this card?"}]
    asked = {"model": model, "messages": messages, "max_tokens": 48, "stream": True}
    request = urllib.request.Request(
        f"{address}/v1/chat/completions",
        data=json.dumps(asked).encode(),
        headers={"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        response.read()


def _pictures(browser: Browser, address: str) -> None:
    _each_way(browser, address, "analyse", "/analyse", _analyse)
    _each_way(browser, address, "gpu-configuration", "/gpu-configuration", _change)
    _each_way(browser, address, "events", "/events", lambda page: None)
    _each_way(browser, address, "doctor", "/doctor", _examined)
    # Last, so that their plots have something to show.
    _each_way(browser, address, "model", "/models/llama-3.1-8b-instruct", _chat)
    _each_way(browser, address, "overview", "/", lambda page: None)


def _chat(page: Page) -> None:
    page.get_by_label("Message").fill("How do you share a card?")
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    expect(page.get_by_role("log")).to_contain_text("come back when")


def _analyse(page: Page) -> None:
    page.locator("#model").select_option(_SPLIT)
    expect(page.locator("#analysis h2").first).to_have_text(_SPLIT)
    page.get_by_role("radio", name="Described").check()
    page.locator("#gpus").fill("24GiB,24GiB,12GiB")
    page.locator("#n_ctx").fill("32768")
    expect(page.locator("#analysis")).to_contain_text("81 of 81 layers on 3 GPUs")


def _change(page: Page) -> None:
    page.get_by_label("GPU of ai-llm").select_option("0")
    page.get_by_text("Preview changes").click()


def _examined(page: Page) -> None:
    expect(page.locator("main")).not_to_contain_text("Looking")


def _each_way(browser: Browser, address: str, name: str, path: str, act: Any) -> None:
    for size, (width, height) in _SIZES.items():
        for scheme in ("light", "dark"):
            with tab(browser, address, width=width, height=height, dark=scheme == "dark") as look:
                page = look.open(path)
                act(page)
                # Plots ask for their history after the page is there.
                page.wait_for_timeout(1200)
                page.evaluate(_QUIET)
                _write(page.screenshot(full_page=True), f"{name}-{size}-{scheme}.png")
                print(f"{name} {size} {scheme}: {look.overflow()} px too wide")


def _write(picture: bytes, name: str) -> None:
    """Keep a picture in few colours: it is a third of the size and looks the same."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    counted: list[tuple[int, Any]] = sorted(image.getcolors(image.width * image.height) or (), reverse=True)
    kept = _apart([colour for _, colour in counted])
    number = {
        colour: min(range(len(kept)), key=lambda at: _distance(kept[at], colour)) for _, colour in counted
    }
    few = Image.new("P", image.size)
    few.putpalette([value for colour in kept for value in colour])
    values = image.tobytes()
    few.putdata([number[colour] for colour in zip(values[0::3], values[1::3], values[2::3], strict=True)])
    few.save(_FOLDER / name, optimize=True)


def _apart(colours: Sequence[Colour]) -> list[Colour]:
    """Return the commonest colours that can be told apart, so that small areas keep theirs too."""
    kept: list[Colour] = []
    for colour in colours:
        if all(_distance(colour, other) > _TELLING for other in kept):
            kept.append(colour)
        if len(kept) == _COLOURS:
            break
    return kept


def _distance(one: Colour, other: Colour) -> int:
    return sum((a - b) ** 2 for a, b in zip(one, other, strict=True))


if __name__ == "__main__":
    sys.exit(main())
