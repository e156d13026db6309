"""`make bench`: every measurement, in one run; the exit status says whether every target is met."""

import sys

from bench import (
    assembly,
    bodies,
    console,
    copies,
    fleet,
    fleet_status,
    footprint,
    gate,
    gateway,
    header,
    kv_swap,
    policies,
    residence,
    scheduling,
    split,
    startup,
    strategies,
    swap,
    upload,
    warm,
)
from bench.rows import print_table

_ALL = (
    split,
    strategies,
    scheduling,
    swap,
    kv_swap,
    copies,
    fleet,
    fleet_status,
    startup,
    footprint,
    gate,
    header,
    assembly,
    bodies,
    policies,
    residence,
    gateway,
    warm,
    upload,
    console,
)


def main() -> int:
    rows = []
    for benchmark in _ALL:
        found = benchmark.main()
        print_table(found)
        sys.stdout.flush()
        rows += found
    return 0 if all(row.met is not False for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
