"""Reads the settings of services from their compose files."""

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from cotenant.domain.units import GIB, MIB
from cotenant.services.compose.compose_files import ComposeService, read_project
from cotenant.services.compose.gpu_requests import gpu_requests
from cotenant.services.model import Service, ServiceRole

_PREFIX: Final = "cotenant."
_LABELS: Final = ("vram_mib", "role", "latency_critical", "budget_env", "model", "health", "assignment")
_BUDGET_VARIABLE: Final = "VRAM_BUDGET_GB"
_VARIABLE: Final = re.compile(r"[A-Za-z_]\w*")
_TRUTHS: Final = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def import_services(files: Sequence[Path]) -> tuple[tuple[Service, ...], list[str]]:
    """Read the services that ask for a GPU or carry a `cotenant.*` label, with notes for the operator.

    An invalid label is ignored and noted. A service with the variable VRAM_BUDGET_GB takes its budget from
    it, and needs that much unless a label says otherwise. Raises ComposeFileError.
    """
    notes: list[str] = []
    project = read_project(files)
    services = tuple(
        _Reader(service, notes).service()
        for service in project.services.values()
        if service.gpus or any(label.startswith(_PREFIX) for label in service.labels)
    )
    return services, notes


class _Reader:
    """Converts one service's labels and variables to a Service."""

    def __init__(self, service: ComposeService, notes: list[str]) -> None:
        self._of = service
        self._notes = notes
        self._labels: Mapping[str, str] = {
            name.removeprefix(_PREFIX): value
            for name, value in service.labels.items()
            if name.startswith(_PREFIX)
        }

    def service(self) -> Service:
        for name in self._labels:
            if name not in _LABELS:
                near = difflib.get_close_matches(name, _LABELS, 1)
                meant = f" Did you mean {_PREFIX}{near[0]}?" if near else ""
                self._note(f"the label {_PREFIX}{name} is not known.{meant}")
        budget_env, budget_gb = self._budget()
        vram_bytes = self._vram_bytes()
        if vram_bytes is None and budget_gb is not None:
            vram_bytes = int(budget_gb * GIB)
        if vram_bytes is None:
            self._note("the VRAM that it needs is unknown: add the label cotenant.vram_mib.")
        visible = self._of.environment.get("CUDA_VISIBLE_DEVICES")
        if visible not in (None, "", "0", "all"):
            self._note(
                f"it sets CUDA_VISIBLE_DEVICES={visible}: a container pinned to one GPU sees it as device 0."
            )
        if gpu_requests(self._of.inherited):
            self._note(
                "its request for GPUs comes from `extends`, which podman-compose adds to a pin: "
                "move it into the service itself."
            )
        asked = next((each for each in self._of.gpus if each.ids or each.count), None)
        gpu_count = None if asked is None else len(asked.ids) or asked.count
        if asked is not None and asked.ids:
            self._note(
                f"its compose file names GPU {', '.join(asked.ids)}: a strategy chooses which it gets; "
                f"`cotenant services set {self._of.name}=GPU` sets it."
            )
        elif gpu_count == "all":
            self._note("its compose file asks for all GPUs: remove gpu_count if it needs only one.")
        role = self._role()
        critical = self._labels.get("latency_critical", "false")
        if critical.lower() not in _TRUTHS:
            self._note(f"cotenant.latency_critical is {critical!r}; it can be true or false.")
        return Service(
            self._of.name,
            model=self._labels.get("model") or None,
            vram_bytes=vram_bytes,
            role=role,
            latency_critical=_TRUTHS.get(critical.lower(), False),
            budget_env=budget_env,
            health_url=self._health(),
            gpu_count=None if gpu_count == 1 else gpu_count,
        )

    def _vram_bytes(self) -> int | None:
        text = self._labels.get("vram_mib")
        if text is None:
            return None
        if text.isascii() and text.isdecimal() and 0 < int(text) < 1 << 32:
            return int(text) * MIB
        self._note(f"cotenant.vram_mib is {text!r}, not a whole number of MiB.")
        return None

    def _role(self) -> ServiceRole:
        text = self._labels.get("role", ServiceRole.OTHER)
        try:
            return ServiceRole(text.lower())
        except ValueError:
            self._note(f"cotenant.role is {text!r}; it can be {' or '.join(ServiceRole)}.")
            return ServiceRole.OTHER

    def _budget(self) -> tuple[str | None, float | None]:
        name = self._labels.get("budget_env") or (
            _BUDGET_VARIABLE if _BUDGET_VARIABLE in self._of.environment else None
        )
        if name is None:
            return None, None
        if not _VARIABLE.fullmatch(name):
            self._note(f"cotenant.budget_env is {name!r}, which is not a variable name.")
            return None, None
        try:
            gb = float(self._of.environment.get(name) or "nan")
        except ValueError:
            gb = math.nan
        return name, gb if math.isfinite(gb) and 0 < gb < 1 << 20 else None

    def _health(self) -> str | None:
        text = self._labels.get("health")
        if text is None:
            if self._of.ports and not self._of.has_health_check:
                ports = ", ".join(map(str, self._of.ports))
                self._note(
                    f"it has no health check and publishes {ports}: set `health` if it answers HTTP there."
                )
            return None
        if text.isascii() and text.isdecimal() and 0 < int(text) < 65536:
            return f"http://127.0.0.1:{int(text)}/health"
        if re.match(r"https?://[^/\s]", text):
            return text
        self._note(f"cotenant.health is {text!r}, neither a URL nor a port.")
        return None

    def _note(self, sentence: str) -> None:
        self._notes.append(f"{self._of.name}: {sentence}")
