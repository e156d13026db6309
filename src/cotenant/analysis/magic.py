"""Recognises files that are not models by their first bytes."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Looks:
    """What the file is, as a text after "it is", and what to do about it."""

    what: str
    hint: str


_DOWNLOAD: Final = "Download a GGUF file of the model."
_CONVERT: Final = "Convert it with llama.cpp's convert_hf_to_gguf.py, or download a GGUF file of the model."
_PREFIXES: Final = (
    (
        b"version https://git-lfs",
        Looks("a Git LFS pointer, not the model", "Run `git lfs pull` where it was cloned."),
    ),
    (b"PK\x03\x04", Looks("a zip archive, perhaps a PyTorch checkpoint", _CONVERT)),
    (b"\x80\x02", Looks("a Python pickle, perhaps an old PyTorch checkpoint", _CONVERT)),
    (b"\x1f\x8b", Looks("gzip-compressed", "Decompress it first.")),
    (b"\x28\xb5\x2f\xfd", Looks("zstd-compressed", "Decompress it first.")),
    (b"lmgg", Looks("a GGML file from before GGUF", _DOWNLOAD)),
    (b"fmgg", Looks("a GGML file from before GGUF", _DOWNLOAD)),
    (b"tjgg", Looks("a GGML file from before GGUF", _DOWNLOAD)),
    (b"\x7fELF", Looks("a program", _DOWNLOAD)),
    (b"\x89HDF", Looks("an HDF5 file, perhaps a Keras checkpoint", _DOWNLOAD)),
)


def describe_magic(head: bytes) -> Looks:
    """Say what a file with these first bytes (some hundreds) looks like."""
    if not head:
        return Looks("empty", "The download did not start: fetch the file again.")
    for prefix, looks in _PREFIXES:
        if head.startswith(prefix):
            return looks
    if not head.strip(b"\0"):
        return Looks("nothing but zeros where it begins", "The download is incomplete: fetch it again.")
    if head[8:9] == b"{":
        return Looks("a safetensors file", "Give its folder; llama.cpp needs a GGUF file.")
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return Looks("a web page", "The download failed: fetch the file itself, signed in if it is gated.")
    if text.startswith((b"{", b"[")):
        return Looks("JSON text", "Give the model file, not its configuration.")
    return Looks(f"unknown (it begins with {head[:4]!r})", _DOWNLOAD)
