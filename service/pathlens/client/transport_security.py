"""TLS and mutual TLS from PEM files."""

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from pathlens.errors import InvalidRequestError


@dataclass(frozen=True)
class TransportSecurity:
    """Encrypts a connection, and proves who is at its ends.

    `TransportSecurity()` is TLS with the certificate authorities that gRPC brings along. The files are read once, when
    a client is made.

    Attributes:
        root_certificates: PEM file of the authorities that may vouch for the service; None for gRPC's own list.
        certificate: PEM file of the certificate, or chain, that the client shows (mutual TLS); None for none.
        private_key: PEM file of its key, not encrypted.
        server_name: Name that the service's certificate must have, where it is not the one in the address: through a
            port-forward, say.

    Raises:
        InvalidRequestError: Only one of certificate and private_key is given.
    """

    root_certificates: Path | None = None
    certificate: Path | None = None
    private_key: Path | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.private_key is None):
            given, missing = ("certificate", "private_key") if self.certificate else ("private_key", "certificate")
            raise _refused(f"There is a {given} and no {missing}: mutual TLS needs both.", missing)

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """Read the files.

        Raises:
            InvalidRequestError: A file does not hold what it should, or the key is not that of the certificate.
            OSError: A file cannot be read.
        """
        # gRPC takes anything, and its calls would then fail without a word about the file: OpenSSL reads them first.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        # How strong keys must be is for the handshake to say.
        context.set_ciphers("DEFAULT@SECLEVEL=0")
        roots = None if self.root_certificates is None else _checked_roots(context, self.root_certificates)
        if self.certificate is None or self.private_key is None:
            return grpc.ssl_channel_credentials(roots)
        _check_pair(context, self.certificate, self.private_key)
        return grpc.ssl_channel_credentials(roots, self.private_key.read_bytes(), self.certificate.read_bytes())

    def channel_options(self) -> list[tuple[str, str]]:
        """Return what the channel must be told beside its credentials."""
        return [] if self.server_name is None else [("grpc.ssl_target_name_override", self.server_name)]


def _checked_roots(context: ssl.SSLContext, file: Path) -> bytes:
    content = file.read_bytes()
    try:
        context.load_verify_locations(cafile=file)
    except ssl.SSLError as error:
        raise _refused(f"{file} holds no certificate in PEM form.", "root_certificates") from error
    return content


def _check_pair(context: ssl.SSLContext, certificate: Path, private_key: Path) -> None:
    for file in (certificate, private_key):
        # OpenSSL's own error would not name the file.
        file.read_bytes()

    def refuse_to_ask() -> str:
        raise _refused(f"{private_key} is encrypted: give the key without a password.", "private_key")

    try:
        context.load_cert_chain(certificate, private_key, password=refuse_to_ask)
    except ssl.SSLError as error:
        raise _refused(
            f"{certificate} and {private_key} are not a certificate in PEM form and its private key"
            f" ({error.reason or 'PEM'}).",
            "certificate",
        ) from error


def _refused(message: str, field: str) -> InvalidRequestError:
    return InvalidRequestError(message, reason="CONNECTION_INVALID", field=field)
