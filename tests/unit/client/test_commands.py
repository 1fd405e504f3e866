import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from click.testing import CliRunner, Result

from pathlens.cli import main
from pathlens.errors import UnavailableError
from pathlens.wire.v1 import explanation_service_pb2 as pb

from .scripted_service import ScriptedService, serving


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    authority = trustme.CA()
    client = authority.issue_cert("someone@example.com")
    named = {name: tmp_path / name for name in ("roots", "certificate", "key", "token", "image")}
    authority.cert_pem.write_to_path(named["roots"])
    client.cert_chain_pems[0].write_to_path(named["certificate"])
    client.private_key_pem.write_to_path(named["key"])
    named["token"].write_text("correct-horse-battery\n")
    named["image"].write_bytes(b"one")
    server = authority.issue_cert("gateway.internal")
    (tmp_path / "server.pem").write_bytes(server.cert_chain_pems[0].bytes())
    (tmp_path / "server.key").write_bytes(server.private_key_pem.bytes())
    return named


@pytest.fixture
def service(files: dict[str, Path], tmp_path: Path) -> Iterator[ScriptedService]:
    import grpc

    pair = (tmp_path / "server.key").read_bytes(), (tmp_path / "server.pem").read_bytes()
    credentials = grpc.ssl_server_credentials([pair], files["roots"].read_bytes(), require_client_auth=True)
    with serving(ScriptedService(), credentials) as service:
        yield service


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)))


@pytest.mark.parametrize("command", ["models", "explain"])
def test_a_command_reaches_a_service_that_asks_for_certificate_and_token(
    command: str, service: ScriptedService, files: dict[str, Path]
) -> None:
    done = run(
        *(["models"] if command == "models" else ["explain", files["image"]]),
        *("--address", service.address, "--server-name", "gateway.internal", "--root-certificates", files["roots"]),
        *("--certificate", files["certificate"], "--key", files["key"], "--token-file", files["token"]),
        *("--format", "json", "--timeout", "20"),
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)
    (seen,) = service.seen
    assert seen.metadata["authorization"] == "Bearer correct-horse-battery"
    assert seen.time_remaining is not None
    assert seen.time_remaining < 20


def test_models_repeats_what_fails_for_the_moment_as_often_as_told() -> None:
    later = UnavailableError("Restarting.", reason="WORKER_RESTARTING", retry_after=0.01)
    for retries, calls in ((0, 1), (1, 2)):
        with serving(ScriptedService(*[later] * 5)) as service:
            done = run("models", "--address", service.address, "--retries", str(retries))
            assert done.exit_code == 1
            assert "WORKER_RESTARTING" in done.output
            assert len(service.seen) == calls


def test_a_token_for_another_machine_needs_tls(files: dict[str, Path]) -> None:
    done = run("models", "--address", "pathlens.example.com:443", "--token-file", files["token"])
    assert done.exit_code == 1
    assert "plain text" in done.output
    assert "correct-horse" not in done.output


def test_the_file_of_the_token_may_be_named_by_the_environment(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATHLENS_TOKEN_FILE", str(files["token"]))
    with serving(ScriptedService()) as service:
        assert run("models", "--address", service.address).exit_code == 0
        assert service.seen[0].metadata["authorization"] == "Bearer correct-horse-battery"


def test_half_a_pair_of_certificate_and_key_is_refused(files: dict[str, Path]) -> None:
    done = run("models", "--certificate", files["certificate"])
    assert done.exit_code == 2
    assert "--certificate and --key belong together" in done.output


@pytest.mark.parametrize("arguments", [("--timeout", "0"), ("--timeout", "nan"), ("--retries", "-1")])
def test_a_number_out_of_range_is_refused(arguments: tuple[str, str]) -> None:
    done = run("models", *arguments)
    assert done.exit_code == 2
    assert arguments[0] in done.output


@pytest.mark.parametrize(
    ("typicality", "words"),
    [
        (
            pb.Typicality(sparsity_rank=0.1, class_pathway_iou_rank=0.416, confidence_drop_rank=0.93, class_images=187),
            "among 187 held-out images of its class: sparsity rank 0.10, IoU rank 0.42, drop rank 0.93",
        ),
        (pb.Typicality(confidence_drop_rank=0.93), "among all held-out images: drop rank 0.93"),
        (None, None),
    ],
    ids=["of its class", "of all classes", "unknown"],
)
def test_explain_says_in_a_line_how_typical_an_explanation_is(
    typicality: pb.Typicality | None, words: str | None, files: dict[str, Path]
) -> None:
    with serving(ScriptedService()) as service:
        service.stream = lambda requests: (explained(request, typicality) for request in requests)
        shown = run("explain", files["image"], "--address", service.address)
        (written,) = json.loads(run("explain", files["image"], "--address", service.address, "--format=json").stdout)
    assert shown.exit_code == 0, shown.output
    said = [line for line in shown.stdout.splitlines() if "held-out" in line]
    assert said == ([] if words is None else [f"image  cat  {words}"])
    assert ("typicality" in written["explanations"][0]) is (words is not None)


def explained(request: pb.StreamExplainRequest, typicality: pb.Typicality | None) -> pb.StreamExplainResponse:
    explanation = pb.Explanation(
        target=pb.Prediction(label="cat"),
        source=pb.PATHWAY_SOURCE_GENERATED,
        granularity=pb.GRANULARITY_CHANNEL,
        ablation=pb.ABLATION_ZERO,
        typicality=typicality,
    )
    response = pb.ExplainResponse(predictions=[explanation.target], explanations=[explanation])
    return pb.StreamExplainResponse(id=request.id, result=pb.ExplainResult(response=response))


@pytest.mark.parametrize("command", ["models", "explain"])
def test_the_help_shows_a_secured_call(command: str) -> None:
    done = run(command, "--help")
    assert "--tls --token-file token" in done.output
