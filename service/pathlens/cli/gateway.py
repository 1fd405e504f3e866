"""`pathlens gateway`."""

from pathlib import Path
from typing import Any

import click

from pathlens.cli.running import print_findings, run, running_options
from pathlens.cli.setting_option import flags_of, gateway_options
from pathlens.configuration import load_configuration
from pathlens.configuration.check import check_gateway
from pathlens.gateway import Security
from pathlens.serving import GatewayService, Report


@click.command("gateway")
@running_options
@gateway_options
def command(file: Path | None, only_check: bool, **options: Any) -> None:
    """Open the gateway to a TorchServe that `pathlens torchserve` runs on the same loopback.

    It needs torchserve.inference_port and torchserve.management_port, and waits until the models answer there. The
    first SIGINT or SIGTERM finishes what was accepted and exits with 0; the second one ends everything at once.

    \b
    Examples:
      pathlens gateway --config pathlens.toml
      PATHLENS_TORCHSERVE__INFERENCE_PORT=7070 PATHLENS_TORCHSERVE__MANAGEMENT_PORT=7071 pathlens gateway
    """  # noqa: D301
    configuration = load_configuration(file, flags_of(options), split=True, archives=False)
    if only_check:
        print_findings(check_gateway(configuration))
        return

    def make(report: Report) -> GatewayService:
        security = Security(configuration.tls, configuration.authorisation)
        return GatewayService(configuration.torchserve, configuration.gateway, report, security, configuration.tracing)

    run(configuration, make, "IMAGE")
