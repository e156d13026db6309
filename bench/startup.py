"""The processor time of short commands, beside a bare Python and, given a folder `src`, beside other code.

`python -m bench.startup [SRC]`
"""

import os
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.rows import Row, print_table
from cotenant.demo_model import write_demo_model
from cotenant.store.store import Store
from cotenant.store.writer import Writer

_ROUNDS = 10
_HELP_MS = 150
_CONFIGURED_MS = 350
_CONFIGURATION = """\
server: {host: 127.0.0.1, port: 1}
devices: {gpus: '24GiB'}
models: [{name: m, path: demo.gguf}]
"""
_COMMANDS: Mapping[str, Sequence[str]] = {
    "--help": ("--help",),
    "models": ("models",),
    "models --check": ("models", "--check"),
    "ps, no daemon": ("ps",),
    "gpus": ("gpus",),
    "plan demo.gguf": ("plan", "demo.gguf"),
    "engine list": ("engine", "list"),
    "keys list": ("keys", "list"),
}
_SOURCE = Path(__file__).parent.parent / "src"


def main(other: Path | None = None) -> list[Row]:
    """Run each command in turn, with a configuration and a database; the least of ten rounds counts."""
    with TemporaryDirectory() as folder:
        place = Path(folder)
        write_demo_model(place / "demo.gguf")
        (place / "cotenant.yaml").write_text(_CONFIGURATION)
        # A database such as a daemon leaves, which `models` reads.
        Store(Writer(place / "state" / "cotenant.db")).journal._writer.close()
        bare = _least_s([sys.executable, "-c", "pass"], place, _SOURCE)
        least = {name: float("inf") for name in _COMMANDS}
        before = dict(least)
        for _ in range(_ROUNDS):
            for name, arguments in _COMMANDS.items():
                command = [sys.executable, "-m", "cotenant.cli.main", *arguments]
                least[name] = min(least[name], _cpu_s(command, place, _SOURCE))
                if other is not None:
                    before[name] = min(before[name], _cpu_s(command, place, other))
    rows = []
    for name, seconds in least.items():
        most = _HELP_MS if name == "--help" else _CONFIGURED_MS
        baseline, beside = ("python -c pass", bare) if other is None else (str(other), before[name])
        rows.append(
            Row(
                f"cotenant {name}, processor",
                seconds * 1000,
                "ms",
                baseline,
                seconds / beside,
                f"<= {most} ms",
                seconds * 1000 <= most,
            )
        )
    return [*rows, Row("python -c pass, processor", bare * 1000, "ms")]


def _least_s(command: Sequence[str], place: Path, source: Path) -> float:
    return min(_cpu_s(command, place, source) for _ in range(_ROUNDS))


def _cpu_s(command: Sequence[str], place: Path, source: Path) -> float:
    """Return the processor time of a program, which may fail: `ps` does without a daemon."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("COTENANT_")}
    environment = {**ours, "PYTHONPATH": str(source), "COTENANT_STATE_DIR": str(place / "state")}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        command,
        cwd=place,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    print_table(main(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else None))
