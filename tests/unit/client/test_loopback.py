import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathlens.client.loopback import is_loopback


@pytest.mark.parametrize(
    "address",
    [
        "localhost:8080",
        "LocalHost:8080",
        "localhost",
        "127.0.0.1:8080",
        "127.8.9.10:1",
        "[::1]:8080",
        "dns:localhost:8080",
        "dns:///127.0.0.1:8080",
        "ipv4:127.0.0.1:1,127.0.0.2:2",
        "ipv6:[::1]:8080",
        "unix:/run/pathlens.sock",
        "unix-abstract:pathlens",
    ],
)
def test_addresses_of_this_machine_are_loopback(address: str) -> None:
    assert is_loopback(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.evil.example:8080",
        "localhost.evil.example:8080",
        "127.0.0.1.evil.example:80",
        "127.0.0.1@evil.example:80",
        "dns://9.9.9.9/localhost:8080",
        "dns:////localhost:8080",
        "ipv4:127.0.0.1:1,10.0.0.1:2",
        "localhost:8080,evil.example:80",
        "http://localhost:8080",
        "0.0.0.0:8080",
        "[::]:8080",
        "pathlens.example.com:443",
        "xds:///localhost:8080",
        "",
    ],
)
def test_addresses_that_only_look_like_it_are_not_loopback(address: str) -> None:
    assert not is_loopback(address)


@given(st.ip_addresses(v=4), st.integers(1, 65535))
def test_of_addresses_in_figures_the_network_decides(host: object, port: int) -> None:
    assert is_loopback(f"{host}:{port}") == str(host).startswith("127.")


@given(st.from_regex(r"[a-z0-9.-]{1,40}", fullmatch=True).filter(lambda host: not host.replace(".", "").isdigit()))
def test_of_names_only_localhost_is_loopback(host: str) -> None:
    assert is_loopback(f"{host}:80") == (host == "localhost")
