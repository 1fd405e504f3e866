"""Load a served classifier until it refuses calls: throughput, latencies, and where admission begins.

    python tests/benchmarks/load.py                             the digits of the demonstration
    python tests/benchmarks/load.py --network cifar_resnet20    a fixture network

The service runs in processes of its own on this machine, which also makes the load: only ratios mean much. Calls are
sent in two ways. In a closed loop a number of callers each wait for their answer. In an open loop calls come at random
moments at a given rate, whether or not the service keeps up, and their time counts from the moment at which they were
due. Writes build/reliability/load.json, load.md and load.png, and load-NETWORK.* for fixture networks.
"""

import asyncio
import json
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Console

# Beside this file's folder lie modules that the tests use, too.
sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.load_client import Load, LoadClient
from benchmarks.load_h2 import HOW_TO_INSTALL, h2load
from benchmarks.load_report import markdown, plot
from pathlens.bundle.archive import pack
from pathlens.cli import main as pathlens
from pathlens.demo.digits import train
from pathlens.wire.v1 import explanation_service_pb2 as pb
from reliability.served_process import ServedProcess
from service.classifiers import FIXTURE_NETWORKS, FIXTURES, WITHOUT_FIXTURES

FOLDER = Path(__file__).parents[2] / "build" / "reliability"
IN_FLIGHT = (1, 2, 4, 8, 16, 32, 64, 96, 128)
# Of what the closed loop reached.
RATES = (0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0)
WARM_UP_SECONDS = 1.0
H2LOAD_IN_FLIGHT = 16
H2LOAD_SECONDS = 5
NETWORKS = tuple(network.name for network in FIXTURE_NETWORKS)
SERVICE = "/pathlens.v1.ExplanationService/"

console = Console(stderr=True)


