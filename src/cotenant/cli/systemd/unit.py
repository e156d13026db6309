"""The systemd unit that runs `cotenant serve`."""

import hashlib
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Final

UNIT_NAME: Final = "cotenant.service"
_MARK: Final = "# cotenant service install, checksum "
"""The first line of a unit. It keeps the command's former name, to recognise units of earlier versions."""

_HEAD = """\
[Unit]
Description=Cotenant, which decides what language model sits on which GPU
"""
_AFTER_SYSTEM = """\
Wants=network-online.target
After=network-online.target nvidia-persistenced.service
"""
_SERVICE = """\

[Service]
Type=notify
NotifyAccess=main
ExecStart={command}
ExecReload=/bin/kill -HUP $MAINPID
# Preloading a model may take long; afterwards the event loop must answer the watchdog.
TimeoutStartSec=15min
WatchdogSec=60
# Requests in flight get 30 s and engines 5 s; remaining engines are killed with the whole group.
TimeoutStopSec=60
KillMode=mixed
Restart=on-failure
RestartSec=3
# Wrong settings (2) and a model that does not fit (3) are not fixed by a restart.
RestartPreventExitStatus=2 3
# One engine that runs out of host RAM is handled by the daemon, which keeps running.
OOMPolicy=continue
LimitNOFILE=65536
LimitMEMLOCK=infinity
NoNewPrivileges=yes
LockPersonality=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
"""
_SYSTEM = """\
User={user}
{groups}StateDirectory=cotenant
StateDirectoryMode=0700
Environment=COTENANT_STATE_DIR=%S/cotenant
EnvironmentFile=-/etc/cotenant/environment
# It creates /dev/nvidia-uvm, which may be missing after a boot; the unit itself cannot run setuid programs.
ExecStartPre=-+/usr/bin/nvidia-modprobe -c 0 -u
UMask=0077
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
ReadWritePaths=/tmp /var/tmp
ProtectHome=read-only
ProtectHostname=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
RestrictNamespaces=yes
RemoveIPC=yes
# Left out, because they would hide the GPUs: PrivateDevices, DeviceAllow (device numbers are read before the
# modules may be loaded) and ProtectClock (it allows only the clock), MemoryDenyWriteExecute (CUDA compiles at
# run time), PrivateTmp (other MPS daemons have their sockets there), ProtectProc (other processes are read).
"""
_INSTALL = "\n[Install]\nWantedBy={target}.target\n"


def unit_text(command: Sequence[str], user: str | None = None, groups: Sequence[str] = ()) -> str:
    """Render a unit that runs a command as a user, with a checksum that reveals edits.

    `user` None makes a unit of the user's own service manager. `groups` are further groups of a system unit,
    which give it access to the GPUs.
    """
    service = _SERVICE.format(command=" ".join(map(_word, command)))
    if user is None:
        return signed(_HEAD + service + _INSTALL.format(target="default"))
    further = f"SupplementaryGroups={' '.join(groups)}\n" if groups else ""
    system = _SYSTEM.format(user=user, groups=further) + _INSTALL.format(target="multi-user")
    return signed(_HEAD + _AFTER_SYSTEM + service + system)


def signed(body: str) -> str:
    """Return a unit with its checksum as the first line."""
    return f"{_MARK}{hashlib.sha256(body.encode()).hexdigest()[:16]}\n{body}"


def is_untouched(text: str) -> bool:
    """Whether a unit is unchanged since `cotenant systemd install` wrote it."""
    return text == signed(text.partition("\n")[2])


def unit_path(root: Path, *, user_folder: Path | None) -> Path:
    """Return the unit's path: below `root`, or in the user's configuration folder."""
    if user_folder is not None:
        return root / str(user_folder / "systemd" / "user" / UNIT_NAME).lstrip("/")
    return root / "etc" / "systemd" / "system" / UNIT_NAME


def _word(text: str) -> str:
    """Quote one argument of ExecStart, where `%` and `$` are special to systemd."""
    plain = text.replace("%", "%%").replace("$", "$$")
    if shlex.quote(text) == text:
        return plain
    escaped = plain.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
