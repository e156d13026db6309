"""`cotenant systemd`: run the daemon as a systemd service."""

from __future__ import annotations

import argparse
import grp
import os
import pwd
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cotenant.atomic_files import write_durably
from cotenant.cli.flags import file_path
from cotenant.cli.systemd.unit import UNIT_NAME, is_untouched, unit_path, unit_text
from cotenant.cli.table import print_result
from cotenant.domain.errors import BadSetting, UnitFault
from cotenant.programs.run import Finished, run_program

_RUNNING: Final = Path("/run/systemd/system")
"""This folder exists if systemd is the machine's service manager (sd_booted)."""


def register(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    for name, run, text in (
        ("install", _install, "write the systemd unit; starts nothing without --now"),
        ("uninstall", _uninstall, "stop and disable the daemon and remove its unit"),
        ("status", _status, "show whether the unit is installed, and its state in systemd"),
    ):
        action = actions.add_parser(name, help=text)
        action.set_defaults(run=run)
        scope = action.add_mutually_exclusive_group()
        scope.add_argument(
            "--user", action="store_true", help="a unit of this user (default except for root)"
        )
        scope.add_argument("--system", action="store_true", help="a unit of the machine (default for root)")
        action.add_argument(
            "--root", type=file_path, metavar="FOLDER", help="a root file system other than this machine's"
        )
        if name == "status":
            action.add_argument("--json", action="store_true", help="print JSON; null for unknown")
            continue
        if name == "install":
            action.add_argument(
                "--config", type=file_path, metavar="FILE", help="the configuration that it serves"
            )
            action.add_argument("--run-as", metavar="USER", default="cotenant", help="user of a system unit")
            action.add_argument("--now", action="store_true", help="enable and start it as well")
        action.add_argument("--dry-run", action="store_true", help="show what would be done")
        action.add_argument("--force", action="store_true", help="even if the unit was edited by hand")


@dataclass(frozen=True, slots=True)
class _Target:
    """The unit that a command works on, and the `systemctl` that manages it."""

    path: Path
    for_user: bool
    here: bool

    @classmethod
    def of(cls, args: argparse.Namespace) -> _Target:
        for_user = args.user or (not args.system and os.geteuid() != 0)
        base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
        folder = Path(base).expanduser().absolute() if for_user else None
        return cls(unit_path(args.root or Path("/"), user_folder=folder), for_user, args.root is None)

    @property
    def systemctl(self) -> list[str]:
        return ["systemctl", *(["--user"] if self.for_user else [])]

    @property
    def managed(self) -> bool:
        """Whether systemd runs here and manages the unit."""
        return self.here and _RUNNING.is_dir() and shutil.which("systemctl") is not None

    def command(self, *words: str) -> str:
        return " ".join([*(() if self.for_user else ("sudo",)), *self.systemctl, *words])

    def text(self) -> str | None:
        try:
            return self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise UnitFault(f"{self.path} cannot be read: {error}", hint="Check it, or remove it.") from None


def _install(args: argparse.Namespace) -> int:
    target = _Target.of(args)
    text, before = _unit_text(args, target), target.text()
    _refuse_edited(target, args, "overwritten")
    if args.dry_run:
        print(f"Would write {target.path}:", "", text, sep="\n")
        return 0
    if text == before:
        print(f"{target.path} is up to date.")
    else:
        try:
            target.path.parent.mkdir(parents=True, exist_ok=True)
            write_durably(target.path, text.encode(), 0o644)
        except OSError as error:
            raise _cannot(target.path, "written", error) from None
        print(f"{'Wrote' if before is None else 'Replaced'} {target.path}.")
        if target.managed:
            _systemctl(target, "daemon-reload")
    _print_missing(args, target)
    if args.now and target.managed:
        _systemctl(target, "enable", "--now", UNIT_NAME)
        print("It is enabled and started.")
        return 0
    if args.now:
        print("systemd is not running here, so nothing was started.")
    print("It is neither enabled nor started yet. To do both:")
    print(f"  {target.command('daemon-reload')}")
    print(f"  {target.command('enable', '--now', UNIT_NAME)}")
    if target.for_user:
        print("To keep it running while you are logged out: sudo loginctl enable-linger $USER")
    return 0


def _unit_text(args: argparse.Namespace, target: _Target) -> str:
    default = Path("~/.config/cotenant").expanduser() if target.for_user else Path("/etc/cotenant")
    config: Path = (args.config or default / "cotenant.yaml").absolute()
    if args.config is not None and target.here and not config.is_file():
        raise BadSetting(f"{config} does not exist or is not a file", hint="Check --config.")
    if any(not character.isprintable() for character in str(config)):
        raise BadSetting(
            f"--config {str(config)!r} has characters that a unit cannot hold", hint="Rename it."
        )
    script = Path(sys.executable).parent / "cotenant"
    program = [str(script)] if script.is_file() else [sys.executable, "-m", "cotenant.cli.main"]
    command = [*program, "serve", "--config", str(config)]
    if target.for_user:
        return unit_text(command)
    if not re.fullmatch(r"[a-z_][a-z0-9_-]{0,30}\$?", args.run_as):
        raise BadSetting(f"--run-as {args.run_as!r} is not a user name", hint="Use letters, digits, - and _.")
    # A group that does not exist keeps a unit from starting at all.
    groups = [name for name in ("video", "render") if not target.here or _exists(grp.getgrnam, name)]
    return unit_text(command, args.run_as, groups)


def _print_missing(args: argparse.Namespace, target: _Target) -> None:
    if not target.here:
        return
    if not target.for_user and not _exists(pwd.getpwnam, args.run_as):
        print(f"The user {args.run_as} does not exist yet:")
        print(f"  sudo useradd --system --home-dir /var/lib/cotenant --shell /usr/sbin/nologin {args.run_as}")
    if args.config is None:
        folder = "~/.config/cotenant" if target.for_user else "/etc/cotenant"
        print(f"It serves {folder}/cotenant.yaml; --config names another file.")


def _uninstall(args: argparse.Namespace) -> int:
    target = _Target.of(args)
    if target.text() is None:
        print(f"{target.path} does not exist: nothing to do.")
        return 0
    _refuse_edited(target, args, "removed")
    if args.dry_run:
        if target.managed:
            print(f"Would run: {target.command('disable', '--now', UNIT_NAME)}")
        print(f"Would remove {target.path}")
        return 0
    if target.managed:
        _systemctl(target, "disable", "--now", UNIT_NAME)
    try:
        target.path.unlink()
    except OSError as error:
        raise _cannot(target.path, "removed", error) from None
    if target.managed:
        _systemctl(target, "daemon-reload")
    print(f"Removed {target.path}. Models, configuration and state are kept.")
    return 0


def _status(args: argparse.Namespace) -> int:
    target = _Target.of(args)
    text = target.text()
    unit = "absent" if text is None else "installed" if is_untouched(text) else "edited"
    enabled = active = None
    if target.managed and text is not None:
        enabled, active = (
            _run(target, what, UNIT_NAME).output.strip() or None for what in ("is-enabled", "is-active")
        )
    lines = [f"{target.path}: {unit}"]
    if enabled is not None:
        lines.append(f"systemd reports: {enabled}, {active}")
    elif not target.managed and target.here:
        lines.append("systemd is not running here, or `systemctl` is missing.")
    facts = {"path": str(target.path), "unit": unit, "enabled": enabled, "active": active}
    print_result(args, facts, lines)
    return 0 if text is not None else 1


def _refuse_edited(target: _Target, args: argparse.Namespace, what: str) -> None:
    text = target.text()
    if text is not None and not is_untouched(text) and not args.force:
        raise UnitFault(
            f"{target.path} was edited or not written by Cotenant, and is not {what}",
            hint="Put your changes into a drop-in (`systemctl edit cotenant`), then use --force.",
        )


def _cannot(path: Path, what: str, error: OSError) -> UnitFault:
    hint = "Run it with sudo, or give --user." if isinstance(error, PermissionError) else "Check the folder."
    return UnitFault(f"{path} cannot be {what}: {error.strerror}", hint=hint)


def _systemctl(target: _Target, *words: str) -> None:
    done = _run(target, *words)
    if not done.ok:
        said = " ".join(done.failure_text.split())[:200] or "no reason given"
        raise UnitFault(
            f"`{target.command(*words)}` failed: {said}",
            hint=f"The unit is at {target.path}; see `journalctl -u cotenant`.",
        )


def _run(target: _Target, *words: str) -> Finished:
    return run_program([*target.systemctl, *words], 90.0, merge_errors=False)


def _exists(find: Callable[[str], object], name: str) -> bool:
    try:
        find(name)
    except KeyError:
        return False
    return True
