import os
import subprocess
from dataclasses import replace

import pytest

from cotenant.engines.process.owner import Owner


def test_a_process_that_runs_is_not_gone_and_its_label_reads_back() -> None:
    here = Owner.here()
    assert not here.gone
    assert Owner.parse(here.label) == here


def test_an_ended_process_is_gone() -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    assert replace(Owner.here(), pid=child.pid).gone


def test_another_process_under_the_same_id_does_not_pass_for_the_owner() -> None:
    here = Owner.here()
    assert replace(here, started=here.started - 1).gone


def test_of_another_boot_or_another_namespace_nothing_is_claimed() -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    ended = replace(Owner.here(), pid=child.pid)
    assert replace(ended, boot="another").another_boot
    assert not replace(ended, boot="another").gone
    assert not replace(ended, namespace="1").gone


@pytest.mark.parametrize("label", ["", "1/2/3", "a/b/c/d", "no owner", "a/b/1/2/3"])
def test_what_is_no_label_of_ours_names_nobody(label: str) -> None:
    assert Owner.parse(label) is None


def test_a_process_that_may_not_be_signalled_is_alive() -> None:
    if os.geteuid() == 0:
        pytest.skip("root may signal everybody")
    assert not replace(Owner.here(), pid=1, started=0).gone
