"""What a running service listens on, as the system sees it: the gateway where it is told to, all else on loopback."""

import ipaddress
from pathlib import Path

import psutil
import pytest

from pathlens.bundle.archive import pack
from pathlens.bundle.store import save_bundle
from pathlens.client import Client
from pathlens.gateway import GatewaySettings
from pathlens.serving import Service
from pathlens.torchserve import TorchServeSettings
from tiny_bundle import tiny_bundle

pytestmark = pytest.mark.timeout(300)

EVERYWHERE = "0.0.0.0"  # noqa: S104


def listening(process: psutil.Process) -> set[tuple[str, int]]:
    """Return the addresses on which a process takes connections, or datagrams of anybody."""
    return {
        (connection.laddr.ip, connection.laddr.port)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN or (connection.status == psutil.CONN_NONE and not connection.raddr)
    }


def test_nothing_but_the_gateway_listens_off_loopback(tmp_path: Path) -> None:
    save_bundle(tiny_bundle(), tmp_path / "bundle")
    archive = pack(tmp_path / "bundle", tmp_path / "store")
    before = listening(psutil.Process())
    settings = GatewaySettings(host=EVERYWHERE, port=0, metrics_port=0)
    with Service(TorchServeSettings(archives=(archive,)), settings) as service:
        port = int(service.address.rsplit(":", 1)[1])
        with Client(f"127.0.0.1:{port}") as client:
            assert [model.model.name for model in client.list_models()] == ["tiny"]
        jvm = psutil.Process(service.torchserve.pid)
        family = psutil.Process().children(recursive=True)
        # The JVM with its four ports and its worker are among those that are looked at.
        assert jvm in family
        assert jvm.children(recursive=True)
        assert len(listening(jvm)) >= 4
        found: set[tuple[str, int]] = set().union(listening(psutil.Process()) - before, *map(listening, family))
    # gRPC takes 0.0.0.0 as all addresses of both kinds, for which the system writes ::.
    open_to_others = {port for host, port in found if not ipaddress.ip_address(host).is_loopback}
    assert open_to_others == {port}