def digits() -> tuple[Path, bytes]:
    """Fit the classifier of the demonstration; return its bundle and a picture."""
    folder = FOLDER / "load" / "digits"
    if not (folder / "bundle" / "bundle.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        train(folder)
        _fit(
            *("--classifier", "pathlens.demo.digits:DigitsClassifier", "--weights", folder / "classifier.safetensors"),
            *("--images", folder / "images", "--held-out-images", folder / "validation"),
            *("--size", "8", "--colour", "grey", "--name", "digits"),
            *("--ablation", "mean", "--class-steps", "100", "--generator-steps", "100", "--out", folder / "bundle"),
        )
    return folder / "bundle", sorted((folder / "held-out" / "3").glob("*.png"))[0].read_bytes()


def fixture_network(name: str) -> tuple[Path, bytes]:
    """Fit a fixture network; return its bundle and a picture.

    Raises:
        click.UsageError: The fixtures are not there.
    """
    import numpy as np
    from PIL import Image

    if not FIXTURES.is_dir():
        raise click.UsageError(f"There are {WITHOUT_FIXTURES}; or leave --network out.")
    (network,) = (network for network in FIXTURE_NETWORKS if network.name == name)
    folder = FOLDER / "load" / name
    folder.mkdir(parents=True, exist_ok=True)
    images = FIXTURES / "imagenet_val"
    picture = next(images.glob("*.[jJ]*"))
    if network.images.endswith(".npz"):
        images, picture = folder / network.images, folder / "picture.png"
        pictures = np.load(FIXTURES / "cifar10_test_jpegged.npz")["images"][:300]
        np.savez(images, images=pictures)
        Image.fromarray(pictures[0]).save(picture)
    if not (folder / "bundle" / "bundle.json").is_file():
        sys.path.append(str(FIXTURES))
        _fit(
            *("--classifier", network.factory, "--weights", FIXTURES / "weights" / f"{name}.pt"),
            *("--images", images, *network.arguments, "--out", folder / "bundle"),
        )
    return folder / "bundle", picture.read_bytes()


def requests(picture: bytes) -> dict[str, bytes]:
    """Make the request of each call that is measured."""
    image = pb.Image(encoded=picture)
    options = pb.ExplanationOptions(source=pb.PATHWAY_SOURCE_TRANSFERRED, outputs=[pb.OUTPUT_MAP])
    return {
        "Predict": pb.PredictRequest(image=image).SerializeToString(),
        "Explain": pb.ExplainRequest(image=image, options=options).SerializeToString(),
    }


async def measure(service: ServedProcess, name: str, request: bytes, seconds: float, seed: int) -> dict[str, Any]:
    """Measure one call in both ways, and compare the counts of both sides."""
    before = counts(service, name)
    counted: Counter[str] = Counter()
    closed: list[dict[str, Any]] = []
    offered: list[dict[str, Any]] = []

    def add(rows: list[dict[str, Any]], key: str, value: float, load: Load) -> None:
        counted.update(load.codes)
        rows.append({key: value, **load.summary()})
        shown = {column: rows[-1][column] for column in ("answered_per_second", "p50_ms", "p99_ms", "refused_share")}
        console.print(f"{name} {key} {value:g}: {shown}", markup=False)

    async with LoadClient(service.address, SERVICE + name, request) as client:
        counted.update((await client.closed_loop(4, WARM_UP_SECONDS)).codes)
        worked, calls = service.processor_seconds(), counted["OK"]
        for in_flight in IN_FLIGHT:
            add(closed, "in_flight", in_flight, await client.closed_loop(in_flight, seconds))
        calls = counted["OK"] - calls
        cost = {
            role: round(1e3 * (after - worked[role]) / calls, 3) for role, after in service.processor_seconds().items()
        }
        capacity = max(row["answered_per_second"] for row in closed)
        for share in RATES:
            rate = round(share * capacity, 1)
            add(offered, "rate", rate, await client.open_loop(rate, seconds, seed))
    return {
        "closed_loop": closed,
        "open_loop": offered,
        "processor_milliseconds_per_call": cost,
        "client_counts": dict(sorted(counted.items())),
        "server_counts": difference(counts(service, name), before),
        "h2load": second_opinion(service, name, request),
    }


def second_opinion(service: ServedProcess, name: str, request: bytes) -> dict[str, Any]:
    """Let h2load measure the same; empty if it is not installed."""
    before = counts(service, name)
    found = h2load(service.address, SERVICE + name, request, H2LOAD_IN_FLIGHT, H2LOAD_SECONDS, FOLDER)
    if not found:
        return {}
    return {"in_flight": H2LOAD_IN_FLIGHT, **found, "server_counts": difference(counts(service, name), before)}


def counts(service: ServedProcess, name: str) -> Counter[str]:
    """Ask the gateway how many calls ended with each code."""
    ended: Counter[str] = Counter()
    for (metric, *labels), value in service.counters().items():
        # One series for each model beside that of calls that reached none.
        if metric == "pathlens_requests_total" and labels[1] == name:
            ended[labels[0]] += int(value)
    return ended


def difference(after: Counter[str], before: Counter[str]) -> dict[str, int]:
    """Subtract counts, code by code."""
    return dict(sorted((after - before).items()))


def _fit(*arguments: object) -> None:
    console.print("Fitting the classifier, once")
    pathlens(["fit", *map(str, arguments)], standalone_mode=False)


def _load(network: str, seconds: float, seed: int) -> Mapping[str, Any]:
    bundle, picture = digits() if network == "digits" else fixture_network(network)
    archive = pack(bundle, FOLDER / "load")
    started = time.monotonic()
    with console.status("Starting the service") as status, ServedProcess(archive, FOLDER / "load") as service:
        status.stop()
        measured = {
            name: asyncio.run(measure(service, name, request, seconds, seed))
            for name, request in requests(picture).items()
        }
        memory = service.memory()
    return {
        "network": network,
        "processors": os.cpu_count(),
        "machine": platform.machine(),
        "load_average": os.getloadavg(),
        "seconds": round(time.monotonic() - started, 1),
        "memory_mib": memory,
        "calls": measured,
    }


@click.command()
@click.option("--network", default="digits", show_default=True, type=click.Choice(["digits", *NETWORKS]))
@click.option("--seconds", default=6.0, show_default=True, type=click.FloatRange(0.5, 60), help="Length of each step.")
@click.option("--seed", default=0, show_default=True, help="Of the moments of the open loop.")
def main(network: str, seconds: float, seed: int) -> None:
    """Load a served classifier until it refuses calls."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    try:
        report = _load(network, seconds, seed)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    stem = "load" if network == "digits" else f"load-{network}"
    (FOLDER / f"{stem}.json").write_text(json.dumps(report, indent=1) + "\n")
    (FOLDER / f"{stem}.md").write_text(markdown(report))
    plot(report, FOLDER / f"{stem}.png")
    click.echo(markdown(report))
    if not all(measured["h2load"] for measured in report["calls"].values()):
        click.echo(HOW_TO_INSTALL, err=True)
    click.echo(f"Written: {FOLDER / stem}.json, {stem}.md and {stem}.png", err=True)
    for name, measured in report["calls"].items():
        # gRPC itself refuses calls beyond its own limit, and the gateway hears nothing of them.
        unseen = set(measured["client_counts"].items()) ^ set(measured["server_counts"].items())
        if {code for code, _ in unseen} - {"RESOURCE_EXHAUSTED"}:
            raise SystemExit(f"{name}: the client and the gateway count differently: {sorted(unseen)}")


if __name__ == "__main__":
    main()
