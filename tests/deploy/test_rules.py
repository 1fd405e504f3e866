"""Rules do what their tests say, every rule has such tests, and an alert leads to a section of the runbook."""

import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from prometheus_client import Histogram, generate_latest

from deploy.observed_files import DASHBOARDS, questions
from deploy.programs import need
from pathlens.cli.main import main
from pathlens.gateway.metrics import Metrics

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
RULE_FILES = sorted((PROMETHEUS / "rules").glob("*.yaml"))
RULE_TESTS = sorted((PROMETHEUS / "tests").glob("*.yaml"))
RUNBOOK = ROOT / "docs" / "runbook.md"
MONITORING = ROOT / "docs" / "monitoring.md"
# Metrics of Prometheus itself, of its client library and of kube-state-metrics.
FOREIGN = {"up", "process_resident_memory_bytes", "process_start_time_seconds", "kube_deployment_spec_replicas"}


@cache
def content(file: Path) -> Any:
    return yaml.safe_load(file.read_text())


def rules(kind: str) -> list[dict[str, Any]]:
    groups = [group for file in RULE_FILES for group in content(file)["groups"]]
    return [rule for group in groups for rule in group["rules"] if kind in rule]


def unit_tests(kind: str) -> list[dict[str, Any]]:
    tests = [test for file in RULE_TESTS for test in content(file)["tests"]]
    return [case for test in tests for case in test.get(kind, [])]


def metrics_in(expression: str) -> set[str]:
    """Names in PromQL that look like ours, and those before a selector."""
    without_texts = re.sub(r'"[^"]*"|by \([^)]*\)|on \([^)]*\)|without \([^)]*\)|ignoring \([^)]*\)', "", expression)
    names = set(re.findall(r"(?<![\w:])[a-z_]\w*:[\w:]+|(?<![\w:])(?:pathlens|process|kube)_\w+", without_texts))
    return names | set(re.findall(r"(?<![\w:.$])([a-z_][\w:]*)(?=[{\[])", without_texts))


def documented_metrics() -> set[str]:
    rows = re.findall(r"^\| `(pathlens_\w+)` \| (\w+)", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE)
    histograms = {name for name, kind in rows if kind == "histogram"}
    parts = {f"{name}_{part}" for name in histograms for part in ("bucket", "count", "sum")}
    return parts | {name for name, _ in rows} - histograms


def documented_labels() -> dict[str, set[str]]:
    """Labels of each metric, with those of its target and of buckets."""
    page = (ROOT / "docs" / "metrics.md").read_text()
    rows = re.findall(r"^\| `(pathlens_\w+)` \| \w+ \|([^|]*)\|", page, re.MULTILINE)
    of_all = {"namespace", "pod", "instance", "job", "le"}
    return {name: of_all.union(re.findall(r"\w+", labels)) for name, labels in rows}


def queries_of_the_runbook() -> list[str]:
    return [query for block in blocks(RUNBOOK.read_text(), "promql") for query in block.strip().splitlines()]


def known_metrics() -> set[str]:
    return documented_metrics() | {rule["record"] for rule in rules("record")} | FOREIGN


