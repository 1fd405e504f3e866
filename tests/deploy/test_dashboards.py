"""The dashboards are those that the code makes, Grafana's own types accept them, and they can be read."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.observed_files import questions
from deploy.programs import need

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "grafana"
NAMES = ("service", "explanations", "resources")
COLUMNS = 24

Json = Any


def dashboard(name: str) -> Json:
    return json.loads((FOLDER / f"{name}.json").read_text())


def panels(name: str) -> list[Json]:
    return [panel for panel in dashboard(name)["panels"] if panel["type"] != "row"]


def queries(name: str) -> Iterator[tuple[str, str]]:
    for panel in panels(name):
        for target in panel["targets"]:
            yield f"{panel['title']} {target['refId']}", target["expr"]
    for annotation in dashboard(name)["annotations"]["list"]:
        yield annotation["name"], annotation["target"]["expr"]


def check(deploy: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "grafana", "--check"]
    return subprocess.run(command, cwd=deploy, capture_output=True, text=True, timeout=60)


def test_the_committed_dashboards_are_those_that_the_code_makes() -> None:
    done = check(ROOT / "deploy")
    assert done.returncode == 0, done.stderr


def test_a_dashboard_that_was_changed_by_hand_is_named(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "grafana", ignore=shutil.ignore_patterns("__pycache__"))
    changed = tmp_path / "grafana" / "explanations.json"
    changed.write_text(changed.read_text().replace("now-24h", "now-12h"))
    done = check(tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("explanations.json: not what the code makes")


@pytest.mark.parametrize("name", NAMES)
def test_panels_fill_the_grid_without_gap_or_overlap(name: str) -> None:
    places = [panel["gridPos"] for panel in dashboard(name)["panels"]]
    covered = [
        (x, y)
        for place in places
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    height = max(y for _, y in covered) + 1
    assert sorted(covered) == sorted(itertools.product(range(COLUMNS), range(height)))


@pytest.mark.parametrize("name", NAMES)
def test_every_panel_says_what_it_shows_what_is_normal_and_what_to_do(name: str) -> None:
    for panel in panels(name):
        assert re.fullmatch(
            r"[A-Z0-9][^*]+.*\n\n\*\*Normal:\*\* .+\n\n\*\*Otherwise:\*\* .+", panel["description"], re.DOTALL
        ), panel["title"]


@pytest.mark.parametrize("name", NAMES)
def test_every_number_has_a_unit(name: str) -> None:
    unitless = [
        panel["title"]
        for panel in panels(name)
        if panel["type"] != "table"
        and not (panel["options"].get("yAxis") or panel["fieldConfig"]["defaults"]).get("unit")
    ]
    assert unitless == []


def test_titles_and_numbers_of_panels_are_unique() -> None:
    for name in NAMES:
        for field in ("id", "title"):
            values = [panel[field] for panel in panels(name)]
            assert sorted(set(values)) == sorted(values)


def test_the_dashboards_have_addresses_of_their_own_and_link_each_other() -> None:
    found = [dashboard(name) for name in NAMES]
    assert [each["uid"] for each in found] == [f"pathlens-{name}" for name in NAMES]
    for each in found:
        (link,) = each["links"]
        assert set(link["tags"]) <= set(each["tags"])
        assert (link["keepTime"], link["includeVars"]) == (True, True)


@pytest.mark.parametrize("name", NAMES)
def test_every_variable_that_a_panel_uses_exists(name: str) -> None:
    text = json.dumps(dashboard(name)["panels"])
    used = set(re.findall(r"\$\{?([a-z]\w*)", text))
    exist = {variable["name"] for variable in dashboard(name)["templating"]["list"]}
    assert used <= exist
    assert {"datasource", "namespace", "pod"} <= used


@pytest.mark.parametrize("name", NAMES)
def test_every_query_heeds_the_chosen_namespace(name: str) -> None:
    for title, expression in queries(name):
        selectors = re.findall(r"\b(?:pathlens|process|ALERTS)[\w:]*\{([^}]*)\}", expression)
        assert selectors, title
        assert all('namespace=~"$namespace' in selector for selector in selectors), title
        assert not re.search(r"\b(?:pathlens_|process_|ALERTS)\w*(?![\w{])", expression), title


@pytest.mark.parametrize("name", NAMES)
def test_rates_over_time_follow_the_zoom(name: str) -> None:
    for panel in panels(name):
        for target in panel["targets"]:
            windows = set(re.findall(r"(?:rate|increase)\([^\[]*\[([^\]]+)\]", target["expr"]))
            fixed = panel["title"] == "Error budget burn"
            assert target["instant"] or fixed or windows <= {"$__rate_interval"}, panel["title"]


def test_every_alert_that_a_description_names_exists() -> None:
    named = {
        alert
        for panel in itertools.chain.from_iterable(panels(name) for name in NAMES)
        for alert in re.findall(r"\bPathlens[A-Z]\w+", panel["description"])
    }
    rules = "".join(path.read_text() for path in (ROOT / "deploy" / "prometheus" / "rules").glob("*.yaml"))
    assert named
    assert named <= set(re.findall(r"alert: (\w+)", rules))


def test_a_method_or_code_has_the_same_colour_on_every_panel() -> None:
    colours: dict[str, set[str]] = {}
    for panel in itertools.chain.from_iterable(panels(name) for name in NAMES):
        for override in panel["fieldConfig"]["overrides"]:
            for each in override["properties"]:
                if each["id"] == "color" and override["matcher"]["id"] == "byName":
                    colours.setdefault(override["matcher"]["options"], set()).add(each["value"]["fixedColor"])
    assert {"Predict", "Explain", "UNAVAILABLE", "transferred", "gradient"} <= set(colours)
    assert [name for name, found in colours.items() if len(found) > 1] == []


def test_every_query_is_promql(tmp_path: Path) -> None:
    promtool = need("promtool")
    rules = []
    for name in NAMES:
        for title, expression in queries(name):
            plain = re.sub(r"\$__(rate_interval|range)", "5m", expression)
            rules.append({"alert": f"{name}: {title}", "expr": re.sub(r"\$[a-z]\w*", "x", plain)})
    assert len(rules) > 90
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboards", "rules": rules}]}))
    done = subprocess.run([promtool, "check", "rules", path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert f"{len(rules)} rules found" in done.stdout


def drifting(namespace: str, model: str, distance: float, explanations: int) -> dict[str, str]:
    """Series of a class `cat`: the distance, and what stands behind it."""
    labels = (
        f'namespace="{namespace}", model="{model}", version="1.0", source="transferred", statistic="confidence_drop",'
        ' class="cat"'
    )
    return {
        f"pathlens:pathway_drift_by_class:ks_6h{{{labels}}}": f"{distance}x400",
        f"pathlens:pathway_drift_by_class:observations_6h{{{labels}}}": f"{explanations}x400",
        f'pathlens_pathway_rank_ratio_count{{pod="{namespace}-{model}", {labels}}}': f"0+{explanations / 360}x400",
    }


def answers(panel: str, folder: Path, series: Mapping[str, str]) -> list[tuple[str, float]]:
    """Ask what a panel of the dashboard of explanations asks, of series with a value for each minute."""
    (question,) = (one for one in questions([FOLDER / "explanations.json"]) if one.panel == panel)
    # promtool tells what it got only where something else was expected.
    case = {"expr": question.expression, "eval_time": "400m", "exp_samples": [{"labels": "{}", "value": -1}]}
    inputs = [{"series": name, "values": values} for name, values in series.items()]
    test = {"tests": [{"interval": "1m", "input_series": inputs, "promql_expr_test": [case]}]}
    (folder / "test.yaml").write_text(yaml.safe_dump(test))
    command = [need("promtool"), "test", "rules", "test.yaml"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    got = re.search(r"got:(.*)", done.stdout + done.stderr, re.DOTALL)
    assert got is not None, done.stdout + done.stderr
    return [(labels, float(value)) for labels, value in re.findall(r"(\{[^}]*\}) ([-+.\deE]+)", got[1])]


def test_drift_by_class_is_told_by_the_explanations_of_its_own_namespace(tmp_path: Path) -> None:
    series = drifting("busy", "pets", 0.05, 1000) | drifting("idle", "pets", 0.9, 5)
    ((labels, distance),) = answers("Drift by class, the ten largest (6 hours)", tmp_path, series)
    assert 'namespace="busy"' in labels
    assert distance == 0.05
    assert answers("Classes that drift (6 h)", tmp_path, series) == [("{}", 0.0)]


def test_classes_of_one_name_are_those_of_their_models(tmp_path: Path) -> None:
    series = drifting("busy", "pets", 0.05, 1000) | drifting("busy", "animals", 0.9, 1000)
    shown = answers("Drift by class over time (6 hours)", tmp_path, series)
    assert sorted(distance for _, distance in shown) == [0.05, 0.9]


@pytest.fixture(scope="module")
def typecheck() -> Path:
    """A folder in which TypeScript knows the types of Grafana."""
    npm = need("npm")
    need("node")
    folder = ROOT / "build" / "dashboards"
    shutil.copytree(FOLDER / "typecheck", folder, dirs_exist_ok=True)
    options = ["--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts", "--prefer-offline"]
    done = subprocess.run([npm, "install", *options], cwd=folder, capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        if os.environ.get("CI"):
            pytest.fail(done.stderr)
        pytest.skip("the types of Grafana cannot be installed here")
    return folder


def compiler_errors(folder: Path, contents: dict[str, str]) -> dict[str, list[str]]:
    shutil.rmtree(folder / "checked", ignore_errors=True)
    (folder / "checked").mkdir()
    for name, content in contents.items():
        lines = (
            'import type { DashboardJson } from "../dashboard.js";',
            f"export const it: DashboardJson = {content};",
        )
        (folder / "checked" / f"{name}.ts").write_text("\n".join(lines))
    command = [need("node"), "node_modules/typescript/bin/tsc", "--project", "."]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    found: dict[str, list[str]] = {name: [] for name in contents}
    for line in done.stdout.splitlines():
        if "error TS" in line:
            found[Path(line.partition("(")[0]).stem].append(line)
    assert (done.returncode == 0) == (not any(found.values())), done.stdout + done.stderr
    return found


def test_the_types_of_grafana_accept_the_dashboards(typecheck: Path) -> None:
    contents = {name: (FOLDER / f"{name}.json").read_text() for name in NAMES}
    assert compiler_errors(typecheck, contents) == {name: [] for name in NAMES}


def test_the_types_of_grafana_refuse_what_grafana_would_ignore(typecheck: Path) -> None:
    content = (FOLDER / "service.json").read_text()
    mistakes = {
        "value": ('"drawStyle": "bars"', '"drawStyle": "bar"'),
        "option": ('"colorMode": "background_solid"', '"colourMode": "background_solid"'),
        "field": ('"legendFormat"', '"legendFromat"'),
        "number": ('"h": 8', '"h": "8"'),
        "panel": ('"type": "stat"', '"type": "singlestat"'),
        "override": ('"id": "color"', '"id": "colour"'),
    }
    assert all(right in content for right, _ in mistakes.values())
    wrong = {name: content.replace(*mistake, 1) for name, mistake in mistakes.items()}
    found = compiler_errors(typecheck, wrong)
    assert [name for name, errors in found.items() if not errors] == []
