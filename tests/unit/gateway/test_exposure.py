"""What the gateway warns of when it starts."""

import asyncio
import logging
import os
import tempfile
from pathlib import Path

import pytest

from pathlens.gateway import AuthorisationSettings, TlsSettings
from pathlens.gateway.exposure import exposure_warnings

from .fault_injector import FaultInjector
from .secured import secured_gateway


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    paths = {name: tmp_path / name for name in ("certificate", "private_key", "client_ca", "token_file")}
    for path in paths.values():
        path.touch(0o600)
    return paths


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "::1", "localhost"])
def test_loopback_needs_no_protection(host: str) -> None:
    assert exposure_warnings(host, None, AuthorisationSettings()) == []


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "gateway.example"])  # noqa: S104 - named, not bound
@pytest.mark.parametrize(
    ("tls", "mutual", "tokens", "words"),
    [
        (False, False, False, ["change images and answers", "answers to everyone"]),
        (False, False, True, ["change tokens, images and answers"]),
        (True, False, False, ["answers to everyone"]),
        (True, True, False, []),
        (True, False, True, []),
    ],
)
def test_other_addresses_are_warned_of_what_they_lack(
    host: str, tls: bool, mutual: bool, tokens: bool, words: list[str], files: dict[str, Path]
) -> None:
    client_ca = files["client_ca"] if mutual else None
    settings = TlsSettings(certificate=files["certificate"], private_key=files["private_key"], client_ca=client_ca)
    authorisation = AuthorisationSettings(token_file=files["token_file"] if tokens else None)
    found = exposure_warnings(host, settings if tls else None, authorisation)
    assert len(found) == len(words)
    assert all(word in warning and host in warning for word, warning in zip(words, found, strict=True))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
@pytest.mark.parametrize("secret", ["private_key", "token_file"])
def test_a_secret_that_others_can_read_is_named(secret: str, mode: int, files: dict[str, Path]) -> None:
    files[secret].chmod(mode)
    settings = TlsSettings(certificate=files["certificate"], private_key=files["private_key"])
    (warning,) = exposure_warnings("::1", settings, AuthorisationSettings(token_file=files["token_file"]))
    assert str(files[secret]) in warning
    assert "chmod 600" in warning


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can share a file as root and then be somebody else")
@pytest.mark.parametrize(("mode", "warnings"), [(0o440, 0), (0o444, 1)])
def test_a_secret_that_root_shares_with_our_group_is_ours_alone(mode: int, warnings: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        secret = Path(folder) / "tokens"
        secret.touch()
        secret.chmod(mode)
        Path(folder).chmod(0o755)
        os.seteuid(10001)
        try:
            found = exposure_warnings("::1", None, AuthorisationSettings(token_file=secret))
        finally:
            os.seteuid(0)
    assert len(found) == warnings


def test_what_is_public_may_be_readable(files: dict[str, Path]) -> None:
    files["certificate"].chmod(0o644)
    files["client_ca"].chmod(0o644)
    settings = TlsSettings(
        certificate=files["certificate"], private_key=files["private_key"], client_ca=files["client_ca"]
    )
    assert exposure_warnings("0.0.0.0", settings, AuthorisationSettings()) == []  # noqa: S104


def test_a_gateway_says_it_once_when_it_starts(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, secured_gateway(injector, host="0.0.0.0"):  # noqa: S104
            pass

    with caplog.at_level(logging.WARNING):
        asyncio.run(scenario())
    assert caplog.text.count("without TLS") == caplog.text.count("answers to everyone") == 1
