"""What people see of one machine and of three, of which one is silent: commands, console, metrics.

COTENANT_WRITE_SNAPSHOTS=1 writes the snapshots anew; what it changes is to be read.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from cotenant.cli.main import main
from cotenant.domain.decisions import DeviceStatus, ModelStatus, NodeStatus
from cotenant.domain.units import GIB
from tests.cli.test_daemon_commands import running
from tests.console.looking import gateway, look
from tests.gateway.harness import SlotRouter, fetch, serving
from tests.support.daemon.plain_nodes import READY, SILENT, PlainNodes
from tests.support.daemon.plain_operator import CARD, HOST, PlainOperator

_FOLDER = Path(__file__).with_name("snapshots")
_LLAMA = ModelStatus(
    "org/llama",
    "ready",
    devices=("GPU-a",),
    bytes_by_device={"GPU-a": 8 * GIB},
    predicted_bytes=8 * GIB,
    measured_bytes=8 * GIB,
)
_COLD = ModelStatus("cold", "cold")
_SAYS = "node b has not answered for 4.0 s"


@dataclass(frozen=True)
class Seen:
    """Machines, their devices and models; no machine has a name if there is only one."""

    models: Sequence[ModelStatus]
    devices: Sequence[DeviceStatus]
    nodes: Sequence[NodeStatus] = ()

    def operator(self) -> PlainOperator:
        return PlainOperator(*self.models, devices=self.devices)

    def book(self) -> PlainNodes | None:
        return PlainNodes(*self.nodes) if self.nodes else None


ONE = Seen((_LLAMA, _COLD), (CARD, HOST))
THREE = Seen(
    (
        replace(_LLAMA, node="a", launcher="ray"),
        replace(_COLD, state="suspended", devices=("GPU-b",), node="b", launcher="ray"),
    ),
    (
        replace(CARD, node="a"),
        replace(CARD, uuid="GPU-b", node="b", left_out=_SAYS),
        replace(CARD, uuid="GPU-c", node="c", claimed_bytes=0, foreign_bytes=0, free_bytes=24 * GIB),
        *(replace(HOST, uuid=f"host@{node}", node=node) for node in "abc"),
    ),
    (READY, SILENT, replace(READY, name="c", address="10.0.0.3", engines=0)),
)
_WORLDS = pytest.mark.parametrize(("name", "seen"), [("one", ONE), ("three", THREE)])


def same(name: str, text: str) -> None:
    """Compare a text with its snapshot."""
    path = _FOLDER / f"{name}.txt"
    if os.environ.get("COTENANT_WRITE_SNAPSHOTS"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@_WORLDS
def test_what_commands_print(name: str, seen: Seen, capsys: pytest.CaptureFixture[str]) -> None:
    shown = []
    with running(seen.operator(), nodes=seen.book()) as address:
        for argv in (("nodes", "list"), ("ps",), ("top", "--once")):
            assert main([*argv, "--address", address]) == 0
            shown += [f"$ cotenant {' '.join(argv)}", capsys.readouterr().out]
        # What follows about this machine itself is not for a snapshot.
        main(["gpus", "--address", address])
        _, _, machines = capsys.readouterr().out.partition("GPUs of the daemon's machines")
        shown += ["$ cotenant gpus", machines]
    text = re.sub(r"http://\S+  (.+)  \d\d:\d\d:\d\d", r"ADDRESS  \1  TIME", "\n".join(shown))
    same(f"commands_{name}", text)


@_WORLDS
async def test_what_the_console_shows(name: str, seen: Seen) -> None:
    page = (await look(gateway(seen.operator(), nodes=seen.book()), "/")).text
    # Headings of machines and their cards: their identifiers and classes, and what is read.
    parts = re.findall(r'<(?:div|article|li|section) id="((?:node|card)-[^"]+)" class="([^"]+)"', page)
    starts = [page.index(f'id="{identifier}"') for identifier, _ in parts]
    lines = []
    for (identifier, classes), start, end in zip(parts, starts, [*starts[1:], None], strict=True):
        body = page[start:end].partition(">")[2].partition("</article>")[0].rpartition("<")[0]
        read = " ".join(re.sub(r"<[^>]*>", " ", body).split())
        lines.append(f"{identifier} ({classes}): {read}")
    same(f"console_{name}", "\n".join(lines) + "\n")


@_WORLDS
async def test_what_prometheus_scrapes(name: str, seen: Seen) -> None:
    async with serving(SlotRouter(None), seen.operator(), nodes=seen.book()) as port:
        text = (await fetch(port, "GET", "/metrics")).body.decode()
    kept = r"cotenant_(node_\w+|model_state|model_predicted_bytes|model_loads_total|gpu_memory_used_bytes)\{"
    same(f"metrics_{name}", "".join(f"{x}\n" for x in text.splitlines() if re.match(kept, x)))
