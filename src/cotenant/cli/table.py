"""Output of commands: JSON, or lines and tables. Each column is declared once, with its heading and cells."""

import argparse
import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Row = TypeVar("Row")


def cut_end(text: str, width: int) -> str:
    """Shorten a text to `width` characters at its end."""
    return text if len(text) <= width else f"{text[: width - 1]}…"


def cut_middle(text: str, width: int) -> str:
    """Shorten a text to `width` characters in its middle, for texts that differ at the end."""
    end = (width - 1) // 2
    return text if len(text) <= width else f"{text[: width - 1 - end]}…{text[len(text) - end :]}"


@dataclass(frozen=True, slots=True)
class Column(Generic[Row]):
    """A column of a table. `cell` renders a row's cell; `right` aligns heading and cells to the right.

    Where the table is too wide, a column with `min_width` is shortened by `cut`, but not below that width.
    """

    heading: str
    cell: Callable[[Row], str]
    right: bool = False
    min_width: int | None = None
    cut: Callable[[str, int], str] = cut_end


def table_lines(
    columns: Sequence[Column[Row]], rows: Iterable[Row], *, width: int | None = None, gap: str = "  "
) -> Iterator[str]:
    """Yield the headings and a line for each row; `width` is the number of characters a line may have."""
    texts = [[column.heading for column in columns]]
    texts += [[column.cell(row) for column in columns] for row in rows]
    widths = [max(map(len, cells)) for cells in zip(*texts, strict=True)]
    for number, column in enumerate(columns):
        if width is not None and column.min_width is not None:
            excess = max(0, sum(widths) + len(gap) * (len(widths) - 1) - width)
            widths[number] = max(min(widths[number], column.min_width), widths[number] - excess)
    for cells in texts:
        cut = [c.cut(cell, size) for c, cell, size in zip(columns, cells, widths, strict=True)]
        aligned = (
            cell.rjust(size) if column.right else cell.ljust(size)
            for column, cell, size in zip(columns, cut, widths, strict=True)
        )
        yield gap.join(aligned).rstrip()


def print_result(
    args: argparse.Namespace,
    value: Any,
    lines: Iterable[str],
    rows: Iterable[Mapping[str, object]] | None = None,
) -> int:
    """Print the result of a command: as JSON if `--json` was given, else as lines. Returns 0.

    A command with `rows`, which have the same keys, prints them as CSV if `--csv` was given.
    """
    if rows is not None and args.csv:
        table = [*rows]
        writer = csv.DictWriter(sys.stdout, [*table[0]] if table else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    elif args.json:
        print(json.dumps(value, indent=2, ensure_ascii=False, default=str))
    else:
        print(*lines, sep="\n")
    return 0


def attributes(value: object, names: str) -> dict[str, Any]:
    """Return the attributes of a value that `names` lists, separated by spaces, for JSON."""
    return {name: getattr(value, name) for name in names.split()}


@contextmanager
def progress_line() -> Iterator[Callable[[str], None]]:
    """Yield a function that shows a text on one line of standard error, cleared at the end.

    It shows nothing if standard error is not a terminal.
    """
    terminal, last = sys.stderr.isatty(), ""

    def show(text: str) -> None:
        nonlocal last
        if terminal and text != last:
            last = text
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        show("")
