"""`pathlens serve`."""

from pathlib import Path
from typing import Any

import click

from pathlens.cli.running import print_findings, run, running_options
from pathlens.cli.setting_option import flags_of, gateway_options, setting_option
from pathlens.configuration import load_configuration
from pathlens.configuration.check import check
from pathlens.configuration.ports import check_free
from pathlens.gateway import Security
from pathlens.serving import Report, Service


@click.command("serve")
@click.argument("archives", nargs=-1, type=click.Path(path_type=Path))
@running_options
@setting_option("--model-store", "torchserve.model_store")
@setting_option("--workers", "torchserve.workers")
@setting_option("--java-home", "torchserve.java_home")
@gateway_options
@click.option("--example", default="IMAGE", help="Image to name in the line that is printed for a first call.")
def command(archives: tuple[Path, ...], file: Path | None, only_check: bool, example: str, **options: Any) -> None:
    """Serve ARCHIVES (default: all in the model store) over gRPC until interrupted.

    The first SIGINT or SIGTERM finishes what was accepted and exits with 0; the second one ends everything at once.

    \b
    Examples:
      pathlens serve
      pathlens serve model_store/digits.mar --port 9000 --workers 2
      pathlens serve --config pathlens.toml --check
    """  # noqa: D301
    flags = flags_of(options)
    if archives:
        flags["torchserve.archives"] = archives
    configuration = load_configuration(file, flags)
    if only_check:
        print_findings(check(configuration))
        return

    def make(report: Report) -> Service:
        gateway = configuration.gateway
        # Before a model is loaded for nothing.
        check_free(gateway.host, gateway.port, "gateway.port", "--port")
        check_free(gateway.metrics_host, gateway.metrics_port, "gateway.metrics_port", "--metrics-port")
        if gateway.health_port is not None:
            check_free(gateway.host, gateway.health_port, "gateway.health_port")
        security = Security(configuration.tls, configuration.authorisation)
        return Service(configuration.torchserve, gateway, report, security, configuration.tracing)

    run(configuration, make, example)
