"""`pathlens serve`."""

import logging
import signal
import threading
from pathlib import Path

import click
from rich.console import Console

from pathlens.errors import ServerStartError
from pathlens.gateway import GatewaySettings
from pathlens.serving import Service
from pathlens.torchserve import TorchServeSettings


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
@click.option("--port", default=8080, show_default=True, help="Port of the gRPC endpoint; 0 for any free one.")
@click.option("--metrics-host", default="127.0.0.1", show_default=True, help="Address of the metrics.")
@click.option("--metrics-port", default=9090, show_default=True, help="Port of the metrics; 0 for any free one.")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Worker processes per model.")
@click.option("--java-home", type=click.Path(path_type=Path), help="A Java to use instead of the one installed by pip.")
def command(
    archives: tuple[Path, ...],
    model_store: Path,
    host: str,
    port: int,
    metrics_host: str,
    metrics_port: int,
    workers: int,
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
    stopped = threading.Event()

    def stop(_number: int, _frame: object) -> None:
        if not stopped.is_set():
            stopped.set()
            # Interrupts the start as well as the waiting; the context managers then put everything away.
            raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    console = Console(stderr=True)
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
            click.echo(f"try      pathlens explain IMAGE --address {service.address} --out explanations")
            service.wait(stopped)
    except KeyboardInterrupt:
        console.print("Stopped", style="dim")
    finally:
        starting.stop()
