"""How a service requests GPUs in a compose file, in each form that compose commands accept."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cotenant.services.model import GpuCount

RESERVED_DEVICES: Final = ("deploy", "resources", "reservations", "devices")
CDI_GPU: Final = "nvidia.com/gpu="
"""The prefix of a GPU's name in the Container Device Interface."""

_VISIBLE: Final = "NVIDIA_VISIBLE_DEVICES"
_NONE: Final = ("void", "none")
_NODE: Final = "/dev/nvidia"
_CDI_GPUS: Final = (CDI_GPU, "amd.com/gpu=")
AMD_COMPUTE: Final = "/dev/kfd"
AMD_RENDER: Final = "/dev/dri"
"""The device file that all AMD cards share, and the folder of those of each card."""


@dataclass(frozen=True, slots=True)
class GpuRequest:
    """One place where a service requests GPUs.

    `path` are the keys that lead there from the service. `ids` are the GPUs it names, none if it takes any or
    all. `kept` are the other entries of the same list, which are not GPUs. `count` is how many it asks for,
    None if it does not say.
    """

    path: tuple[str, ...]
    ids: tuple[str, ...] = ()
    kept: tuple[Any, ...] = ()
    count: GpuCount | None = None


def gpu_requests(service: Mapping[str, Any]) -> tuple[GpuRequest, ...]:
    """Return every place where a service's definition requests GPUs."""
    return tuple(_requests(service))


def _requests(service: Mapping[str, Any]) -> Iterator[GpuRequest]:
    reserved: Any = service
    for key in RESERVED_DEVICES:
        reserved = reserved.get(key) if isinstance(reserved, Mapping) else None
    wanted = [entry for entry in as_list(reserved) if _requests_gpu(entry)]
    if wanted:
        kept = tuple(entry for entry in as_list(reserved) if not _requests_gpu(entry))
        yield GpuRequest(RESERVED_DEVICES, _named(wanted), kept, _count(wanted))
    short = service.get("gpus")
    if short and short != "0":
        entries = [each if isinstance(each, Mapping) else {"count": each} for each in as_list(short)]
        yield GpuRequest(("gpus",), _named(entries), count=_count(entries))
    variable = "AMD_VISIBLE_DEVICES" if service.get("runtime") == "amd" else _VISIBLE
    visible = environment_of(service).get(variable)
    ids = () if visible in (None, "", "all", *_NONE) else _split(str(visible))
    if service.get("runtime") in ("nvidia", "amd") and visible not in _NONE:
        yield GpuRequest(("runtime",), ids)
    elif visible == "all" or ids:
        # Docker's default runtime may be NVIDIA's.
        yield GpuRequest(("environment", variable), ids)
    listed = as_list(service.get("devices"))
    sources = [str(entry.get("source") if isinstance(entry, Mapping) else entry) for entry in listed]
    # Others than GPUs of AMD have render nodes, but only these the compute device.
    prefixes: tuple[str, ...] = (*_CDI_GPUS, _NODE)
    if any(source.startswith(AMD_COMPUTE) for source in sources):
        prefixes += (AMD_COMPUTE, AMD_RENDER)
    if any(source.startswith(prefixes) for source in sources):
        others = tuple(
            entry for entry, source in zip(listed, sources, strict=True) if not source.startswith(prefixes)
        )
        names = tuple(source.partition("=")[2] for source in sources if source.startswith(_CDI_GPUS))
        nodes = [source.partition(":")[0].removeprefix(_NODE) for source in sources]
        names += tuple(node for node in nodes if node.isdecimal())
        yield GpuRequest(("devices",), () if "all" in names else names, others)


def _named(entries: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    given = [str(name) for entry in entries for name in as_list(entry.get("device_ids"))]
    ids = tuple(name for each in given for name in _split(each.removeprefix(CDI_GPU)))
    return ids if "all" not in ids and all(entry.get("device_ids") for entry in entries) else ()


def _count(entries: Sequence[Mapping[str, Any]]) -> GpuCount | None:
    ids = _named(entries)
    counts = [str(len(ids))] if ids else [str(entry.get("count")) for entry in entries]
    if not {"all", "-1"}.isdisjoint(counts):
        return "all"
    return sum(int(each) for each in counts if each.isdecimal() and len(each) < 5) or None


def _split(names: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in names.split(","))


def _requests_gpu(entry: object) -> bool:
    return (isinstance(entry, Mapping) and str(entry.get("count")) != "0") and (
        any("gpu" in as_list(each) for each in as_list(entry.get("capabilities")))
        or entry.get("driver") == "nvidia"
        or any(str(name).startswith(CDI_GPU) for name in as_list(entry.get("device_ids")))
    )


def environment_of(service: Mapping[str, Any]) -> dict[str, str | None]:
    """Return a service's own variables, from either form; None for one taken from the host's environment."""
    return _pairs(service.get("environment"))


def labels_of(service: Mapping[str, Any]) -> dict[str, str]:
    """Return a service's labels, from either form."""
    return {name: value or "" for name, value in _pairs(service.get("labels")).items()}


def _pairs(value: object) -> dict[str, str | None]:
    if isinstance(value, Mapping):
        texts = {str(name): given if given is None else str(given) for name, given in value.items()}
        # YAML's truth values are read as `true` and `false`.
        return texts | {str(name): str(on).lower() for name, on in value.items() if isinstance(on, bool)}
    pairs = [str(item).partition("=") for item in as_list(value)]
    return {name: given if separator else None for name, separator, given in pairs}


def as_list(value: object) -> Sequence[Any]:
    """Return a value as a list: a single value becomes its only item, None an empty list."""
    if isinstance(value, (list, tuple)):
        return value
    return () if value is None else (value,)
