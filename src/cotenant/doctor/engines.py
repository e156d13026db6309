"""Checks of the engines and the GPUs that each sees."""

from collections.abc import Iterator

from cotenant.doctor.findings import Observation, ok, problem, warning
from cotenant.doctor.host_context import HostContext
from cotenant.domain.errors import EngineMissing
from cotenant.engines.llama_cpp.builds import discover


def builds(host: HostContext) -> Iterator[Observation]:
    """Check for an engine that can use the cards of this machine."""
    try:
        found = discover(host.llama_server).all
    except EngineMissing as error:
        yield problem(error.message, "Nothing runs without it.", error.hint)
        return
    usable = [build for build in found if build.problem is None]
    for build in found:
        if build.problem is not None:
            what = f"{build.form} ({build.program}) does not run: {build.problem}"
            yield warning(what, "It is not used.")
        else:
            sees = ", ".join(f"{device.name} ({device.description})" for device in build.devices)
            yield ok(f"{build.form} {build.version} {f'sees {sees}' if sees else 'runs on the CPU'}")
    cards = host.cards()
    flavour = next((card.vendor.traits.backend for card in cards if card.vendor), "cpu")
    if not usable:
        yield problem(
            "no engine can run on this machine",
            "No model can be loaded.",
            f"cotenant engine install {flavour}",
        )
    elif cards and not any(build.sees_gpus for build in usable):
        yield problem(
            f"no engine sees the GPUs ({', '.join(card.label for card in cards)})",
            "They are built for the CPU only, or without code for these cards: models on GPUs are refused.",
            f"cotenant engine install {flavour}",
        )
