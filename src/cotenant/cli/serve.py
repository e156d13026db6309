"""`cotenant serve`: plan a model, load it, and answer OpenAI's API until told to stop."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cotenant.cli.plan_input import PlanInput, add_model_options, model_path, read_plan_input
from cotenant.cli.recipe_options import file_path, flag, switch, whole
from cotenant.cli.render import (
    analysis_lines,
    comparison_lines,
    device_lines,
    placement_lines,
    recipe_line,
    refusal_lines,
    warning_lines,
)
from cotenant.domain.errors import UnsupportedModelFile, UsageError
from cotenant.domain.placements import Placement, Refusal
from cotenant.domain.units import format_duration, parse_duration

if TYPE_CHECKING:
    from cotenant.analysis.calibration import Comparison
    from cotenant.daemon.main import AfterReady
    from cotenant.interfaces import Engine


def register(subparsers: Any) -> None:
    """Add the command to the parser's commands."""
    parser = subparsers.add_parser("serve", help="load a model and serve it behind OpenAI's API")
    add_serve_options(parser)
    parser.set_defaults(run=run)


def add_serve_options(parser: argparse.ArgumentParser) -> None:
    """Add the model, its recipe, and what the server is told."""
    add_model_options(parser)
    group = parser.add_argument_group("server")
    flag(group, "--host", str, "127.0.0.1", "ADDRESS", "address to listen on")
    flag(group, "--port", whole("--port", 0), 8080, "N", "port to listen on; 0: any free one")
    flag(group, "--name", str, "", "NAME", "name that clients use (default: the file's; `local` works too)")
    group.add_argument(
        "--api-key", action="append", default=[], metavar="KEY", help="key that clients must send"
    )
    flag(group, "--api-key-file", file_path, None, "FILE", "file with one key a line")
    switch(group, "--insecure", False, "listen on a public address without a key")
    flag(group, "--max-queue", whole("--max-queue", 0), 256, "N", "requests that may wait for a slot")
    flag(group, "--timeout", parse_duration, "10m", "TIME", "how long a request waits for a slot")
    engine = parser.add_argument_group("engine")
    flag(engine, "--llama-server", file_path, None, "FILE", "use this llama-server")
    flag(engine, "--load-timeout", parse_duration, "10m", "TIME", "how long the model may take to load")
    switch(engine, "--use-fit-params", False, "leave layers and split to llama.cpp's own fitting")


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT."""
    path = model_path(args)
    if path is None:
        raise UsageError("no model is given", hint="cotenant serve --model FILE.gguf")
    serve_model(args, path)
    return 0


def serve_model(args: argparse.Namespace, path: Path, after_ready: AfterReady | None = None) -> None:
    """Plan, load and serve one model file, telling on standard output how it goes."""
    from cotenant.daemon.main import Job
    from cotenant.daemon.main import run as run_daemon

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if path.is_dir():
        raise UnsupportedModelFile(
            f"{path} is a Hugging Face folder, which can be planned but not served yet",
            hint="Give a GGUF file: llama.cpp runs no other.",
        )
    given = read_plan_input(args, path, name=args.name or None)
    job = Job(_settings(args, given), given.request, given.inventory, given.budgets)
    run_daemon(job, _Terminal(given), after_ready)


def api_keys(args: argparse.Namespace) -> tuple[str, ...]:
    """Return the keys that clients may use, from flags, environment and file. Raises BadSetting."""
    from cotenant.daemon.settings import read_api_keys

    keys = args.api_key or [key for key in [os.environ.get("COTENANT_API_KEY")] if key]
    return read_api_keys(keys, args.api_key_file)


def _settings(args: argparse.Namespace, given: PlanInput) -> Any:
    from cotenant.daemon.settings import ServeSettings

    return ServeSettings(
        model_path=given.path,
        name=given.request.name,
        recipe=given.request.recipe,
        rules=given.rules,
        host=args.host,
        port=args.port,
        api_keys=api_keys(args),
        insecure=args.insecure,
        projector_path=given.projector_path,
        llama_server=args.llama_server,
        use_fit_params=args.use_fit_params,
        load_timeout_s=args.load_timeout,
        wait_timeout_s=args.timeout,
        max_queue=args.max_queue,
    )


class _Terminal:
    """Announces on standard output."""

    def __init__(self, given: PlanInput) -> None:
        self._given = given

    def planned(self, result: Placement | Refusal) -> None:
        given = self._given
        _print(*analysis_lines(given.path, given.shape), "", recipe_line(given.request.recipe))
        _print(*device_lines(given.inventory, given.budgets, given.rules.order), "")
        _print(*(placement_lines(result) if isinstance(result, Placement) else refusal_lines(result)))
        _print(*warning_lines(result.warnings))

    def note(self, text: str) -> None:
        _print(text)

    def ready(self, address: str, engine: Engine, load_s: float, rows: tuple[Comparison, ...]) -> None:
        build = engine.build
        _print("", f"Loaded in {format_duration(load_s)} by {build.form} {build.version}, pid {engine.pid}.")
        if rows:
            _print(*comparison_lines(rows, "Planned / reported by the engine"))
        else:
            _print("The engine did not report its memory; its log says why.")
        _print(f"Engine log: {engine.log_path}", f"Serving {self._given.request.name} at {address}/v1")


def _print(*lines: str) -> None:
    if lines:
        print(*lines, sep="\n", flush=True)
