"""`pathlens torchserve` and `pathlens gateway` as two real processes, as in the two containers of a pod."""

import signal
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import trustme

from pathlens.bundle.archive import HANDLER, pack
from pathlens.bundle.store import save_bundle
from pathlens.client import Client, Connection, TransportSecurity
from pathlens.errors import PathlensError, UnavailableError
from pathlens.wire.v1 import explanation_service_pb2 as messages
from pathlens.wire.v1 import explanation_service_pb2_grpc
from service.split_processes import Split, health, metrics, wait_until
from tiny_bundle import tensor, tiny_bundle

CALLS = 8
# While this file is there, every answer takes its time.
SLOW = """
_encode_quickly = _encode_answer


def _encode_answer(answer, explaining):
    if Path({file!r}).exists():
        time.sleep(0.4)
    return _encode_quickly(answer, explaining)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("split")


@pytest.fixture(scope="module")
def slowness(folder: Path) -> Path:
    """The file that makes the worker slow."""
    return folder / "slow"


@pytest.fixture(scope="module")
def archives(folder: Path, slowness: Path) -> dict[str, Path]:
    """The same model in two versions."""
    save_bundle(tiny_bundle(), folder / "bundle")
    found = {}
    for version in ("1.0", "2.0"):
        packed = pack(folder / "bundle", folder / "packed", version=version, file_name=f"tiny-{version}.mar")
        found[version] = folder / packed.name
        with zipfile.ZipFile(packed) as source, zipfile.ZipFile(found[version], "w") as target:
            for entry in source.infolist():
                content = source.read(entry)
                if entry.filename == HANDLER:
                    content += SLOW.format(file=str(slowness)).encode()
                # Under its own name: a worker finds the installed handler first.
                name = entry.filename.replace(HANDLER, "slow_handler.py")
                target.writestr(name, content.replace(HANDLER.encode(), b"slow_handler.py"))
    return found


@pytest.fixture(scope="module")
def authority(folder: Path) -> Path:
    """The certificate that callers trust; the gateway's own lies beside it."""
    made = trustme.CA()
    certificate = made.issue_cert("127.0.0.1")
    certificate.cert_chain_pems[0].write_to_path(folder / "tls.crt")
    certificate.private_key_pem.write_to_path(folder / "tls.key")
    (folder / "tls.key").chmod(0o600)
    made.cert_pem.write_to_path(folder / "authority.crt")
    return folder / "authority.crt"


@pytest.fixture(scope="module")
def running(folder: Path, archives: dict[str, Path], authority: Path) -> Iterator[Split]:
    settings = {
        "TLS__CERTIFICATE": folder / "tls.crt",
        "TLS__PRIVATE_KEY": folder / "tls.key",
        "TORCHSERVE__MAX_RESTARTS": 2,
    }
    with Split(archives["1.0"], folder, settings) as split:
        yield split


@pytest.fixture
def split(running: Split) -> Split:
    """Both, ready, whatever the test before has done to them."""
    running.wait_until_ready()
    return running


@pytest.fixture
def client(split: Split, authority: Path) -> Iterator[Client]:
    connection = Connection(split.gateway.printed("gRPC"), TransportSecurity(root_certificates=authority))
    with Client(connection, timeout=30, retries=None) as made:
        yield made


def test_a_gateway_that_sees_no_archive_explains_with_a_torchserve_of_another_process(
    split: Split, client: Client
) -> None:
    assert client.explain(tensor()).predictions
    # Neither has files of the other, and the gateway has none.
    assert list(split.gateway.temporary.iterdir()) == []


