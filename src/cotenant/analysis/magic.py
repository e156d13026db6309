"""Recognises files that are not models by their first bytes."""

from typing import Final

_DOWNLOAD: Final = "Download a GGUF file of the model."
_CONVERT: Final = "Convert it with llama.cpp's convert_hf_to_gguf.py, or download a GGUF file of the model."
_PREFIXES: Final = (
    (
        b"version https://git-lfs",
        ("a Git LFS pointer, not the model", "Run `git lfs pull` where it was cloned."),
    ),
    (b"PK\x03\x04", ("a zip archive, perhaps a PyTorch checkpoint", _CONVERT)),
    (b"\x80\x02", ("a Python pickle, perhaps an old PyTorch checkpoint", _CONVERT)),
    (b"\x1f\x8b", ("gzip-compressed", "Decompress it first.")),
    (b"\x28\xb5\x2f\xfd", ("zstd-compressed", "Decompress it first.")),
    (b"lmgg", ("a GGML file from before GGUF", _DOWNLOAD)),
    (b"fmgg", ("a GGML file from before GGUF", _DOWNLOAD)),
    (b"tjgg", ("a GGML file from before GGUF", _DOWNLOAD)),
    (b"\x7fELF", ("a program", _DOWNLOAD)),
    (b"\x89HDF", ("an HDF5 file, perhaps a Keras checkpoint", _DOWNLOAD)),
)


def describe_magic(head: bytes) -> tuple[str, str]:
    """Return what a file with these first bytes (some hundreds) is, after "it is", and what helps."""
    if not head:
        return "empty", "The download did not start: fetch the file again."
    for prefix, looks in _PREFIXES:
        if head.startswith(prefix):
            return looks
    if not head.strip(b"\0"):
        return "nothing but zeros where it begins", "The download is incomplete: fetch it again."
    if head[8:9] == b"{":
        return "a safetensors file", "Give its folder; llama.cpp needs a GGUF file."
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page", "The download failed: fetch the file itself, signed in if it is gated."
    if text.startswith((b"{", b"[")):
        return "JSON text", "Give the model file, not its configuration."
    return f"unknown (it begins with {head[:4]!r})", _DOWNLOAD
