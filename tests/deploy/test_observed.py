"""A real Prometheus that watches a real service: what dashboards, rules and documentation name is there."""

import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from deploy.observed_files import DASHBOARDS, metrics_of, questions, rules
from deploy.programs import need
from local.load import Load, Manner
from local.prometheus import ROOT, RULES, Prometheus
from local.service import Service
from pathlens.bundle.archive import pack
from pathlens.bundle.store import save_bundle
from pathlens.client import Connection, TransportSecurity
from tiny_bundle import pixels, png, tiny_bundle

RULE_FILES = sorted(RULES.glob("*.yaml"))
NOT_HERE = re.compile(r"\b(?:DCGM_\w+|kube_\w+|container_\w+|ALERTS)\b")
"""What other exporters of a cluster bring, and what is only there while something is wrong."""
LOAD_SECONDS = 8.0
SERVER_NAME = "pathlens.pathlens.svc.cluster.local"
TOKEN = "t0ken-of-whoever-is-on-duty-tonight"  # noqa: S105
WITHIN_A_POD = "kubectl -n $NAMESPACE exec $POD -c gateway -- "


@dataclass(frozen=True)
class Observed:
    """What is asked by the tests.

    Attributes:
        folder: Has the authority of the service's certificate and a caller's token.
        service: It has TLS, tokens and a port for health.
        prometheus: It has scraped the service under load.
        exposition: What the service exposed after it.
    """

    folder: Path
    service: Service
    prometheus: Prometheus
    exposition: str

    @property
    def exposed(self) -> set[str]:
        """Names of all samples that the service exposes."""
        return {sample.name for family in self._families for sample in family.samples}

    @property
    def families(self) -> set[str]:
        """Names of all metrics that the service exposes, as the documentation has them."""
        totals = {"counter": "_total"}
        return {family.name + totals.get(family.type, "") for family in self._families}

    @property
    def _families(self) -> list[Metric]:
        return list(text_string_to_metric_families(self.exposition))


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    for program in ("prometheus", "promtool", "prometheus-alertmanager", "amtool"):
        need(program)
    folder = tmp_path_factory.mktemp("observed")
    save_bundle(tiny_bundle(), folder / "bundle")
    archive = pack(folder / "bundle", folder / "store")
    images = [png(pixels(seed)) for seed in range(8)]
    # With TLS and tokens, as it should be deployed, and for the metric of the certificate.
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "authority.pem"))
    certificate, key = folder / "tls.crt", folder / "tls.key"
    issued = authority.issue_cert(SERVER_NAME)
    issued.cert_chain_pems[0].write_to_path(str(certificate))
    issued.private_key_pem.write_to_path(str(key))
    key.chmod(0o600)
    token = folder / "token"
    token.write_text(TOKEN)
    tokens = folder / "tokens"
    tokens.write_text(f"on-duty:{TOKEN}\n")
    for secret in (token, tokens):
        secret.chmod(0o600)
    settings = {
        "TLS__CERTIFICATE": certificate,
        "TLS__PRIVATE_KEY": key,
        "AUTHORISATION__TOKEN_FILE": tokens,
        "GATEWAY__HEALTH_PORT": 0,
    }
    with (
        Service(archive, folder / "service", settings) as service,
        Prometheus(folder / "prometheus", {"pathlens-gateway": service.metrics_address}, RULE_FILES) as prometheus,
    ):
        # Series that are not there before their first event have to be seen at least twice, for rate().
        prometheus.wait_for_scrapes()
        security = TransportSecurity(folder / "authority.pem", server_name=SERVER_NAME)
        connection = Connection(service.address, security, token=token)
        with Load(connection, images, LOAD_SECONDS, Manner(pause_seconds=0.05)) as load:
            load.wait()
        assert load.ended["OK"] > 50
        assert load.ended["INVALID_ARGUMENT"] > 0
        prometheus.wait_for_scrapes(number=int(LOAD_SECONDS))
        with urllib.request.urlopen(f"http://{service.metrics_address}/metrics") as response:
            exposition = response.read().decode()
        yield Observed(folder, service, prometheus, exposition)


def test_there_are_dashboards_and_rules() -> None:
    assert DASHBOARDS
    assert RULE_FILES


def test_every_query_of_every_panel_has_data(observed: Observed) -> None:
    asked = [question for question in questions(DASHBOARDS) if not NOT_HERE.search(question.expression)]
    assert asked
    empty = [
        f"{question}: {question.expression}" for question in asked if not observed.prometheus.query(question.expression)
    ]
    assert not empty, "\n".join(empty)


def test_every_metric_of_dashboards_and_rules_is_exposed(observed: Observed) -> None:
    written = rules(RULE_FILES)
    recorded = {rule["record"] for rule in written if "record" in rule}
    expressions = [question.expression for question in questions(DASHBOARDS)] + [rule["expr"] for rule in written]
    named = set().union(*map(metrics_of, expressions))
    assert named
    missing = named - recorded - observed.exposed
    assert not missing


def test_every_exposed_metric_is_documented(observed: Observed) -> None:
    exposed = {name for name in observed.families if name.startswith("pathlens_")}
    documented = set(re.findall(r"`(pathlens_\w+)`", (ROOT / "docs" / "metrics.md").read_text()))
    assert len(exposed) > 15
    assert not exposed - documented


def test_every_rule_is_evaluated_without_an_error(observed: Observed) -> None:
    loaded = observed.prometheus.rules()
    assert len(loaded) == len(rules(RULE_FILES))
    assert [(rule["name"], rule["lastError"]) for rule in loaded if rule["health"] != "ok"] == []


def test_promtool_finds_nothing_wrong_with_the_metrics(observed: Observed) -> None:
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=observed.exposition, capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def commands_of_the_runbook() -> list[str]:
    """Those that ask a gateway, from inside of its pod or as a caller."""
    lines = (ROOT / "docs" / "runbook.md").read_text().splitlines()
    return sorted({line for line in lines if line.startswith((WITHIN_A_POD, "pathlens models "))})


@pytest.mark.parametrize("command", commands_of_the_runbook())
def test_commands_of_the_runbook_reach_a_gateway_with_tls_and_tokens(observed: Observed, command: str) -> None:
    here = {
        # What kubectl does is left out.
        WITHIN_A_POD: "",
        "localhost:8443": observed.service.address,
        "127.0.0.1:8081": observed.service.health_address,
        "127.0.0.1:9090": observed.service.metrics_address,
    }
    for there, replacement in here.items():
        command = command.replace(there, replacement)
    programs = Path(sys.executable).parent
    asked = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=observed.folder,
        env=os.environ | {"PATH": f"{programs}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert asked.returncode == 0, asked.stderr
    assert any(expected in asked.stdout for expected in ("SERVING", "pathlens_ready 1.0", "tiny")), asked.stdout


def test_the_runbook_asks_a_gateway_in_every_way() -> None:
    commands = " ".join(commands_of_the_runbook())
    assert all(words in commands for words in ("grpc_health", "/metrics", "--token-file", "--server-name"))
