"""Ports that are chosen by the operator, and who is connected to them."""

import socket
import subprocess
import sys

import pytest

from pathlens.errors import ServerStartError
from pathlens.torchserve.clients import other_clients
from pathlens.torchserve.instance import LOOPBACK, free_ports

CONNECT = "import socket, sys; s = socket.create_connection(('127.0.0.1', int(sys.argv[1]))); print('on'); input()"


def free_port() -> int:
    return free_ports().inference


@pytest.mark.parametrize("setting", ["inference", "management"])
def test_a_port_that_is_fixed_is_taken(setting: str) -> None:
    port = free_port()
    assert getattr(free_ports(**{setting: port}), setting) == port


@pytest.mark.parametrize("setting", ["inference", "management"])
def test_a_fixed_port_that_somebody_has_is_named_with_its_setting(setting: str) -> None:
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServerStartError, match=rf"port {port} .*torchserve\.{setting}_port") as caught:
            free_ports(**{setting: port})
    assert caught.value.reason == "PORT_UNAVAILABLE"


def test_connections_of_other_processes_count_and_our_own_do_not() -> None:
    with socket.create_server((LOOPBACK, 0)) as server:
        port = server.getsockname()[1]
        assert other_clients(port) == 0
        with socket.create_connection((LOOPBACK, port)):
            assert other_clients(port) == 0
            other = subprocess.Popen(
                [sys.executable, "-c", CONNECT, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            assert other.stdout is not None
            assert other.stdout.readline() == "on\n"
            assert other_clients(port) == 1
            other.communicate("\n")
            assert other_clients(port) == 0
