"""A broker without Ray: `stub_broker.py HOW FLEET ADDRESS` lists one node and answers each call with it.

`HOW` is a file; each run takes a line from it: `serve`, `hang` after the first call, `die`, `junk`, or
`refuse`, which says why it cannot join and ends.
"""

import json
import signal
import sys
from pathlib import Path


def say(message: object) -> None:
    print(json.dumps(message), flush=True)


def main(how_file: Path) -> int:
    how, _, rest = how_file.read_text().partition("\n")
    how_file.write_text(rest or how)
    if how == "refuse":
        say({"problem": "Ray at nowhere cannot be joined: nobody is there"})
        return 1
    if how == "junk":
        print("ray says hello", flush=True)
        signal.pause()
    say({"nodes": [{"id": "n1", "name": "b", "address": "10.0.0.2", "head": False, "problem": None}]})
    for line in sys.stdin:
        call = json.loads(line)
        if "node" not in call:
            say({"id": call["id"], "result": {}})
        elif call["node"] != "n1":
            error = {"code": "node_unreachable", "message": "Ray has no such node", "hint": ""}
            say({"id": call["id"], "error": error})
        elif how == "hang":
            signal.pause()
        elif how == "die":
            return 3
        else:
            say({"id": call["id"], "result": {"method": call["method"], **call["params"]}})
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
