"""A gateway with real certificates and tokens, and channels to it as callers make them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import trustme

from pathlens.gateway import AuthorisationSettings, Gateway, Security, TlsSettings
from pathlens.model_version import ModelVersion

from .fault_injector import SETTINGS, FaultInjector

HOSTS = ("localhost", "127.0.0.1")
# Else a new channel would find the connection of an earlier one, and show nothing of a new certificate.
_OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]


def pem(certificate: trustme.LeafCert) -> tuple[bytes, bytes]:
    """Return the chain and the key of a certificate."""
    return b"".join(blob.bytes() for blob in certificate.cert_chain_pems), certificate.private_key_pem.bytes()


@dataclass(frozen=True)
class TlsFiles:
    """The files of a gateway's TLS settings, in a folder."""

    folder: Path

    @property
    def certificate(self) -> Path:
        return self.folder / "certificate.pem"

    @property
    def private_key(self) -> Path:
        return self.folder / "private_key.pem"

    @property
    def client_ca(self) -> Path:
        return self.folder / "client_ca.pem"

    def write(self, certificate: trustme.LeafCert) -> None:
        chain, key = pem(certificate)
        self.certificate.write_bytes(chain)
        self.private_key.write_bytes(key)
        self.private_key.chmod(0o600)

    def settings(self) -> TlsSettings:
        client_ca = self.client_ca if self.client_ca.exists() else None
        return TlsSettings(certificate=self.certificate, private_key=self.private_key, client_ca=client_ca)


def tls_files(folder: Path, authority: trustme.CA, client_authority: trustme.CA | None = None) -> TlsFiles:
    """Write a certificate for this machine, and the authority of the callers' certificates if there is one."""
    files = TlsFiles(folder)
    files.write(authority.issue_cert(*HOSTS))
    if client_authority is not None:
        files.client_ca.write_bytes(client_authority.cert_pem.bytes())
    return files


def secure_channel(
    gateway: Gateway, authority: trustme.CA, certificate: trustme.LeafCert | None = None
) -> grpc.aio.Channel:
    """Open a connection of its own, trusting one authority alone."""
    chain, key = (None, None) if certificate is None else pem(certificate)
    credentials = grpc.ssl_channel_credentials(authority.cert_pem.bytes(), key, chain)
    return grpc.aio.secure_channel(gateway.address, credentials, options=_OWN_CONNECTION)


@asynccontextmanager
async def secured_gateway(
    injector: FaultInjector,
    tls: TlsSettings | None = None,
    authorisation: AuthorisationSettings | None = None,
    **limits: Any,
) -> AsyncIterator[Gateway]:
    """Run a gateway with certificates or tokens in front of the injector."""
    served = [ModelVersion("digits", "1.0")]
    gateway = Gateway(replace(SETTINGS, **limits), injector.address, served, Security(tls, authorisation))
    await gateway.start()
    try:
        yield gateway
    finally:
        await gateway.stop(5.0)
