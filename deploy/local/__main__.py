"""Watch the digits service on this machine: `python -m local`, or `make monitor`."""

import signal
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import click
from rich.console import Console
from rich.live import Live

from local.alertmanager import Alertmanager
from local.breakage import Breakage
from local.load import Load, Manner
from local.prometheus import ROOT, Prometheus, rule_files
from local.receiver import Notification, Receiver
from local.service import Service
from local.view import View
from pathlens.errors import PathlensError

_JOB = "pathlens-gateway"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_DRAW_SECONDS = 1.0
# Where nobody looks at a screen, a table is printed now and then.
_PRINT_SECONDS = 15.0

console = Console()


@click.command()
@click.option("--minutes", default=5.0, show_default=True, type=click.FloatRange(0.1, 600), help="How long to go on.")
@click.option(
    "--break",
    "broken",
    type=click.Choice([breakage.value for breakage in Breakage]),
    help="Break something: kill the worker again and again, ask for more than can be answered, send what is no image"
    " (the callers' fault, of which no alert tells), or send images as negatives under noise.",
)
@click.option(
    "--archive",
    default=ROOT / "model_store" / "digits.mar",
    type=click.Path(path_type=Path),
    help="The model to serve.  [default: the digits]",
)
@click.option(
    "--images",
    default=ROOT / "build" / "digits" / "held-out",
    type=click.Path(path_type=Path),
    help="Folder of PNG files to send, in folders or not.  [default: held-out digits]",
)
def command(minutes: float, broken: str | None, archive: Path, images: Path) -> None:
    """Serve a classifier, call it, and watch it with a real Prometheus and a real Alertmanager.

    The rules and routes are those of deploy/prometheus and deploy/alertmanager. Everything listens on loopback ports
    that the system chooses, and ends with this command. `make monitor` also builds what is served.

    \b
    Examples:
      make monitor
      make monitor MINUTES=20 BREAK=worker
      cd deploy && ../.venv/bin/python -m local --minutes 10 --break drift
    """  # noqa: D301
    try:
        _watch(minutes * 60.0, None if broken is None else Breakage(broken), archive, images)
    except PathlensError as error:
        raise click.ClickException(f"{error.message} [{error.reason}]") from error
    except OSError as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        # As `pathlens serve`: to be interrupted is how it ends.
        console.print("Stopped; nothing that was started is left.")


def _watch(seconds: float, broken: Breakage | None, archive: Path, folder_of_images: Path) -> None:
    images = _images(archive, folder_of_images, broken)
    with ExitStack() as resources:
        folder = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="monitor")))
        with console.status("Starting Alertmanager, pathlens and Prometheus"):
            receiver = resources.enter_context(Receiver(_tell))
            alertmanager = resources.enter_context(Alertmanager(folder / "alertmanager", receiver.address))
            service = resources.enter_context(Service(archive, folder / "service"))
            prometheus = resources.enter_context(
                Prometheus(
                    folder / "prometheus",
                    {_JOB: service.metrics_address},
                    rule_files(),
                    alertmanager.address,
                )
            )
            prometheus.wait_for_scrapes()
        addresses = {
            "gRPC": service.address,
            "metrics": f"http://{service.metrics_address}/metrics",
            "Prometheus": f"http://{prometheus.address}/alerts",
            "Alertmanager": f"http://{alertmanager.address}",
        }
        if broken is not None:
            resources.enter_context(broken.befalling(service))
        end = time.monotonic() + seconds
        resources.enter_context(Load(service.address, images, seconds, Manner() if broken is None else broken.manner))
        _show(View(prometheus, addresses), end)


def _show(view: View, end: float) -> None:
    if not console.is_terminal:
        while (left := end - time.monotonic()) > 0:
            console.print(view.draw(left))
            time.sleep(min(left, _PRINT_SECONDS))
        console.print(view.draw(0.0))
        return
    with Live(console=console, auto_refresh=False) as live:
        while (left := end - time.monotonic()) > 0:
            live.update(view.draw(left), refresh=True)
            time.sleep(min(left, _DRAW_SECONDS))


def _images(archive: Path, folder: Path, broken: Breakage | None) -> list[bytes]:
    files = sorted(folder.rglob("*.png"))
    if not files or not archive.is_file():
        raise click.ClickException(
            f"There are no PNG files in {folder}, or there is no {archive}: run `make monitor`, which builds both."
        )
    images = [file.read_bytes() for file in files]
    return images if broken is None else [broken.spoil(image) for image in images]


def _tell(notification: Notification) -> None:
    content = notification.content
    names = sorted({alert["labels"]["alertname"] for alert in content["alerts"]})
    console.print(f"Alertmanager tells {notification.receiver}: {', '.join(names)} {content['status']}")


def _interrupt(_number: int, _frame: object) -> None:
    # A second one would leave half of everything behind.
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    for number in _SIGNALS:
        signal.signal(number, _interrupt)
    command()
