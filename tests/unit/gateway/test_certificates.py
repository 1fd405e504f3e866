"""TLS and mutual TLS, with real certificates and a real server, and their exchange while it runs."""

import asyncio
import logging
import os
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import trustme
from cryptography.hazmat.primitives.asymmetric import dsa, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from prometheus_client.parser import text_string_to_metric_families

from pathlens.errors import ServerStartError
from pathlens.gateway import Gateway, Security, TlsSettings
from pathlens.gateway.certificates import ServerCertificate
from pathlens.wire.v1 import explanation_service_pb2 as messages
from pathlens.wire.v1 import explanation_service_pb2_grpc

from .fault_injector import FaultInjector
from .secured import HOSTS, TlsFiles, pem, secure_channel, secured_gateway, tls_files

AUTHORITY, OTHER_AUTHORITY, CLIENT_AUTHORITY = trustme.CA(), trustme.CA(), trustme.CA()
PREDICT = messages.PredictRequest(image=messages.Image(encoded=b"seven"))
YESTERDAY = datetime.now(UTC) - timedelta(days=1)


async def metric(gateway: Gateway, name: str) -> float | None:
    """Scrape the only sample of a metric; None if there is none."""

    def scrape() -> str:
        with urllib.request.urlopen(f"http://{gateway.metrics_address}/metrics") as response:
            return str(response.read().decode())

    families = text_string_to_metric_families(await asyncio.to_thread(scrape))
    values = [sample.value for family in families for sample in family.samples if sample.name == name]
    return values[0] if values else None


async def predicted(channel: grpc.aio.Channel) -> str:
    stub: Any = explanation_service_pb2_grpc.ExplanationServiceStub(channel)
    return str((await stub.Predict(PREDICT, timeout=10)).predictions[0].label)


async def answers(channel: grpc.aio.Channel) -> bool:
    try:
        return await predicted(channel) == "seven"
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            raise
        return False


def private_key(key: Any, password: bytes = b"") -> bytes:
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    return bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))


def test_a_caller_that_trusts_the_authority_is_served(tmp_path: Path) -> None:
    async def scenario() -> None:
        settings = tls_files(tmp_path, AUTHORITY).settings()
        async with (
            FaultInjector() as injector,
            secured_gateway(injector, settings) as gateway,
            secure_channel(gateway, AUTHORITY) as channel,
        ):
            assert await predicted(channel) == "seven"

    asyncio.run(scenario())


def test_a_caller_that_trusts_another_authority_does_not_connect(tmp_path: Path) -> None:
    async def scenario() -> None:
        settings = tls_files(tmp_path, AUTHORITY).settings()
        async with (
            FaultInjector() as injector,
            secured_gateway(injector, settings) as gateway,
            secure_channel(gateway, OTHER_AUTHORITY) as channel,
        ):
            assert not await answers(channel)

    asyncio.run(scenario())


def test_plain_text_is_not_answered_where_there_is_a_certificate(tmp_path: Path) -> None:
    async def scenario() -> None:
        settings = tls_files(tmp_path, AUTHORITY).settings()
        async with (
            FaultInjector() as injector,
            secured_gateway(injector, settings) as gateway,
            grpc.aio.insecure_channel(gateway.address) as channel,
        ):
            assert not await answers(channel)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("certificate", "served"),
    [
        (CLIENT_AUTHORITY.issue_cert("caller"), True),
        (OTHER_AUTHORITY.issue_cert("caller"), False),
        (CLIENT_AUTHORITY.issue_cert("caller", not_before=YESTERDAY - timedelta(2), not_after=YESTERDAY), False),
        (None, False),
    ],
    ids=["of the authority", "of another authority", "that has ended", "without one"],
)
def test_mutual_tls_serves_callers_with_a_certificate_of_the_authority_alone(
    certificate: trustme.LeafCert | None, served: bool, tmp_path: Path
) -> None:
    async def scenario() -> None:
        settings = tls_files(tmp_path, AUTHORITY, CLIENT_AUTHORITY).settings()
        async with (
            FaultInjector() as injector,
            secured_gateway(injector, settings) as gateway,
            secure_channel(gateway, AUTHORITY, certificate) as channel,
        ):
            assert await answers(channel) is served

    asyncio.run(scenario())


