"""Finds an Ollama for `make test-ollama`, or has Go build one in the virtual environment; prints where it is.

Go's module of Ollama lacks folders named `vendor`, in which Ollama keeps the headers of three libraries. They
are taken from llama.cpp's own, which come with the source of llama-cpp-python.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

VERSION = "0.17.4"
_MODULE = "github.com/ollama/ollama"
_HEADERS_FROM = "llama-cpp-python==0.3.36"
_HEADERS = ("nlohmann", "miniaudio", "stb")
_NEEDED = ("go", "gcc", "g++")


def main() -> None:
    """Print the program's path, or say what is missing."""
    folder = Path(sys.prefix) / "ollama"
    named = os.environ.get("COTENANT_TEST_OLLAMA")
    found = shutil.which(named) if named else shutil.which("ollama") or shutil.which(folder / "ollama")
    if found is not None:
        print(Path(found).absolute())
        return
    if named:
        sys.exit(f"COTENANT_TEST_OLLAMA names no program: {named}")
    missing = [name for name in _NEEDED if shutil.which(name) is None]
    if missing:
        sys.exit(
            f"No `ollama` is on the PATH, and none can be built: there is no {', no '.join(missing)}.\n"
            "Install Ollama (https://ollama.com/download), name one by COTENANT_TEST_OLLAMA, or install "
            "Go and a C++ compiler."
        )
    try:
        print(_built(folder))
    except subprocess.CalledProcessError as error:
        sys.exit(f"Ollama could not be built: `{' '.join(error.cmd[:4])} …` failed.")


def _built(folder: Path) -> Path:
    print(f"building Ollama {VERSION} in {folder}: about ten minutes the first time", file=sys.stderr)
    with tempfile.TemporaryDirectory() as scratch:
        headers = _headers(Path(scratch))
        env = {
            **os.environ,
            "GOBIN": str(folder),
            "CPATH": os.pathsep.join(map(str, [headers, *(headers / name for name in _HEADERS)])),
        }
        flag = f"-X {_MODULE}/version.Version={VERSION}"
        command = ["go", "install", "-ldflags", flag, f"{_MODULE}@v{VERSION}"]
        subprocess.run(command, env=env, stdout=sys.stderr, check=True)
    return folder / "ollama"


def _headers(scratch: Path) -> Path:
    """Fetch the headers, and return the folder that they are in."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch)]
    subprocess.run([*pip, "--no-binary", ":all:", _HEADERS_FROM], stdout=sys.stderr, check=True)
    (archive,) = scratch.glob("*.tar.gz")
    headers = scratch / "headers"
    with tarfile.open(archive) as source:
        for member in source:
            _, within, path = member.name.partition("/vendor/llama.cpp/vendor/")
            if within and member.isfile() and path.split("/")[0] in _HEADERS:
                member.name = path
                source.extract(member, headers, filter="data")
    return headers


if __name__ == "__main__":
    main()
