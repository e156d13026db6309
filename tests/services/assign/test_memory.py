"""What services need."""

from cotenant.domain.units import GIB, MIB
from cotenant.services.assign.memory import needed_bytes
from tests.services.assign.service_cases import CLIP, ENRICHMENT, needing


def test_a_budget_replaces_the_need_where_it_can_be_told() -> None:
    assert needed_bytes(ENRICHMENT) == 6963 * MIB
    assert needed_bytes(ENRICHMENT, 3.5) == 3.5 * GIB
    assert needed_bytes(CLIP, 0.5) == 1229 * MIB
    assert needed_bytes(needing("unknown", None)) == 0
