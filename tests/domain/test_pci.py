import pytest

from cotenant.domain.pci import normalise_bus_id


@pytest.mark.parametrize(
    ("written", "printed"),
    [
        ("00000000:01:00.0", "0000:01:00.0"),
        ("00000000:C1:00.0", "0000:c1:00.0"),
        ("0000:01:00.0", "0000:01:00.0"),
        ("01:00.0", "0000:01:00.0"),
        ("00010000:01:00.0", "10000:01:00.0"),
        ("00000001:00:00.0", "0001:00:00.0"),
        ("", None),
        ("01:00", None),
        ("PCI:1:0:0", None),
    ],
)
def test_bus_ids_are_written_as_llama_cpp_prints_them(written: str, printed: str | None) -> None:
    assert normalise_bus_id(written) == printed
