import pytest

from cotenant.domain.errors import ForeignPage, UntrustedHost
from cotenant.gateway.access.allowed_hosts import AllowedHosts


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "localhost:8080", "LOCALHOST", "console.localhost:1", "127.0.0.1:8080", "10.0.0.7"),
        *("[::1]:8080", "[fe80::1%25eth0]:8080", "gpu-box:8080", "gpu_box", "box.local", "box.lan:80"),
    ],
)
def test_names_that_nobody_outside_can_point_here_pass(host):
    AllowedHosts().check_host(host.encode())


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "localhost.evil.example", "", "a b", "é"],
)
def test_a_name_of_public_dns_does_not_pass(host):
    with pytest.raises(UntrustedHost) as caught:
        AllowedHosts().check_host(host.encode("latin-1"))
    assert "allowed_hosts" in caught.value.hint


def test_a_name_that_is_allowed_passes_and_stays_passed():
    hosts = AllowedHosts(["Models.Example.org"])
    for _ in range(2):
        hosts.check_host(b"models.example.org:443")
    with pytest.raises(UntrustedHost):
        hosts.check_host(b"other.example.org")


def test_many_names_are_not_all_kept():
    hosts = AllowedHosts()
    for number in range(1000):
        hosts.check_host(f"box{number}".encode())
    assert len(hosts._passed) <= 64


@pytest.mark.parametrize(
    "origin",
    ["http://localhost:8080", "vscode-webview://abc", "app://obsidian.md", "https://models.example.org"],
)
def test_orders_from_our_own_pages_and_from_programs_pass(origin):
    AllowedHosts(["models.example.org"]).check_origin(origin.encode(), b"localhost:8080")


@pytest.mark.parametrize(
    ("allowed", "origin", "passes"),
    [
        ("127.0.0.1:8080", "http://127.0.0.1:8080", True),
        ("127.0.0.1:8080", "http://127.0.0.1:25401", False),
        ("127.0.0.1:8080", "http://127.0.0.1", False),
        ("models.example.org", "https://models.example.org", True),
        ("models.example.org", "https://models.example.org:3000", False),
        ("models.example.org:8443", "https://MODELS.example.org:8443", True),
        ("models.example.org:8443", "https://models.example.org", False),
    ],
)
def test_a_page_of_another_port_of_an_allowed_host_may_give_no_orders(allowed, origin, passes):
    hosts = AllowedHosts([allowed])
    hosts.check_host(allowed.encode())
    if passes:
        hosts.check_origin(origin.encode(), b"10.0.0.7:1")
    else:
        with pytest.raises(ForeignPage):
            hosts.check_origin(origin.encode(), b"10.0.0.7:1")


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "http://localhost:9999", "null", "", "http://localhost", "HTTPS://evil.example"],
)
def test_orders_from_pages_of_other_sites_do_not(origin):
    with pytest.raises(ForeignPage):
        AllowedHosts().check_origin(origin.encode(), b"localhost:8080")
