"""The dashboards and rules of this repository, as files: what they ask, and of which metrics."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from local.prometheus import ROOT

DASHBOARDS = sorted((ROOT / "deploy" / "grafana").glob("*.json"))
METRIC = re.compile(r"\b(pathlens[a-zA-Z0-9_]*(?::[a-zA-Z0-9_]+)*|(?:[a-z0-9_]+:)+[a-z0-9_]+)\b")
# What Grafana puts in place of its variables, for a service that was started just now.
WINDOWS = {"__rate_interval": "10s", "__interval": "5s", "__range": "60s", "__range_s": "60", "__range_ms": "60000"}


@dataclass(frozen=True)
class Question:
    """A query of a panel.

    Attributes:
        dashboard: Name of the file.
        panel: Title of the panel.
        expression: PromQL, with concrete values in place of Grafana's variables.
    """

    dashboard: str
    panel: str
    expression: str

    def __str__(self) -> str:
        return f"{self.dashboard}: {self.panel}"


def questions(files: list[Path]) -> Iterator[Question]:
    """Read every query of every panel, those of collapsed rows included."""
    for file in files:
        dashboard = json.loads(file.read_text())
        values = _variables(dashboard)
        for panel in _panels(dashboard):
            for target in panel.get("targets", ()):
                if expression := target.get("expr"):
                    yield Question(file.name, panel["title"], _concrete(expression, values))


def rules(files: list[Path]) -> list[dict[str, Any]]:
    """Read every rule."""
    return [rule for file in files for group in yaml.safe_load(file.read_text())["groups"] for rule in group["rules"]]


def metrics_of(expression: str) -> set[str]:
    """Find the metrics of ours, and the recorded series, that an expression asks for."""
    # Neither labels nor their values, nor times, nor the labels of by (…) and its kind.
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]", "", re.sub(r'"[^"]*"', '""', expression))
    bare = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", "", bare)
    return set(METRIC.findall(bare))


def _panels(within: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for panel in within.get("panels", ()):
        yield panel
        yield from _panels(panel)


def _variables(dashboard: dict[str, Any]) -> dict[str, str]:
    values = dict(WINDOWS)
    for variable in dashboard.get("templating", {}).get("list", ()):
        if variable["type"] == "datasource":
            continue
        current = variable.get("current", {}).get("value", "")
        chosen = current[0] if isinstance(current, list) and current else current
        everything = chosen in ("", "$__all") or not isinstance(chosen, str)
        values[variable["name"]] = (variable.get("allValue") or ".*") if everything else chosen
    return values


def _concrete(expression: str, values: dict[str, str]) -> str:
    def value(found: re.Match[str]) -> str:
        return values[found[1] or found[2]]

    return re.sub(r"\$(?:\{(\w+)(?::\w+)?\}|([A-Za-z_]\w*))", value, expression)
