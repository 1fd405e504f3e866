"""`pathlens serve --check` with real archives, certificates, tokens and ports; it starts nothing."""

import hashlib
import socket
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest
import trustme
from click.testing import CliRunner, Result

from pathlens.bundle.archive import pack
from pathlens.bundle.store import save_bundle
from pathlens.cli import main
from pathlens.torchserve.instance import free_ports
from tiny_bundle import tiny_bundle

SECRET = "correct-horse-battery-staple"  # noqa: S105 - of the tests alone


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("packed")
    save_bundle(tiny_bundle(), folder / "bundle")
    return pack(folder / "bundle", folder).read_bytes()


@pytest.fixture
def folder(archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, the current one, in which everything is as it should be."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "model_store").mkdir()
    (tmp_path / "model_store" / "tiny.mar").write_bytes(archive)
    authority = trustme.CA()
    certificate = authority.issue_cert("gateway.example", "127.0.0.1")
    (tmp_path / "tls.crt").write_bytes(certificate.cert_chain_pems[0].bytes())
    (tmp_path / "tls.key").write_bytes(certificate.private_key_pem.bytes())
    (tmp_path / "callers.crt").write_bytes(authority.cert_pem.bytes())
    (tmp_path / "tokens").write_text(f"shop:{SECRET}\nlab:{SECRET}2\n")
    for secret in ("tls.key", "tokens"):
        (tmp_path / secret).chmod(0o600)
    (tmp_path / "pathlens.toml").write_text(
        f"""
        [gateway]
        port = 0
        metrics_port = 0
        [torchserve.archive_sha256]
        tiny = "{hashlib.sha256(archive).hexdigest()}"
        [tls]
        certificate = "tls.crt"
        private_key = "tls.key"
        client_ca = "callers.crt"
        [authorisation]
        token_file = "tokens"
        """
    )
    return tmp_path


def check(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["serve", "--config", "pathlens.toml", "--check", *arguments])


def problems(*arguments: str) -> str:
    result = check(*arguments)
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    assert SECRET not in result.output
    return result.stderr


def rows(result: Result) -> dict[str, str]:
    assert result.exit_code == 0, result.output
    lines = [line.strip() for line in result.stdout.splitlines()[2:]]
    names = (
        "model tiny 1.0",
        "Java",
        "TorchServe",
        "workers' Python",
        "TLS certificate",
        "tokens",
        "gRPC port",
        "metrics",
        "tracing",
    )
    return {name: line.removeprefix(name).strip() for name in names for line in lines if line.startswith(name)}


def rewrite(path: Path, changed: Callable[[str, bytes], bytes | None]) -> None:
    """Write an archive anew with other contents; None leaves a file out."""
    with zipfile.ZipFile(path) as old:
        contents = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, data in contents.items():
            if (kept := changed(name, data)) is not None:
                new.writestr(name, kept)


def started_and_opened() -> tuple[set[int], set[int]]:
    """Processes that this one has started, the services of other tests included, and ports that it listens on."""
    this = psutil.Process()
    listening = (one for one in this.net_connections("tcp") if one.status == psutil.CONN_LISTEN)
    return {child.pid for child in this.children()}, {one.laddr.port for one in listening}


class TestCheck:
    @pytest.mark.usefixtures("folder")
    def test_it_prints_what_it_found(self) -> None:
        result = check()
        found = rows(result)
        assert "tiny.mar, " in found["model tiny 1.0"]
        assert "SHA-256 as pinned" in found["model tiny 1.0"]
        assert "version 21.0.8" in found["Java"]
        assert "version 0.12.0" in found["TorchServe"]
        assert found["TLS certificate"].startswith("for gateway.example, 127.0.0.1 until ")
        assert found["TLS certificate"].endswith("callers show certificates, too")
        assert found["tokens"] == "of shop, lab; health open, reflection open"
        assert found["gRPC port"] == "127.0.0.1, any free port"
        assert SECRET not in result.output
        assert "Warning" not in result.stderr

    @pytest.mark.usefixtures("folder")
    def test_it_starts_nothing_and_listens_to_nothing(self) -> None:
        before = started_and_opened()
        assert check().exit_code == 0
        assert started_and_opened() == before

    def test_the_defaults_are_enough(self, folder: Path) -> None:
        (folder / "pathlens.toml").write_text("")
        found = rows(check("--port", "0", "--metrics-port", "0"))
        assert found["TLS certificate"] == "none: plain text"
        assert found["tokens"] == "none asked for"
        assert found["tracing"] == "off"

    @pytest.mark.usefixtures("folder")
    def test_a_flag_goes_before_a_variable_and_a_variable_before_the_file(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATHLENS_GATEWAY__HOST", "::1")
        monkeypatch.setenv("PATHLENS_GATEWAY__METRICS_HOST", "::1")
        found = rows(check("--host", "127.0.0.2"))
        assert found["gRPC port"].startswith("127.0.0.2,")
        assert found["metrics"].startswith("port")
        assert "::1" in found["metrics"]

    @pytest.mark.usefixtures("folder")
    def test_the_file_may_be_named_by_a_variable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATHLENS_CONFIG", "pathlens.toml")
        result = CliRunner().invoke(main, ["serve", "--check"])
        assert rows(result)["tokens"].startswith("of shop")

    def test_what_stands_open_is_warned_of(self, folder: Path) -> None:
        (folder / "tokens").chmod(0o644)
        (folder / "pathlens.toml").write_text("[authorisation]\ntoken_file = 'tokens'")
        result = check("--host", "0.0.0.0", "--port", "0", "--metrics-port", "0")  # noqa: S104
        assert result.exit_code == 0
        warnings = result.stderr.splitlines()
        assert "without TLS" in warnings[0]
        assert "tokens can be read by other users" in warnings[1]
        assert len(warnings) == 2


class TestSplit:
    def test_each_command_looks_at_what_it_needs_alone(self, folder: Path) -> None:
        with (folder / "pathlens.toml").open("a") as file:
            ports = free_ports()
            file.write(f"[torchserve]\ninference_port = {ports.inference}\nmanagement_port = {ports.management}\n")
            file.write("health_port = 0\nmetrics_port = 0\n")
        torchserve = CliRunner().invoke(main, ["torchserve", "--config", "pathlens.toml", "--check"])
        (folder / "model_store" / "tiny.mar").unlink()
        gateway = CliRunner().invoke(main, ["gateway", "--config", "pathlens.toml", "--check"])
        assert (torchserve.exit_code, gateway.exit_code) == (0, 0), torchserve.output + gateway.output
        assert "model tiny 1.0" in torchserve.stdout
        assert "TLS" not in torchserve.stdout
        assert "inference" in torchserve.stdout
        assert "gateway.example" in gateway.stdout
        assert "Java" not in gateway.stdout

    @pytest.mark.usefixtures("folder")
    @pytest.mark.parametrize("command", ["torchserve", "gateway"])
    def test_ports_that_nobody_could_find_are_refused(self, command: str) -> None:
        result = CliRunner().invoke(main, [command, "--config", "pathlens.toml"])
        assert result.exit_code == 1
        assert "torchserve.inference_port is 0" in result.output
        assert "torchserve.management_port is 0" in result.output

    def test_torchserve_needs_an_archive(self, folder: Path) -> None:
        (folder / "model_store" / "tiny.mar").unlink()
        result = CliRunner().invoke(main, ["torchserve", "--config", "pathlens.toml"])
        assert result.exit_code == 1
        assert "pathlens pack BUNDLE" in result.output


class TestProblems:
    def test_all_problems_are_told_at_once(self, folder: Path) -> None:
        (folder / "model_store" / "broken.mar").write_bytes(b"no zip")
        rewrite(folder / "model_store" / "tiny.mar", lambda _, data: data)
        (folder / "tls.key").write_bytes(trustme.CA().private_key_pem.bytes())
        (folder / "tokens").write_text(f"{SECRET}\n")
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = str(taken.getsockname()[1])
            said = problems("--port", port, "--java-home", "nowhere")
        lines = said.splitlines()
        assert len(lines) == 6
        assert all(line.startswith("Error: ") and line.endswith("]") for line in lines)
        for words in (
            "broken.mar is not a plain zip file",
            "tiny.mar has SHA-256",
            "java_home is nowhere",
            "tls.key is not the key of the first certificate",
            "tokens is no file of tokens: line 1",
            f"Port {port} of 127.0.0.1 is not to be had",
        ):
            assert sum(words in line for line in lines) == 1, words

    def test_a_certificate_that_has_ended(self, folder: Path) -> None:
        yesterday = datetime.now(UTC) - timedelta(days=1)
        certificate = trustme.CA().issue_cert("x", not_before=yesterday - timedelta(9), not_after=yesterday)
        (folder / "tls.crt").write_bytes(certificate.cert_chain_pems[0].bytes())
        (folder / "tls.key").write_bytes(certificate.private_key_pem.bytes())
        assert "tls.crt is valid from" in problems()

    @pytest.mark.parametrize(
        ("changed", "words"),
        [
            (lambda name, data: data + b" " if name.endswith("classifier.json") else data, "it was changed"),
            (lambda name, data: None if name.endswith("bank.safetensors") else data, "lacks the file bank.safetensors"),
            (lambda name, data: None if name.startswith("bundle/") else data, "holds no bundle"),
            (lambda name, data: b"{}" if name.endswith("bundle.json") else data, "has schema version None"),
            (lambda name, data: data.replace(b'"tiny"', b'"tine"') if "MANIFEST" in name else data, "calls itself"),
        ],
        ids=["changed", "without a file", "without a bundle", "of another version", "of another name"],
    )
    def test_an_archive_whose_bundle_is_not_as_it_was_packed(
        self, changed: Callable[[str, bytes], bytes | None], words: str, folder: Path
    ) -> None:
        (folder / "pathlens.toml").write_text("[gateway]\nport = 0\nmetrics_port = 0")
        rewrite(folder / "model_store" / "tiny.mar", changed)
        assert words in problems()

    def test_an_archive_that_is_damaged_inside(self, folder: Path) -> None:
        (folder / "pathlens.toml").write_text("[gateway]\nport = 0\nmetrics_port = 0")
        path = folder / "model_store" / "tiny.mar"
        with zipfile.ZipFile(path) as content:
            offset = content.getinfo("bundle/bank.safetensors").header_offset
        data = bytearray(path.read_bytes())
        data[offset + 200] ^= 0xFF
        path.write_bytes(data)
        assert "tiny.mar is damaged" in problems()

    def test_two_archives_of_one_name(self, archive: bytes, folder: Path) -> None:
        (folder / "model_store" / "twin.mar").write_bytes(archive)
        assert "2 archives hold a model named 'tiny'" in problems()

    @pytest.mark.parametrize(
        ("script", "words"),
        [
            ("#!/bin/sh\necho 'openjdk version \"11.0.2\" 2019-01-15' >&2\n", "has version 11.0.2"),
            ("#!/bin/sh\nexit 3\n", "does not tell its version (status 3)"),
            ("\x7fELF of another machine", "cannot be run (Exec format error)"),
        ],
    )
    def test_a_java_that_does_not_run_torchserve(self, script: str, words: str, folder: Path) -> None:
        java = folder / "java" / "bin" / "java"
        java.parent.mkdir(parents=True)
        java.write_text(script)
        java.chmod(0o755)
        assert words in problems("--java-home", "java")

    @pytest.mark.usefixtures("folder")
    def test_a_python_that_is_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATHLENS_TORCHSERVE__PYTHON", "nopython")
        assert "nopython is not a program" in problems()

    def test_an_unknown_key_and_a_wrong_value(self, folder: Path) -> None:
        (folder / "pathlens.toml").write_text("[gateway]\nprot = 1\nport = 70000\n")
        said = problems()
        assert "pathlens.toml: there is no setting gateway.prot: did you mean gateway.port?" in said
        assert "pathlens.toml: gateway.port is 70000: choose a value from 0 to 65535." in said
        assert said.rstrip().endswith("[CONFIGURATION_INVALID]")

    @pytest.mark.parametrize(
        "arguments", [("--port", "70000"), ("--workers", "0"), ("--config", "no.toml"), ("--nope",)]
    )
    @pytest.mark.usefixtures("folder")
    def test_a_wrong_use_of_the_command_exits_with_two(self, arguments: tuple[str, ...]) -> None:
        assert check(*arguments).exit_code == 2

    def test_a_service_does_not_start_with_what_check_refuses(self, folder: Path) -> None:
        (folder / "tokens").write_text("nonsense")
        before = started_and_opened()
        result = CliRunner().invoke(main, ["serve", "--config", "pathlens.toml"])
        assert result.exit_code == 1
        assert "no file of tokens" in result.stderr
        assert started_and_opened() == before
