import logging
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.experimental
import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from pathlens.client import Client, Connection, RetryPolicy, TransportSecurity
from pathlens.errors import InvalidRequestError, PathlensError, UnavailableError

from .both_clients import Kind, both_clients, call
from .scripted_service import ScriptedService, Turn, serving

TOKEN = "correct-horse-battery"  # noqa: S105
ONCE = RetryPolicy(attempts=1)


class Certificates:
    """The files of an authority, and those of a service and a client that it vouches for."""

    def __init__(self, folder: Path, *names: str) -> None:
        authority = trustme.CA()
        self.roots = folder / "roots.pem"
        authority.cert_pem.write_to_path(self.roots)
        self._server = authority.issue_cert(*names)
        client = authority.issue_cert("someone@example.com")
        self.certificate, self.key = folder / "client.pem", folder / "client.key"
        self.certificate.write_bytes(b"".join(blob.bytes() for blob in client.cert_chain_pems))
        client.private_key_pem.write_to_path(self.key)

    def server(self, mutual: bool = False) -> grpc.ServerCredentials:
        pair = self._server.private_key_pem.bytes(), self._server.cert_chain_pems[0].bytes()
        roots = self.roots.read_bytes() if mutual else None
        return grpc.ssl_server_credentials([pair], roots, require_client_auth=mutual)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"), "127.0.0.1")


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("strangers"), "127.0.0.1")


@pytest.fixture
def encrypted(certificates: Certificates) -> Iterator[ScriptedService]:
    with serving(ScriptedService(), certificates.server()) as service:
        yield service


@both_clients
def test_a_service_is_called_over_tls(kind: Kind, encrypted: ScriptedService, certificates: Certificates) -> None:
    assert call(kind, Connection(encrypted.address, TransportSecurity(certificates.roots)), "list_models")


@both_clients
@pytest.mark.parametrize("trust", ["strangers", "gRPC's own list", "plain text"])
def test_a_service_that_cannot_prove_itself_is_not_called(
    kind: Kind, trust: str, encrypted: ScriptedService, strangers: Certificates
) -> None:
    security = {"strangers": TransportSecurity(strangers.roots), "gRPC's own list": TransportSecurity()}.get(trust)
    with pytest.raises(UnavailableError, match="TLS"):
        call(kind, Connection(encrypted.address, security), "list_models", retries=ONCE)
    assert encrypted.seen == []


@both_clients
def test_a_client_proves_itself_where_the_service_asks_for_it(kind: Kind, certificates: Certificates) -> None:
    with serving(ScriptedService(), certificates.server(mutual=True)) as service:
        known = TransportSecurity(certificates.roots, certificates.certificate, certificates.key)
        assert call(kind, Connection(service.address, known), "list_models")


@both_clients
def test_a_client_without_a_certificate_is_turned_away_there(kind: Kind, certificates: Certificates) -> None:
    with serving(ScriptedService(), certificates.server(mutual=True)) as service:
        with pytest.raises(UnavailableError):
            call(kind, Connection(service.address, TransportSecurity(certificates.roots)), "list_models", retries=ONCE)
        assert service.seen == []


@both_clients
def test_the_name_in_the_certificate_may_be_another_than_the_address(kind: Kind, tmp_path: Path) -> None:
    named = Certificates(tmp_path, "gateway.internal")
    with serving(ScriptedService(), named.server()) as service:
        with pytest.raises(UnavailableError):
            call(kind, Connection(service.address, TransportSecurity(named.roots)), "list_models", retries=ONCE)
        security = TransportSecurity(named.roots, server_name="gateway.internal")
        assert call(kind, Connection(service.address, security), "list_models")


@both_clients
def test_credentials_of_grpc_itself_are_taken(
    kind: Kind, encrypted: ScriptedService, certificates: Certificates
) -> None:
    security = grpc.ssl_channel_credentials(certificates.roots.read_bytes())
    assert call(kind, Connection(encrypted.address, security), "list_models")


@both_clients
def test_the_token_is_shown_with_every_call_over_tls(
    kind: Kind, encrypted: ScriptedService, certificates: Certificates
) -> None:
    connection = Connection(encrypted.address, TransportSecurity(certificates.roots), token=TOKEN)
    call(kind, connection, "list_models")
    call(kind, connection, "stream_explain", [b"one"])
    assert [seen.metadata.get("authorization") for seen in encrypted.seen] == [f"Bearer {TOKEN}"] * 2


@both_clients
def test_the_token_is_shown_over_plain_text_on_loopback(kind: Kind) -> None:
    with serving(ScriptedService()) as service:
        connection = Connection(service.address, token=TOKEN)
        call(kind, connection, "list_models")
        call(kind, connection, "stream_explain", [b"one"])
        assert [seen.metadata.get("authorization") for seen in service.seen] == [f"Bearer {TOKEN}"] * 2


@both_clients
def test_without_a_token_nobody_is_named(kind: Kind) -> None:
    with serving(ScriptedService()) as service:
        call(kind, service.address, "list_models")
        assert "authorization" not in service.seen[0].metadata