def test_a_new_certificate_is_shown_to_new_connections_while_a_stream_goes_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        files = tls_files(tmp_path, AUTHORITY)
        async with (
            FaultInjector() as injector,
            secured_gateway(injector, files.settings()) as gateway,
            secure_channel(gateway, AUTHORITY) as old,
        ):
            stub: Any = explanation_service_pb2_grpc.ExplanationServiceStub(old)
            stream = stub.StreamExplain(timeout=30)

            async def explained(content: bytes) -> str:
                request = messages.ExplainRequest(image=messages.Image(encoded=content))
                await stream.write(messages.StreamExplainRequest(id="1", request=request))
                return str((await stream.read()).result.response.predictions[0].label)

            assert await explained(b"before") == "before"
            files.write(OTHER_AUTHORITY.issue_cert(*HOSTS))
            async with secure_channel(gateway, OTHER_AUTHORITY) as new:
                assert await predicted(new) == "seven"
            async with secure_channel(gateway, AUTHORITY) as distrustful:
                assert not await answers(distrustful)
            assert await explained(b"after") == "after"
            await stream.done_writing()

    asyncio.run(scenario())


def test_a_new_authority_of_the_callers_counts_for_new_connections(tmp_path: Path) -> None:
    async def scenario() -> None:
        files = tls_files(tmp_path, AUTHORITY, CLIENT_AUTHORITY)
        async with FaultInjector() as injector, secured_gateway(injector, files.settings()) as gateway:
            async with secure_channel(gateway, AUTHORITY, OTHER_AUTHORITY.issue_cert("caller")) as channel:
                assert not await answers(channel)
            files.client_ca.write_bytes(OTHER_AUTHORITY.cert_pem.bytes())
            async with secure_channel(gateway, AUTHORITY, OTHER_AUTHORITY.issue_cert("caller")) as channel:
                assert await answers(channel)
            async with secure_channel(gateway, AUTHORITY, CLIENT_AUTHORITY.issue_cert("caller")) as channel:
                assert not await answers(channel)

    asyncio.run(scenario())


def damage(name: str) -> Callable[[TlsFiles], object]:
    other, other_key = pem(OTHER_AUTHORITY.issue_cert(*HOSTS))
    ended = AUTHORITY.issue_cert(*HOSTS, not_before=YESTERDAY - timedelta(2), not_after=YESTERDAY)
    coming = AUTHORITY.issue_cert(*HOSTS, not_before=YESTERDAY + timedelta(2), not_after=YESTERDAY + timedelta(3))
    secret = load_pem_private_key(other_key, None)
    return {
        "another key": lambda files: files.private_key.write_bytes(other_key),
        "another certificate": lambda files: files.certificate.write_bytes(other),
        "no certificate": lambda files: files.certificate.write_text("certificate"),
        "half a certificate": lambda files: files.certificate.write_bytes(other[: len(other) // 2]),
        "an empty certificate": lambda files: files.certificate.write_bytes(b""),
        "no key": lambda files: files.private_key.write_text("key"),
        "an encrypted key": lambda files: files.private_key.write_bytes(private_key(secret, b"password")),
        "a missing key": lambda files: files.private_key.unlink(),
        "a folder": lambda files: (files.certificate.unlink(), files.certificate.mkdir()),
        "a certificate that has ended": lambda files: files.write(ended),
        "a certificate that has not begun": lambda files: files.write(coming),
        "a file of another kind": lambda files: files.certificate.write_bytes(bytes(2**20 + 1)),
        "no authority": lambda files: files.client_ca.write_text("nothing"),
        "an authority that has ended": lambda files: files.client_ca.write_bytes(ended.cert_chain_pems[0].bytes()),
    }[name]


DAMAGES = [
    ("another key", "private_key.pem is not the key of the first certificate in"),
    ("another certificate", "private_key.pem is not the key of the first certificate in"),
    ("no certificate", "certificate.pem holds no certificate"),
    ("half a certificate", "certificate.pem holds no certificate"),
    ("an empty certificate", "certificate.pem holds no certificate"),
    ("no key", "private_key.pem holds no private key"),
    ("an encrypted key", "private_key.pem is encrypted"),
    ("a missing key", "private_key.pem cannot be read (No such file"),
    ("a folder", "certificate.pem cannot be read (Is a directory"),
    ("a certificate that has ended", "certificate.pem is valid from"),
    ("a certificate that has not begun", "certificate.pem is valid from"),
    ("a file of another kind", "certificate.pem has more than 1048576 bytes"),
    ("no authority", "client_ca.pem holds no certificate"),
    ("an authority that has ended", "client_ca.pem is valid from"),
]


@pytest.mark.parametrize(("name", "complaint"), DAMAGES)
def test_what_is_no_certificate_with_its_key_is_refused_at_the_start(name: str, complaint: str, tmp_path: Path) -> None:
    files = tls_files(tmp_path, AUTHORITY, CLIENT_AUTHORITY)
    settings = files.settings()
    damage(name)(files)
    with pytest.raises(ServerStartError) as caught:
        Security(settings)
    assert complaint in caught.value.message
    assert "BEGIN" not in caught.value.message


@pytest.mark.parametrize("key", [ed25519.Ed25519PrivateKey.generate(), dsa.generate_private_key(2048)])
def test_a_key_that_grpc_does_not_use_is_refused_with_those_that_it_uses(key: Any, tmp_path: Path) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, YESTERDAY, YESTERDAY + timedelta(days=9))
    ).sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256())
    settings = TlsSettings(certificate=tmp_path / "certificate.pem", private_key=tmp_path / "private_key.pem")
    settings.certificate.write_bytes(certificate.public_bytes(Encoding.PEM))
    settings.private_key.write_bytes(private_key(key))
    with pytest.raises(ServerStartError, match="use RSA, P-256 or P-384"):
        ServerCertificate(settings)


