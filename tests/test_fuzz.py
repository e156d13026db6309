"""The readers that are fuzzed take their first inputs, and those inputs cut off or changed."""

from collections.abc import Callable

import pytest

from tests.support.fuzz import TARGETS


@pytest.mark.parametrize("read", TARGETS, ids=lambda read: read.__name__)
def test_damaged_input_is_refused_as_declared(read: Callable[[bytes], None]) -> None:
    for seed in TARGETS[read]:
        read(seed)
        for at in range(0, len(seed), max(1, len(seed) // 20)):
            read(seed[:at])
            read(seed[:at] + bytes([seed[at] ^ 0x55]) + seed[at + 1 :])
