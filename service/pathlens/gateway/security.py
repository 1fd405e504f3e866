"""How the gateway is protected."""

from contextlib import AbstractContextManager, nullcontext

import grpc.aio
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection

from pathlens.gateway.authorisation import AuthorisationInterceptor
from pathlens.gateway.certificates import ServerCertificate
from pathlens.gateway.exposure import exposure_warnings
from pathlens.gateway.security_settings import AuthorisationSettings, TlsSettings
from pathlens.gateway.tokens import TokenFile

_REFLECTION_SERVICES = frozenset({reflection.SERVICE_NAME, "grpc.reflection.v1.ServerReflection"})


class Security:
    """What stands between the network and the gateway: TLS, certificates of callers, and tokens.

    Args:
        tls: The files of TLS; None leaves the connection in plain text.
        authorisation: Who may call; None means everyone.

    Attributes:
        certificate: The gateway's certificate; None without TLS.
        tokens: The tokens of the callers; None without a file of tokens.
        offers_reflection: Whether the reflection service is there at all.

    Raises:
        ServerStartError: A file of certificates or tokens cannot be used.
    """

    def __init__(self, tls: TlsSettings | None = None, authorisation: AuthorisationSettings | None = None) -> None:
        self._tls = tls
        self._authorisation = authorisation or AuthorisationSettings()
        token_file = self._authorisation.token_file
        self.certificate = None if tls is None else ServerCertificate(tls)
        self.tokens = None if token_file is None else TokenFile(token_file)
        self.offers_reflection = self._authorisation.reflection != "off"

    def following(self) -> AbstractContextManager[None]:
        """Take up changes of the tokens until the end of the context; a certificate is read with every connection."""
        return nullcontext() if self.tokens is None else self.tokens.following()

    def interceptors(self) -> list[grpc.aio.ServerInterceptor]:
        """Make what keeps callers without a token out."""
        if self.tokens is None:
            return []
        open_services = set()
        if self._authorisation.health == "open":
            open_services.add(health.SERVICE_NAME)
        if self._authorisation.reflection == "open":
            open_services |= _REFLECTION_SERVICES
        return [AuthorisationInterceptor(self.tokens, frozenset(open_services))]

    def listen(self, server: grpc.aio.Server, address: str) -> int:
        """Let a server listen, with TLS if there is a certificate.

        Args:
            server: The server, not yet started.
            address: host:port.

        Returns:
            The port.

        Raises:
            RuntimeError: As grpc raises it: the address is taken or not ours.
        """
        if self.certificate is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, self.certificate.credentials())

    def warnings(self, host: str) -> list[str]:
        """Say what stands open, a sentence each.

        Args:
            host: Address that the gateway listens on.
        """
        return exposure_warnings(host, self._tls, self._authorisation)