@pytest.mark.parametrize(("name", "complaint"), DAMAGES)
def test_broken_files_keep_the_certificate_and_are_logged_once(
    name: str, complaint: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        files = tls_files(tmp_path, AUTHORITY, CLIENT_AUTHORITY)
        caller = CLIENT_AUTHORITY.issue_cert("caller")
        async with FaultInjector() as injector, secured_gateway(injector, files.settings()) as gateway:
            damage(name)(files)
            for _ in range(3):
                async with secure_channel(gateway, AUTHORITY, caller) as channel:
                    assert await answers(channel)

    with caplog.at_level(logging.INFO):
        asyncio.run(scenario())
    (record,) = (record for record in caplog.records if record.levelno >= logging.ERROR)
    assert complaint in record.getMessage()
    assert "Going on with the certificates read before" in record.getMessage()


def test_repaired_files_are_in_use_again_and_a_second_damage_is_logged_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        files = tls_files(tmp_path, AUTHORITY)
        async with FaultInjector() as injector, secured_gateway(injector, files.settings()) as gateway:
            for authority in (OTHER_AUTHORITY, AUTHORITY):
                files.certificate.write_text("damaged")
                async with secure_channel(gateway, AUTHORITY) as channel:
                    await answers(channel)
                files.write(authority.issue_cert(*HOSTS))
                async with secure_channel(gateway, authority) as channel:
                    assert await answers(channel)

    with caplog.at_level(logging.INFO):
        asyncio.run(scenario())
    assert [record.levelno for record in caplog.records if record.name.endswith("reloading")] == [
        *(logging.ERROR, logging.INFO) * 2
    ]


def test_a_file_with_an_older_time_is_seen(tmp_path: Path) -> None:
    files = tls_files(tmp_path, AUTHORITY)
    certificate = ServerCertificate(files.settings())
    before = certificate.ends
    files.write(AUTHORITY.issue_cert(*HOSTS, not_after=datetime.now(UTC) + timedelta(days=2)))
    os.utime(files.certificate, (0, 0))
    assert certificate.ends < before


def test_a_certificate_tells_its_hosts(tmp_path: Path) -> None:
    assert ServerCertificate(tls_files(tmp_path, AUTHORITY).settings()).names == HOSTS


def test_the_end_of_a_new_certificate_is_among_the_metrics(tmp_path: Path) -> None:
    files = tls_files(tmp_path, AUTHORITY)
    last = datetime.now(UTC).replace(microsecond=0) + timedelta(days=2)

    async def scenario() -> None:
        async with FaultInjector() as injector, secured_gateway(injector, files.settings()) as gateway:
            files.write(AUTHORITY.issue_cert(*HOSTS, not_after=last))
            assert (await metric(gateway, "pathlens_certificate_expiry_timestamp_seconds")) == last.timestamp()

    asyncio.run(scenario())


def test_without_a_certificate_there_is_no_end_of_one_among_the_metrics() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, secured_gateway(injector) as gateway:
            assert await metric(gateway, "pathlens_certificate_expiry_timestamp_seconds") is None

    asyncio.run(scenario())
