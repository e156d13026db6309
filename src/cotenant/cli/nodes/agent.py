"""`cotenant agent`: run engines on this machine for a daemon on another one; programs start it."""

import argparse
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cotenant.cli.flags import file_path
from cotenant.daemon.log_format import LogFormat, log_to_stderr
from cotenant.nodes.paths import AgentFolder


def register(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    parser.add_argument("--fleet", default="default", metavar="NAME", help="the fleet (default: default)")
    parser.add_argument("--name", metavar="NAME", help="what the machine is called (default: its host name)")
    parser.add_argument("--state-dir", type=Path, metavar="FOLDER", help="where it keeps logs and its lease")
    parser.add_argument(
        "--socket", type=Path, metavar="PATH", help="where it answers (default: in that folder)"
    )
    parser.add_argument("--llama-server", type=file_path, metavar="FILE", help="use this llama-server")
    parser.add_argument("--gpus", metavar="SPEC", help="GPUs to assume in place of those of this machine")


def run(args: argparse.Namespace) -> int:
    """Answer calls until SIGTERM or SIGINT; print the socket once it does."""
    from cotenant.agent.agent import AgentOptions
    from cotenant.agent.main import run as run_agent

    log_to_stderr(LogFormat.TEXT)
    folder = AgentFolder(args.state_dir.resolve()) if args.state_dir else AgentFolder.of(args.fleet)
    sock = args.socket or folder.socket
    name = args.name or socket.gethostname()
    options = AgentOptions(args.fleet, name, folder.path, args.llama_server, examine=_examine)
    run_agent(options, sock, gpus=args.gpus, on_ready=lambda: print(os.fspath(sock), flush=True))
    return 0


def _examine(llama_server: Path | None) -> Mapping[str, Any]:
    """Check the machine as `cotenant doctor` does, but for what is the daemon's."""
    from cotenant.cli.doctor import as_json
    from cotenant.doctor.host_context import HostContext
    from cotenant.doctor.runner import MACHINE_CHECKS, run_checks
    from cotenant.state_dir import state_dir

    host = HostContext(state_dir=state_dir(), llama_server=llama_server)
    return as_json(run_checks(host, MACHINE_CHECKS))