def sections() -> dict[str, str]:
    parts = re.split(r"^## (.+)$", RUNBOOK.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def identity(rule: dict[str, Any]) -> str:
    return "-".join([str(rule.get("alert") or rule["record"]), *map(str, rule.get("labels", {}).values())])


@pytest.fixture
def promtool() -> str:
    return need("promtool")


def run(*command: str) -> None:
    ended = subprocess.run(command, cwd=PROMETHEUS, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_prometheus_accepts_the_rules(promtool: str) -> None:
    run(promtool, "check", "rules", *map(str, RULE_FILES))


@pytest.mark.parametrize("file", RULE_TESTS, ids=lambda file: file.stem)
def test_rules_do_what_their_tests_say(promtool: str, file: Path) -> None:
    run(promtool, "test", "rules", str(file))


@pytest.mark.parametrize("rule", rules("alert"), ids=identity)
def test_every_alert_is_seen_to_fire_and_not_to_fire(rule: dict[str, Any]) -> None:
    fires = [
        any(rule["labels"].items() <= alert["exp_labels"].items() for alert in case.get("exp_alerts", []))
        for case in unit_tests("alert_rule_test")
        if case["alertname"] == rule["alert"]
    ]
    assert set(fires) == {True, False}


@pytest.mark.parametrize("name", sorted({rule["record"] for rule in rules("record")}))
def test_every_recorded_series_is_seen_with_and_without_a_value(name: str) -> None:
    values = [bool(case["exp_samples"]) for case in unit_tests("promql_expr_test") if name in metrics_in(case["expr"])]
    assert set(values) == {True, False}


@pytest.mark.parametrize("rule", [*rules("record"), *rules("alert")], ids=identity)
def test_every_metric_in_a_rule_exists(rule: dict[str, Any]) -> None:
    used = metrics_in(rule["expr"])
    assert used or rule["record"] in ("pathlens:slo_error_budget:ratio", "pathlens:pathway_rank_uniform:ratio")
    assert used <= known_metrics()


def test_every_limit_of_latency_is_a_bound_of_the_histogram() -> None:
    exposed = generate_latest(Metrics().registry).decode()
    bounds = set(re.findall(r'^pathlens_request_duration_seconds_bucket\{.*?le="([^"]+)"', exposed, re.MULTILINE))
    expressions = " ".join(rule["expr"] for rule in rules("record"))
    limits = set(re.findall(r'pathlens_request_duration_seconds_bucket\{[^}]*le="([^"]+)"', expressions))
    assert limits
    assert limits <= bounds


def test_bounds_of_ranks_are_written_as_the_client_library_writes_them() -> None:
    ranks = Histogram("ranks", "Ranks.", buckets=[tenths / 10 for tenths in range(1, 11)], registry=None)
    exposed = [sample.labels["le"] for sample in next(iter(ranks.collect())).samples if "le" in sample.labels]
    (rule,) = (rule for rule in rules("record") if rule["record"] == "pathlens:pathway_rank_uniform:ratio")
    uniform = re.findall(r'vector\((\S+?)\), "le", "(\S+?)"', rule["expr"])
    assert [bound for bound, _ in uniform] == [le for _, le in uniform]
    # All ranks are at most 1: there the distance is always zero.
    assert [*[le for _, le in uniform], "1.0", "+Inf"] == exposed


@pytest.mark.parametrize("rule", rules("alert"), ids=identity)
def test_every_alert_says_how_urgent_it_is_and_leads_to_the_runbook(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    address = rule["annotations"]["runbook_url"]
    assert address == f"{{{{ $externalLabels.runbooks }}}}docs/runbook.md#{rule['alert'].lower()}"
    assert rule["alert"] in sections()


def test_the_runbook_and_the_table_of_alerts_have_every_alert_and_no_other() -> None:
    alerts = {rule["alert"] for rule in rules("alert")}
    assert {title for title in sections() if title.startswith("Pathlens")} == alerts
    table = MONITORING.read_text()
    assert set(re.findall(r"^\| \[(Pathlens\w+)\]\(runbook\.md#", table, re.MULTILINE)) == alerts


@pytest.mark.parametrize("rule", rules("alert"), ids=identity)
def test_the_table_of_alerts_says_who_is_called(rule: dict[str, Any]) -> None:
    (row,) = (line for line in MONITORING.read_text().splitlines() if line.startswith(f"| [{rule['alert']}]"))
    assert rule["labels"]["severity"] in row.split("|")[2]
    assert f"#{rule['alert'].lower()})" in row


@pytest.mark.parametrize("name", sorted({rule["alert"] for rule in rules("alert")}))
def test_a_section_of_the_runbook_helps(name: str) -> None:
    section = sections()[name]
    for part in ("Felt", "Look", "Causes", "Escalate", "Over"):
        assert f"**{part}" in section
    looks = [line for block in blocks(section, "promql") + blocks(section, "sh") for line in block.splitlines()]
    assert len(looks) >= 3


def test_queries_of_the_runbook_are_promql_over_metrics_that_exist(promtool: str, tmp_path: Path) -> None:
    queries = queries_of_the_runbook()
    assert len(queries) > 20
    for query in queries:
        assert metrics_in(query)
        assert metrics_in(query) <= known_metrics()
    as_rules = [{"record": f"query{number}", "expr": query} for number, query in enumerate(queries)]
    file = tmp_path / "queries.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": as_rules}]}))
    run(promtool, "check", "rules", str(file))


def test_what_is_summed_is_kept_apart_by_labels_that_the_metric_has() -> None:
    # A label that is not there is no error: all series become one.
    panels = [question.expression for question in questions(DASHBOARDS)]
    expressions = [*queries_of_the_runbook(), *panels, *(rule["expr"] for rule in [*rules("record"), *rules("alert")])]
    found = [
        (set(re.findall(r"\w+", labels)), re.sub(r"_(bucket|count|sum)$", "", metric))
        for expression in expressions
        for labels, metric in re.findall(
            r"by \(([^)]*)\) \(\s*(?:(?:rate|increase|max_over_time)\()?(pathlens_\w+)", expression
        )
    ]
    known = documented_labels()
    assert len(found) > 100
    assert [(labels, metric) for labels, metric in found if not labels <= known[metric]] == []


def commands(text: str) -> Iterator[list[str]]:
    for block in blocks(text, "sh"):
        for line in block.splitlines():
            if found := re.search(r"(?:^|-- )pathlens (.*?)(?: \||$)", line):
                yield found[1].split()


def test_commands_of_the_runbook_exist() -> None:
    found = list(commands(RUNBOOK.read_text()))
    assert found
    context = click.Context(main)
    for name, *arguments in found:
        command = main.get_command(context, name)
        assert command is not None, name
        options = {option for parameter in command.params for option in parameter.opts}
        assert {argument for argument in arguments if argument.startswith("--")} <= options


def test_reasons_in_the_runbook_are_those_of_errors() -> None:
    # Codes of gRPC, reasons of ours, sources, and words of the log and the probes.
    known = set(re.findall(r"[A-Z_]{4,}", (ROOT / "docs" / "errors.md").read_text()))
    known |= {"CRITICAL", "NOT_SERVING", "SERVING", "NAMESPACE", "NEURON_INTGRAD", "NEURON_MCT", "ADDRESS"}
    assert set(re.findall(r"`([A-Z_]{4,})`", RUNBOOK.read_text())) <= known
