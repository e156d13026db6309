"""Programs that run models, and the GPUs that each sees."""

from __future__ import annotations

from collections.abc import Iterator

from cotenant.doctor.findings import Area, Finding, ok, problem, warning
from cotenant.doctor.host_context import Patient
from cotenant.domain.engines import EngineBuild
from cotenant.domain.errors import EngineMissing
from cotenant.engines.llama_cpp.builds import discover


def builds(patient: Patient) -> Iterator[Finding]:
    """Look for an engine that can use the cards of this machine."""
    try:
        found = discover(patient.llama_server).all
    except EngineMissing as error:
        yield problem(Area.ENGINES, error.message, "Nothing runs without it.", error.hint)
        return
    usable = [build for build in found if build.problem is None]
    for build in found:
        yield _build(build)
    cards = patient.cards()
    if not usable:
        yield problem(
            Area.ENGINES,
            "no engine can run on this machine",
            "No model can be loaded.",
            f"cotenant engine install {_flavour(patient) if cards else 'cpu'}",
        )
    elif cards and not any(build.sees_gpus for build in usable):
        yield problem(
            Area.ENGINES,
            f"no engine sees the GPUs ({', '.join(card.label for card in cards)})",
            "They are built for the CPU alone, or without code for these cards: models on GPUs are refused.",
            f"cotenant engine install {_flavour(patient)}",
        )


def _build(build: EngineBuild) -> Finding:
    if build.problem is not None:
        return warning(
            Area.ENGINES,
            f"{build.form} ({build.program}) does not run: {build.problem}",
            "It is passed over.",
        )
    sees = ", ".join(f"{device.name} ({device.description})" for device in build.devices)
    return ok(Area.ENGINES, f"{build.form} {build.version} {f'sees {sees}' if sees else 'runs on the CPU'}")


def _flavour(patient: Patient) -> str:
    return "cuda" if patient.nvidia_cards() else "rocm"
