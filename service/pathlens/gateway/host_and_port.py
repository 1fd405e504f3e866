"""Addresses as gRPC and people write them."""


def host_and_port(host: str, port: int) -> str:
    """Write an address.

    Args:
        host: A name, or an address of either version of IP.
        port: The port.

    Returns:
        host:port, or [host]:port for version 6.
    """
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
