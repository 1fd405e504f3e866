"""Which addresses never leave this machine."""

import re
from ipaddress import ip_address

# What gRPC would read as anything but one host and one port is not matched: a name server, a path, an escape.
_PLACE = re.compile(r"(?:\[(?P<bracketed>[^\[\]]+)\]|(?P<plain>[^\[\]:/,@%\s]+))(?::\d+)?", re.ASCII)
_ONE_PLACE, _LIST_OF_PLACES = ("dns:///", "dns:"), ("ipv4:", "ipv6:")


def is_loopback(address: str) -> bool:
    """Whether everything that an address of gRPC names is this machine itself.

    A name that merely begins like a loopback address is none, and what cannot be told counts as another machine.

    Args:
        address: As gRPC takes it: host:port, or with the scheme `dns`, `ipv4`, `ipv6`, `unix` or `unix-abstract`.
    """
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    for scheme in (*_ONE_PLACE, *_LIST_OF_PLACES):
        if address.startswith(scheme):
            places = address.removeprefix(scheme)
            return all(map(_is_here, places.split(",") if scheme in _LIST_OF_PLACES else [places]))
    return _is_here(address)


def _is_here(place: str) -> bool:
    match = _PLACE.fullmatch(place)
    if match is None:
        return False
    host = match["bracketed"] or match["plain"]
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
