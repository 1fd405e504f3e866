"""Where the service is and how it is reached."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import grpc

from pathlens.client.access_token import read_token
from pathlens.client.loopback import is_loopback
from pathlens.client.transport_security import TransportSecurity
from pathlens.errors import InvalidRequestError

MEBIBYTE = 2**20

LoadBalancing = Literal["pick_first", "round_robin"]
"""How calls are spread over the addresses behind a name."""

# A channel without a connection fails calls until it tries again. By gRPC's own times that is a second at least, which
# no short retry survives, and two minutes after a longer outage.
_FIRST_RECONNECT_MILLISECONDS, _LONGEST_RECONNECT_MILLISECONDS = 100, 5000


@dataclass(frozen=True)
class Connection:
    """Where the service is and how it is reached; several clients may share one.

        Connection("pathlens.example.com:443", TransportSecurity(), token=Path("/var/run/secrets/pathlens/token"))
        Connection("dns:///pathlens-headless.vision.svc.cluster.local:8080", load_balancing="round_robin")

    Attributes:
        address: Host and port of the gateway, or any other name that gRPC resolves.
        security: TLS; None for plain text; gRPC's own credentials for what `TransportSecurity` cannot say.
        token: Sent with every call as `authorization: Bearer TOKEN`. A path is the file that holds it, read with every
            call, so that a token may be replaced while the client runs (replace the file in one move, as Kubernetes
            does). Refused over plain text unless the address is loopback. It is in no error, log or repr.
        load_balancing: `pick_first` keeps one connection, which is right for one gateway and for a proxy that balances
            calls. `round_robin` connects to every address behind a name and spreads the calls over them: for a headless
            Kubernetes Service, whose name `dns:///SERVICE.NAMESPACE.svc.cluster.local:PORT` stands for all its pods. (A
            Service that is not headless balances connections; a client has one, and would stay with one pod.) gRPC asks
            for the addresses again when a connection ends, so new pods get calls once another has ended or the gateway
            limits the age of connections.
        max_message_bytes: Largest message in either direction.

    Raises:
        InvalidRequestError: The token would travel in the open, or a value is out of range.
    """

    address: str
    security: TransportSecurity | grpc.ChannelCredentials | None = None
    token: str | Path | None = field(default=None, repr=False)
    load_balancing: LoadBalancing = "pick_first"
    max_message_bytes: int = 64 * MEBIBYTE

    def __post_init__(self) -> None:
        if self.load_balancing not in get_args(LoadBalancing):
            raise _refused(
                f"load_balancing is {self.load_balancing!r}; expected one of {', '.join(get_args(LoadBalancing))}.",
                "load_balancing",
            )
        if not 0 < self.max_message_bytes < 2**31:
            raise _refused(
                f"max_message_bytes is {self.max_message_bytes}; expected 1 to {2**31 - 1}.", "max_message_bytes"
            )
        if isinstance(self.token, str):
            read_token(self.token)
        if self.token is not None and self.security is None and not is_loopback(self.address):
            raise _refused(
                f"A token would travel to {self.address} in plain text, for everyone on the way to read: add"
                " security=TransportSecurity(), or leave out the token.",
                "token",
            )

    def channel_options(self) -> list[tuple[str, Any]]:
        """Return the options of a channel to the service."""
        config: dict[str, Any] = {"loadBalancingConfig": [{self.load_balancing: {}}]}
        return [
            ("grpc.max_send_message_length", self.max_message_bytes),
            ("grpc.max_receive_message_length", self.max_message_bytes),
            # A proxy of the environment has no way to our own machine.
            ("grpc.enable_http_proxy", 0 if is_loopback(self.address) else 1),
            ("grpc.initial_reconnect_backoff_ms", _FIRST_RECONNECT_MILLISECONDS),
            ("grpc.max_reconnect_backoff_ms", _LONGEST_RECONNECT_MILLISECONDS),
            ("grpc.service_config", json.dumps(config)),
            *(self.security.channel_options() if isinstance(self.security, TransportSecurity) else []),
        ]

    def channel_credentials(self) -> grpc.ChannelCredentials | None:
        """Return the credentials of a channel to the service; None for plain text.

        Raises:
            InvalidRequestError: A file of the TLS settings does not hold what it should.
            OSError: A file cannot be read.
        """
        return self.security.channel_credentials() if isinstance(self.security, TransportSecurity) else self.security

    def authorization(self) -> tuple[tuple[tuple[str, str], ...], grpc.CallCredentials | None]:
        """Return what shows the token with one call, as metadata and as credentials of the call.

        Over TLS these are credentials, which gRPC sends over encrypted connections only. It knows none for plain text,
        so on loopback they are metadata.

        Raises:
            InvalidRequestError: The file of the token holds none.
            OSError: It cannot be read.
        """
        if self.token is None:
            return (), None
        token = read_token(self.token)
        if self.security is None:
            return (("authorization", f"Bearer {token}"),), None
        return (), grpc.access_token_call_credentials(token)


def _refused(message: str, name: str) -> InvalidRequestError:
    return InvalidRequestError(message, reason="CONNECTION_INVALID", field=name)
