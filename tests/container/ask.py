"""Ask a service for an explanation and compare it with the one that is computed here.

    python tests/container/ask.py 127.0.0.1:8080 IMAGE BUNDLE

Exits with 1 and says what differs. It is a program of its own to be run in the network of a container.
"""

import sys
from pathlib import Path
from typing import Any

import click
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

# Beside this folder lie modules that the tests use, too.
sys.path.insert(0, str(Path(__file__).parents[1]))

from pathlens.bundle.store import load_bundle
from pathlens.client import Client
from pathlens.errors import PathlensError
from pathlens.explanation import MAX_INTEGRATION_STEPS, ExplanationOptions, Output, PathwaySource
from reliability.comparison import difference

EVERYTHING = ExplanationOptions(outputs=frozenset(Output), top_neurons=5)
SLOW = ExplanationOptions(source=PathwaySource.NEURON_INTGRAD, integration_steps=MAX_INTEGRATION_STEPS, sparsity=0.9)
_START_SECONDS = 180.0


@click.command(help=__doc__)
@click.argument("address")
@click.argument("image", type=click.Path(exists=True, path_type=Path))
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.option("--items", type=int, help="Ask for so many in one call, and by a method that takes long.")
def main(address: str, image: Path, bundle: Path, items: int | None) -> None:
    """Run the command."""
    _wait_until_ready(address)
    options = SLOW if items else EVERYTHING
    with Client(address) as client:
        answers = client.batch_explain([image] * items, options) if items else [client.explain(image, options)]
    explainer = load_bundle(bundle).explainer(version="1.0")
    (expected,) = explainer.explain([image.read_bytes()], options)
    for answer in answers:
        if isinstance(answer, PathlensError):
            raise click.ClickException(f"{address} answers with {answer.reason}: {answer.message}")
        differs = difference(answer, expected)
        if differs is not None:
            raise click.ClickException(f"{address} answers with {differs}.")
    best = expected.predictions[0]
    click.echo(f"{address} explains {image.name} as {best.label} ({best.probability:.3f}), as it is explained here.")


def _wait_until_ready(address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)  # the stubs of the types do not know Watch
        request = health_pb2.HealthCheckRequest(service="readiness")
        # The port is opened last of all.
        for state in stub.Watch(request, timeout=_START_SECONDS, wait_for_ready=True):
            if state.status == health_pb2.HealthCheckResponse.SERVING:
                return


if __name__ == "__main__":
    main()
