"""Who is connected to TorchServe."""

from collections.abc import Iterable, Iterator
from typing import Any

import psutil


def other_clients(port: int) -> int:
    """Count the connections to a port of this machine that other processes have.

    The containers of a pod see each other's connections and not each other's processes, so a connection of ours is told
    by its number.

    Args:
        port: The TCP port.

    Returns:
        How many there are; our own are left out.

    Raises:
        psutil.Error: The system does not tell.
        OSError: The same.
    """
    own = {end.port for end, other, _ in _connections(psutil.Process().net_connections("tcp")) if other.port == port}
    return sum(
        end.port == port and other.port not in own and status == psutil.CONN_ESTABLISHED
        for end, other, status in _connections(psutil.net_connections("tcp"))
    )


def _connections(found: Iterable[Any]) -> Iterator[tuple[Any, Any, str]]:
    """Give both ends and the status of what is connected."""
    return ((one.laddr, one.raddr, one.status) for one in found if one.laddr and one.raddr)
