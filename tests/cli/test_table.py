"""The one printer of tables."""

from cotenant.cli.table import Column, cut_middle, table_lines

NAME: Column[tuple[str, int]] = Column("name", lambda row: row[0])
SIZE: Column[tuple[str, int]] = Column("size", lambda row: str(row[1]), right=True)


def test_columns_are_as_wide_as_their_widest_cell_and_aligned() -> None:
    assert [*table_lines((NAME, SIZE), [("a", 1), ("bbbbbb", 12345)])] == [
        "name     size",
        "a           1",
        "bbbbbb  12345",
    ]


def test_without_rows_only_the_headings_are_printed() -> None:
    assert [*table_lines((NAME, SIZE), [])] == ["name  size"]


def test_a_table_that_is_too_wide_shortens_the_column_that_may_be_shortened() -> None:
    name: Column[tuple[str, int]] = Column("name", lambda row: row[0], min_width=5)
    rows = [("abcdefghijkl", 1)]
    assert [*table_lines((name, SIZE), rows, width=14)][1] == "abcdefg…     1"
    assert [*table_lines((name, SIZE), rows, width=3)][1] == "abcd…     1", "not below its least width"
    assert [*table_lines((name, SIZE), rows, width=80)][1] == "abcdefghijkl     1"


def test_a_text_cut_in_its_middle_keeps_both_ends() -> None:
    assert cut_middle("abcdefghij", 7) == "abc…hij"
    assert cut_middle("abcdefghij", 10) == "abcdefghij"
