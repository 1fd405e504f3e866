"""Whether a port can be listened on."""

import socket

from pathlens.errors import ServerStartError


def check_free(host: str, port: int, setting: str, option: str = "") -> None:
    """Find out before anything is started whether a port is to be had.

    Args:
        host: Address to listen on.
        port: The port; 0 is always to be had.
        setting: Name of the setting that chooses it.
        option: Name of its option on the command line, if it has one.

    Raises:
        ServerStartError: Somebody listens there, or the address is not ours.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As servers do, so that connections of a service that has just ended are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ServerStartError(
                f"Port {port} of {host} is not to be had ({error.strerror}). Is another pathlens running? Choose"
                f" another port with {f'{option} or ' if option else ''}{setting}, or 0 for any free one.",
                reason="PORT_UNAVAILABLE",
                metadata={"host": host, "port": port},
            ) from error
