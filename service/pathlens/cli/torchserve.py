"""`pathlens torchserve`."""

from pathlib import Path
from typing import Any

import click

from pathlens.cli.running import print_findings, run, running_options
from pathlens.cli.setting_option import flags_of, setting_option
from pathlens.configuration import load_configuration
from pathlens.configuration.check import check_torchserve
from pathlens.serving import TorchServeService


@click.command("torchserve")
@click.argument("archives", nargs=-1, type=click.Path(path_type=Path))
@running_options
@setting_option("--model-store", "torchserve.model_store")
@setting_option("--workers", "torchserve.workers")
@setting_option("--java-home", "torchserve.java_home")
@setting_option("--log-format", "logging.format")
@setting_option("--log-level", "logging.level")
def command(archives: tuple[Path, ...], file: Path | None, only_check: bool, **options: Any) -> None:
    """Run TorchServe with ARCHIVES (default: all in the model store) for a `pathlens gateway` on the same loopback.

    It needs torchserve.inference_port and torchserve.management_port. The first SIGINT or SIGTERM waits until no
    gateway is connected any more and exits with 0; the second one ends everything at once.

    \b
    Examples:
      pathlens torchserve --config pathlens.toml
      PATHLENS_TORCHSERVE__INFERENCE_PORT=7070 PATHLENS_TORCHSERVE__MANAGEMENT_PORT=7071 pathlens torchserve
    """  # noqa: D301
    flags = flags_of(options)
    if archives:
        flags["torchserve.archives"] = archives
    configuration = load_configuration(file, flags, split=True)
    if only_check:
        print_findings(check_torchserve(configuration))
        return
    run(
        configuration,
        lambda report: TorchServeService(configuration.torchserve, configuration.gateway, report),
    )
