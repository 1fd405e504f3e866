"""What the commands that serve have in common: their options, their signals, and what they print."""

import logging
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from rich import box
from rich.console import Console
from rich.table import Table

from pathlens.configuration import Configuration
from pathlens.configuration.check import Findings
from pathlens.errors import PathlensError
from pathlens.observability import configure_logging, writes_json
from pathlens.serving import Report, Serving

_Command = TypeVar("_Command", bound=Callable[..., Any])

_logger = logging.getLogger(__name__)

# The signals that are listened to.
_SIGNALS = 2
# What shells add to a signal's number for the exit code of what it has ended.
_KILLED_BY = 128


def running_options(command: _Command) -> _Command:
    """Give a command the options `--config` and `--check`, as `file` and `only_check`.

    Args:
        command: The function of the command.

    Returns:
        The same, with the options.
    """
    config = click.option(
        "--config",
        "file",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        envvar="PATHLENS_CONFIG",
        show_envvar=True,
        help="A TOML file with all settings; the environment and the options below go before it.",
    )
    check = click.option(
        "--check", "only_check", is_flag=True, help="Look at everything that is needed, and start nothing."
    )
    return config(check(command))


def print_findings(findings: Findings) -> None:
    """Print what a look at everything has found.

    Args:
        findings: What there is and what is wrong.

    Raises:
        SystemExit: Something is wrong.
    """
    for warning in findings.warnings:
        click.echo(f"Warning: {warning}", err=True)
    for problem in findings.problems:
        click.echo(f"Error: {problem}", err=True)
    if findings.problems:
        raise SystemExit(1)
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    table.add_column("what", no_wrap=True)
    table.add_column("found", overflow="fold")
    for row in findings.rows:
        table.add_row(*row)
    Console().print(table)


def run(configuration: Configuration, make: Callable[[Report], Serving], example: str | None = None) -> None:
    """Serve until interrupted. The first signal ends what is served, the second one ends it at once.

    Args:
        configuration: What the operator chose.
        make: Makes what is served, which tells how far its start is.
        example: Image to name in the line for a first call; None where applications call somebody else.

    Raises:
        PathlensError: It does not start or cannot go on, and the log is text.
        SystemExit: The same, and the log is JSON; or a second signal came.
    """
    configure_logging(configuration.logging)
    try:
        _run(configuration, make, example)
    except PathlensError as error:
        if not writes_json(configuration.logging):
            raise
        # The line that a command ends with would be the only one in the log that is no JSON.
        _logger.critical("%s", error.message, extra={"reason": error.reason})
        raise SystemExit(1) from error


def _run(configuration: Configuration, make: Callable[[Report], Serving], example: str | None) -> None:
    starting = Console(stderr=True).status("Starting")
    as_json = writes_json(configuration.logging)
    serving = make(_logger.info if as_json else starting.update)
    signals: list[int] = []

    def stop(number: int, _frame: object) -> None:
        signals.append(number)
        if len(signals) > _SIGNALS:
            # Everything is being ended at once already.
            return
        _logger.info("Stopping" if len(signals) == 1 else "Ending at once")
        # The first one interrupts the start as well as the waiting; the context managers then put everything away. The
        # second one interrupts them.
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    try:
        if not as_json:
            starting.start()
        with serving:
            starting.stop()
            _print_endpoints(serving, configuration, example)
            serving.wait(lambda: bool(signals))
    except KeyboardInterrupt:
        if len(signals) > 1:
            raise SystemExit(_KILLED_BY + signals[1]) from None
        _logger.info("Stopped")
    finally:
        starting.stop()


def _print_endpoints(serving: Serving, configuration: Configuration, example: str | None) -> None:
    endpoints = dict(serving.endpoints)
    width = max(map(len, endpoints)) + 2
    first, address = next(iter(endpoints.items()))
    click.echo(f"{first:<{width}}{address}  (models: {', '.join(serving.models)})")
    for what, where in list(endpoints.items())[1:]:
        click.echo(f"{what:<{width}}{where}")
    if example is not None:
        model = f" --model {serving.models[0]}" if len(serving.models) > 1 else ""
        call = f"{sys.argv[0]} explain {example} --address {address}{model}{_credentials(configuration)}"
        click.echo(f"{'try':<{width}}{call}")


def _credentials(configuration: Configuration) -> str:
    """Compose the options with which `pathlens explain` gets in, with words in capitals for what is the caller's."""
    options = []
    if configuration.tls is not None:
        options.append("--root-certificates AUTHORITY.pem")
        if configuration.tls.client_ca is not None:
            options.append("--certificate CERTIFICATE.pem --key KEY.pem")
    if configuration.authorisation.token_file is not None:
        options.append("--token-file TOKEN")
    return "".join(f" {option}" for option in options)
