"""`pathlens serve`."""

import logging
import signal
import socket
import sys
import threading
from pathlib import Path

import click
from rich.console import Console

from pathlens.errors import ServerStartError
from pathlens.gateway import GatewaySettings
from pathlens.serving import Service
from pathlens.torchserve import TorchServeSettings

_PORT = click.IntRange(0, 65535)


@click.command("serve")
@click.argument("archives", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--model-store",
    type=click.Path(path_type=Path),
    default=Path("model_store"),
    show_default=True,
    help="Where to look for archives when none is named.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for all.")
@click.option("--port", type=_PORT, default=8080, show_default=True, help="Port of gRPC; 0 for any free one.")
@click.option("--metrics-host", default="127.0.0.1", show_default=True, help="Address of the metrics.")
@click.option("--metrics-port", type=_PORT, default=9090, show_default=True, help="Their port; 0 for any free one.")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Worker processes per model.")
@click.option("--example", default="IMAGE", help="Image to name in the line that is printed for a first call.")
@click.option("--java-home", type=click.Path(path_type=Path), help="A Java to use instead of the one installed by pip.")
def command(
    archives: tuple[Path, ...],
    model_store: Path,
    host: str,
    port: int,
    metrics_host: str,
    metrics_port: int,
    workers: int,
    example: str,
    java_home: Path | None,
) -> None:
    """Serve ARCHIVES (default: all in the model store) over gRPC until interrupted.

    \b
    Examples:
      pathlens serve
      pathlens serve model_store/digits.mar --port 9000 --workers 2
    """  # noqa: D301
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    chosen = archives or tuple(sorted(model_store.glob("*.mar")))
    if not chosen:
        raise ServerStartError(f"{model_store} holds no .mar archive; make one with `pathlens pack BUNDLE`.")
    _check_free(host, port, "--port")
    _check_free(metrics_host, metrics_port, "--metrics-port")
    console = Console(stderr=True)
    stopped = threading.Event()

    def stop(_number: int, _frame: object) -> None:
        if not stopped.is_set():
            stopped.set()
            console.print("Stopping", style="dim")
            # Interrupts the start as well as the waiting; the context managers then put everything away.
            raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    starting = console.status("Starting")
    service = Service(
        TorchServeSettings(archives=chosen, workers=workers, java_home=java_home),
        GatewaySettings(host=host, port=port, metrics_host=metrics_host, metrics_port=metrics_port),
        report=starting.update,
    )
    try:
        starting.start()
        with service:
            starting.stop()
            click.echo(f"gRPC     {service.address}  (models: {', '.join(service.torchserve.models)})")
            click.echo(f"metrics  http://{service.metrics_address}/metrics")
            model = f" --model {service.torchserve.models[0]}" if len(service.torchserve.models) > 1 else ""
            click.echo(f"try      {sys.argv[0]} explain {example} --address {service.address}{model}")
            service.wait(stopped)
    except KeyboardInterrupt:
        console.print("Stopped", style="dim")
    finally:
        starting.stop()


def _check_free(host: str, port: int, option: str) -> None:
    """Find out before anything is started whether a port is to be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As servers do, so that connections of a service that has just ended are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ServerStartError(
                f"Port {port} of {host} is not to be had ({error.strerror}). Is another `pathlens serve` running? "
                f"Choose another port with {option}, or 0 for any free one.",
                reason="PORT_UNAVAILABLE",
            ) from error
