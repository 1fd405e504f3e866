"""The certificate that the gateway shows, and the authorities whose certificates its callers show."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from pathlens.errors import ServerStartError
from pathlens.gateway.reloading import Reloaded
from pathlens.gateway.security_settings import TlsSettings

# What both ends of gRPC accept: its TLS library takes no other keys, or its clients do not.
_CURVES = (ec.SECP256R1, ec.SECP384R1)


@dataclass(frozen=True)
class _Checked:
    configuration: grpc.ServerCertificateConfiguration = field(repr=False)
    certificate: x509.Certificate


class ServerCertificate:
    """The certificate of the gateway, taken from its files anew when they change.

    Args:
        settings: The files.

    Raises:
        ServerStartError: A file cannot be read or is no PEM, the key is not the certificate's, or the certificate is
            not valid now.
    """

    def __init__(self, settings: TlsSettings) -> None:
        self._mutual = settings.client_ca is not None
        paths = [settings.certificate, settings.private_key]
        if settings.client_ca is not None:
            paths.append(settings.client_ca)
        self._files = Reloaded("certificates", paths, lambda contents: _checked(paths, contents))
        self._shown = self._files.current()

    @property
    def names(self) -> tuple[str, ...]:
        """The hosts and addresses that the certificate is for."""
        certificate = self._files.look().certificate
        try:
            extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            return ()
        addresses = map(str, extension.get_values_for_type(x509.IPAddress))
        return (*extension.get_values_for_type(x509.DNSName), *addresses)

    @property
    def ends(self) -> datetime:
        """The last moment at which the certificate is valid."""
        return self._files.look().certificate.not_valid_after_utc

    def credentials(self) -> grpc.ServerCredentials:
        """Make the credentials of a server, which asks for the files again with every new connection.

        Connections that are open stay as they are.
        """
        # The stubs do not know that None means "as before".
        changed = cast("Callable[[], grpc.ServerCertificateConfiguration]", self._changed)
        return grpc.dynamic_ssl_server_credentials(self._shown.configuration, changed, self._mutual)

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        # Called by gRPC's own threads.
        current = self._files.look()
        if current is self._shown:
            return None
        self._shown = current
        return current.configuration


def _checked(paths: Sequence[Path], contents: Sequence[bytes]) -> _Checked:
    chain, key = contents[0], contents[1]
    certificate = _certificates(paths[0], chain)[0]
    _check_key(paths, key, certificate)
    _check_valid(paths[0], [certificate])
    authorities = contents[2] if len(contents) > 2 else None
    if authorities is not None:
        _check_valid(paths[2], _certificates(paths[2], authorities))
    return _Checked(grpc.ssl_server_certificate_configuration([(key, chain)], authorities), certificate)


def _certificates(path: Path, content: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(content)
    except ValueError as error:
        raise _invalid(path, "holds no certificate in PEM", "give a file that begins its certificates so") from error


def _check_key(paths: Sequence[Path], content: bytes, certificate: x509.Certificate) -> None:
    # Not a word of what the library says: it might quote the key.
    try:
        key = load_pem_private_key(content, None)
    except TypeError:
        raise _invalid(
            paths[1], "is encrypted", "store the key without a password, readable for pathlens alone"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise _invalid(paths[1], "holds no private key in PEM", "give the key of the certificate") from None
    if key.public_key() != certificate.public_key():
        raise _invalid(paths[1], f"is not the key of the first certificate in {paths[0]}", "give both from one issue")
    if not isinstance(key, rsa.RSAPrivateKey) and not (
        isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, _CURVES)
    ):
        raise _invalid(paths[1], "is of a kind that gRPC does not use", "use RSA, P-256 or P-384")


def _check_valid(path: Path, certificates: Sequence[x509.Certificate]) -> None:
    """One of several authorities may have ended; a certificate may not."""
    now = datetime.now(UTC)
    if any(one.not_valid_before_utc <= now <= one.not_valid_after_utc for one in certificates):
        return
    first = certificates[0]
    raise _invalid(
        path,
        f"is valid from {first.not_valid_before_utc:%Y-%m-%d %H:%M} to {first.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
        " and not now",
        "renew it",
    )


def _invalid(path: Path, what: str, remedy: str) -> ServerStartError:
    return ServerStartError(f"{path} {what}: {remedy}.", reason="CERTIFICATE_INVALID", metadata={"path": path})
