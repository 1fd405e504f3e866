"""Options of the commands that call a running service."""

from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import click

from pathlens.cli.ranges import FloatRange
from pathlens.client import Client, Connection, RetryPolicy, TransportSecurity

Connect = Callable[..., Client]
"""Makes the client that the options describe; takes the arguments of `Client` that they do not cover, by name."""

Parameters = ParamSpec("Parameters")
Returned = TypeVar("Returned")

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def connection_options(
    command: Callable[Concatenate[Connect, Parameters], Returned],
) -> Callable[..., Returned]:
    """Add the options that say where the service is and how to reach it.

    Args:
        command: Gets a `Connect` as its first argument in their place.
    """

    @wraps(command)
    def connected(
        *args: Any,
        address: str,
        tls: bool,
        root_certificates: Path | None,
        certificate: Path | None,
        key: Path | None,
        server_name: str | None,
        token_file: Path | None,
        **kwargs: Any,
    ) -> Returned:
        if (certificate is None) != (key is None):
            raise click.UsageError("--certificate and --key belong together.")
        settings = (root_certificates, certificate, key, server_name)
        # Whoever names a certificate wants it used.
        encrypted = tls or any(setting is not None for setting in settings)
        security = TransportSecurity(*settings) if encrypted else None
        connect = partial(Client, Connection(address, security, token=token_file))
        return command(connect, *args, **kwargs)

    options = (
        click.option("--address", default="localhost:8080", show_default=True, help="Host and port of the gateway."),
        click.option("--tls", is_flag=True, help="Encrypt the connection; implied by the next four options."),
        click.option(
            "--root-certificates", type=_FILE, help="PEM file of the authorities to trust.  [default: gRPC's own list]"
        ),
        click.option("--certificate", type=_FILE, help="PEM file of the certificate to show (mutual TLS)."),
        click.option("--key", type=_FILE, help="PEM file of its private key."),
        click.option("--server-name", help="Name in the service's certificate, if it is not that of the address."),
        click.option(
            "--token-file",
            type=_FILE,
            envvar="PATHLENS_TOKEN_FILE",
            show_envvar=True,
            help="File of the token to show.",
        ),
    )
    described: Callable[..., Returned] = connected
    for option in reversed(options):
        described = option(described)
    return described


timeout_option = partial(click.option, "--timeout", type=FloatRange(0, min_open=True), metavar="SECONDS")
"""The option --timeout, whose default and help are the command's own."""

retries_option = click.option(
    "--retries",
    type=click.IntRange(0),
    default=RetryPolicy().attempts - 1,
    show_default=True,
    help="How often to repeat a call that failed for the moment, within its timeout.",
)
"""The option --retries."""


def retry_policy(retries: int) -> RetryPolicy | None:
    """Return what --retries asks for.

    Args:
        retries: Most repetitions.
    """
    return RetryPolicy(attempts=retries + 1) if retries else None