@both_clients
def test_grpc_keeps_the_token_back_where_its_own_credentials_do_not_encrypt(kind: Kind) -> None:
    with serving(ScriptedService()) as service:
        pretended = grpc.experimental.insecure_channel_credentials()  # type: ignore[no-untyped-call]
        with pytest.raises(PathlensError):
            call(kind, Connection(service.address, pretended, token=TOKEN), "list_models")
        assert service.seen == []


def test_a_token_that_is_replaced_is_the_one_shown_next(
    encrypted: ScriptedService, certificates: Certificates, tmp_path: Path
) -> None:
    file, successor = tmp_path / "token", tmp_path / "next"
    file.write_text("first\n")
    connection = Connection(encrypted.address, TransportSecurity(certificates.roots), token=file)
    with Client(connection) as client:
        client.list_models()
        # As long as the first, and in one move: neither size nor inode need tell that it is another.
        successor.write_text("later\n")
        successor.replace(file)
        client.list_models()
    assert [seen.metadata["authorization"] for seen in encrypted.seen] == ["Bearer first", "Bearer later"]


def test_a_token_that_is_replaced_between_two_attempts_is_shown_with_the_second(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first")

    class Replacing(ScriptedService):
        def _play(self, turn: Turn, context: Any) -> None:
            file.write_text("later")
            super()._play(turn, context)

    with serving(Replacing(UnavailableError("Restarting.", retry_after=0.05))) as service:
        call(Client, Connection(service.address, token=file), "list_models")
        assert [seen.metadata["authorization"] for seen in service.seen] == ["Bearer first", "Bearer later"]


@both_clients
def test_a_file_without_a_token_is_an_error_that_names_it(kind: Kind, tmp_path: Path) -> None:
    file = tmp_path / "token"
    with serving(ScriptedService()) as service:
        with pytest.raises(FileNotFoundError):
            call(kind, Connection(service.address, token=file), "list_models")
        file.write_text(" \n")
        with pytest.raises(InvalidRequestError, match=f"{file} is empty"):
            call(kind, Connection(service.address, token=file), "list_models")
        file.write_bytes(b"\xff\xfe" + TOKEN.encode())
        with pytest.raises(InvalidRequestError) as failure:
            call(kind, Connection(service.address, token=file), "list_models")
        assert TOKEN not in "".join(traceback.format_exception(failure.value))
        assert service.seen == []


@both_clients
@pytest.mark.parametrize("security", ["plain", "tls"])
def test_the_token_is_in_no_error_and_no_log(
    kind: Kind, security: str, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    credentials = certificates.server() if security == "tls" else None
    script = [UnavailableError("Restarting.", retry_after=0.01), InvalidRequestError("Wrong.")]
    with caplog.at_level(logging.DEBUG), serving(ScriptedService(*script), credentials) as service:
        tls = TransportSecurity(certificates.roots) if security == "tls" else None
        connection = Connection(service.address, tls, token=TOKEN)
        with pytest.raises(InvalidRequestError) as failure:
            call(kind, connection, "list_models")
        told = "".join(traceback.format_exception(failure.value)) + repr(failure.value.metadata) + caplog.text
        assert service.seen[1].metadata["authorization"] == f"Bearer {TOKEN}"
    assert TOKEN not in told


def test_a_certificate_without_its_key_is_refused(certificates: Certificates) -> None:
    for half in ((certificates.certificate, None), (None, certificates.key)):
        with pytest.raises(InvalidRequestError, match="mutual TLS needs both"):
            TransportSecurity(None, *half)


@both_clients
def test_files_that_are_no_certificates_are_refused_by_the_constructor(
    kind: Kind, certificates: Certificates, strangers: Certificates, tmp_path: Path
) -> None:
    text, locked = tmp_path / "text.pem", tmp_path / "locked.key"
    text.write_text("no certificate")
    key = load_pem_private_key(certificates.key.read_bytes(), None)
    password = BestAvailableEncryption(b"secret")
    locked.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, password))
    for security, told in (
        (TransportSecurity(text), f"{text} holds no certificate"),
        (TransportSecurity(None, certificates.certificate, text), f"{text} are not a certificate"),
        (TransportSecurity(None, text, certificates.key), f"{text} and"),
        (TransportSecurity(None, certificates.certificate, strangers.key), "are not a certificate"),
        (TransportSecurity(None, certificates.certificate, locked), f"{locked} is encrypted"),
    ):
        with pytest.raises(InvalidRequestError, match=told):
            kind(Connection("localhost:1", security))


@both_clients
def test_a_certificate_that_is_missing_is_an_error_of_the_constructor(kind: Kind, certificates: Certificates) -> None:
    missing = Path("no-such.pem")
    for security in (
        TransportSecurity(missing),
        TransportSecurity(None, missing, certificates.key),
        TransportSecurity(None, certificates.certificate, missing),
    ):
        with pytest.raises(FileNotFoundError) as failure:
            kind(Connection("localhost:1", security))
        assert str(failure.value.filename) == str(missing)