def test_probes_ask_in_plain_text_beside_a_port_with_tls(split: Split) -> None:
    for probes in (split.gateway.printed("health"), split.torchserve.printed("health")):
        assert [health(probes, name) for name in ("liveness", "readiness", "")] == ["SERVING"] * 3
    assert health(split.gateway.printed("gRPC"), "liveness") == ""
    # Nothing else is open in plain text.
    with (
        grpc.insecure_channel(split.gateway.printed("health")) as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        explanation_service_pb2_grpc.ExplanationServiceStub(channel).ListModels(messages.ListModelsRequest(), timeout=5)
    assert getattr(caught.value, "code", lambda: None)() is grpc.StatusCode.UNIMPLEMENTED


def test_torchserve_s_metrics_are_those_of_its_own_process_alone(split: Split) -> None:
    exposed = {name for name, *_ in metrics(split.torchserve.printed("metrics"))}
    # A restart of the container is seen by the start of its process.
    assert "process_start_time_seconds" in exposed
    own = {name for name in exposed if not name.startswith("process_")}
    assert own == {
        "pathlens_torchserve_restarts_total",
        "pathlens_worker_restarts_total",
        "pathlens_torchserve_processes",
        "pathlens_torchserve_resident_memory_bytes",
        "pathlens_torchserve_cpu_seconds_total",
    }
    assert not own & {name for name, *_ in metrics(split.gateway.printed("metrics"))}


def test_a_killed_worker_and_a_killed_jvm_come_back_behind_the_same_gateway(split: Split, client: Client) -> None:
    endpoint = split.torchserve.printed("metrics")
    before = metrics(endpoint)
    worker, jvm, gateway = split.torchserve.worker(), split.torchserve.jvm(), split.gateway.process
    assert worker is not None
    assert jvm is not None
    worker.kill()
    wait_until(lambda: metrics(endpoint)["pathlens_worker_restarts_total",] > before["pathlens_worker_restarts_total",])
    middle = metrics(endpoint)
    assert (
        middle["pathlens_torchserve_cpu_seconds_total", "worker"]
        >= (before["pathlens_torchserve_cpu_seconds_total", "worker"])
    )
    jvm.kill()
    wait_until(lambda: health(split.gateway.printed("health"), "readiness") == "NOT_SERVING")
    assert health(split.gateway.printed("health"), "liveness") == "SERVING"
    with pytest.raises(UnavailableError) as caught:
        client.predict(tensor())
    assert caught.value.retry_after is not None
    split.wait_until_ready()
    assert client.predict(tensor()).predictions
    after = metrics(endpoint)
    counts = {name: after[name] - before[name] for name in before}
    assert counts["pathlens_torchserve_restarts_total", "ended"] == 1
    # The worker that went with its JVM is none that TorchServe has replaced.
    assert counts["pathlens_worker_restarts_total",] == 1
    for process in ("jvm", "worker"):
        name = "pathlens_torchserve_cpu_seconds_total"
        assert before[name, process] <= middle[name, process] <= after[name, process]
        assert after["pathlens_torchserve_processes", process] == 1
        assert after["pathlens_torchserve_resident_memory_bytes", process] > 1e7
    assert gateway.is_running()


def test_the_gateway_takes_up_a_torchserve_that_comes_back_with_another_version(
    split: Split, client: Client, archives: dict[str, Path]
) -> None:
    while split.torchserve.status(0.05) is None:
        if (jvm := split.torchserve.jvm()) is not None:
            jvm.kill()
    # It has given up.
    assert split.torchserve.status() == 1
    assert "TORCHSERVE_DIED" in split.torchserve.log
    split.start_torchserve(archives["2.0"])
    split.wait_until_ready()
    assert [one.model.version for one in client.list_models()] == ["2.0"]
    assert client.predict(tensor()).model.version == "2.0"
    assert ("pathlens_model_info", "tiny", "1.0") not in metrics(split.gateway.printed("metrics"))


def test_a_drain_of_both_at_once_loses_no_call(split: Split, client: Client, slowness: Path) -> None:
    client.predict(tensor())
    slowness.touch()
    outcomes: list[object] = []

    def ask(seed: int) -> None:
        try:
            outcomes.append(client.predict(tensor(seed)).predictions)
        except PathlensError as error:
            outcomes.append(error)

    asking = [threading.Thread(target=ask, args=(seed,)) for seed in range(CALLS)]
    for one in asking:
        one.start()
    # Some are computed and some wait in the gateway.
    endpoint = split.gateway.printed("metrics")
    wait_until(lambda: metrics(endpoint)["pathlens_inflight", "Predict"] == CALLS)
    probes = split.torchserve.printed("health")
    for process in (split.torchserve.process, split.gateway.process):
        process.send_signal(signal.SIGTERM)
    wait_until(lambda: health(probes, "readiness") == "NOT_SERVING")
    assert health(probes, "liveness") == "SERVING"
    for one in asking:
        one.join()
    assert [outcome for outcome in outcomes if isinstance(outcome, PathlensError)] == []
    assert len(outcomes) == CALLS
    assert split.gateway.status(30) == 0
    assert split.torchserve.status(30) == 0
    # The gateway has never needed torch, and neither has left a file.
    assert split.gateway.output.endswith("imported no torch\n")
    assert [*split.gateway.temporary.iterdir(), *split.torchserve.temporary.iterdir()] == []
