"""PCI bus ids, which identify a card both for the driver and for an engine."""

import re

_BUS_ID = re.compile(r"(?:([0-9a-f]{1,8}):)?([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])", re.IGNORECASE)


def normalise_bus_id(text: str) -> str | None:
    """Write a bus id as CUDA and llama.cpp print it, `0000:01:00.0`; None if it is no bus id.

    NVML writes the domain with eight digits, and `lspci` may leave it out.
    """
    match = _BUS_ID.fullmatch(text.strip())
    if match is None:
        return None
    domain = int(match[1] or "0", 16)
    return f"{domain:04x}:{match[2]}:{match[3]}.{match[4]}".lower()
