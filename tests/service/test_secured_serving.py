"""`pathlens serve` with certificates for both sides and tokens, called as its own output says."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import trustme
from PIL import Image

from pathlens.bundle.archive import pack
from pathlens.bundle.store import save_bundle
from tiny_bundle import tiny_bundle

PATHLENS = "from pathlens.cli import main; main()"
TOKEN = "correct-horse-battery-staple"  # noqa: S105 - of the tests alone


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive, a configuration with TLS and tokens, and what a caller needs, under the names that are printed."""
    folder = tmp_path_factory.mktemp("secured")
    save_bundle(tiny_bundle(), folder / "bundle")
    pack(folder / "bundle", folder / "model_store")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "AUTHORITY.pem"))
    certificate, caller = authority.issue_cert("127.0.0.1"), authority.issue_cert("caller")
    certificate.cert_chain_pems[0].write_to_path(str(folder / "tls.crt"))
    certificate.private_key_pem.write_to_path(str(folder / "tls.key"))
    caller.cert_chain_pems[0].write_to_path(str(folder / "CERTIFICATE.pem"))
    caller.private_key_pem.write_to_path(str(folder / "KEY.pem"))
    (folder / "tokens").write_text(f"shop:{TOKEN}\n")
    (folder / "TOKEN").write_text(TOKEN)
    for secret in ("tls.key", "KEY.pem", "tokens", "TOKEN"):
        (folder / secret).chmod(0o600)
    (folder / "pathlens.toml").write_text(
        """
        [gateway]
        port = 0
        metrics_port = 0
        [tls]
        certificate = "tls.crt"
        private_key = "tls.key"
        client_ca = "AUTHORITY.pem"
        [authorisation]
        token_file = "tokens"
        """
    )
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "IMAGE", "PNG")
    return folder


@pytest.fixture(scope="module")
def printed(folder: Path) -> Iterator[str]:
    """What a running `pathlens serve` has printed."""
    with (folder / "log").open("w") as log:
        serving = subprocess.Popen(
            [sys.executable, "-c", PATHLENS, "serve", "--config", "pathlens.toml"],
            cwd=folder,
            text=True,
            stdout=subprocess.PIPE,
            stderr=log,
        )
    try:
        assert serving.stdout is not None
        yield "".join(serving.stdout.readline() for _ in range(3))
    finally:
        serving.terminate()
        serving.communicate(timeout=60)


def explained(folder: Path, options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PATHLENS, "explain", *shlex.split(options)]
    return subprocess.run(command, cwd=folder, text=True, capture_output=True, timeout=60)


def first_call(printed: str) -> str:
    found = re.search(r"^try .* explain (IMAGE .*)$", printed, re.MULTILINE)
    assert found is not None, printed
    return found[1]


def test_the_printed_first_call_gets_in(folder: Path, printed: str) -> None:
    done = explained(folder, first_call(printed))
    assert done.returncode == 0, done.stderr
    assert any(label in done.stdout for label in tiny_bundle().labels)


@pytest.mark.parametrize(
    ("missing", "reason"),
    [(" --token-file TOKEN", "UNAUTHENTICATED"), (" --certificate CERTIFICATE.pem --key KEY.pem", "UNAVAILABLE")],
)
def test_without_one_of_its_options_it_does_not(folder: Path, printed: str, missing: str, reason: str) -> None:
    options = first_call(printed)
    assert missing in options
    done = explained(folder, options.replace(missing, ""))
    assert done.returncode == 1
    assert f"[{reason}]" in done.stderr


def test_no_secret_is_printed_or_logged(folder: Path, printed: str) -> None:
    explained(folder, first_call(printed))
    said = printed + (folder / "log").read_text()
    assert TOKEN not in said
    assert "PRIVATE KEY" not in said
