"""Options of the command line that are settings of the configuration."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
from pydantic_core import PydanticUndefined

from pathlens.configuration.configuration import SETTINGS
from pathlens.settings.words import bounds, plain_type

_Command = TypeVar("_Command", bound=Callable[..., Any])

# click wants an identifier for a parameter.
_DOT = "__"

_GATEWAY_OPTIONS = {
    "--host": "gateway.host",
    "--port": "gateway.port",
    "--metrics-host": "gateway.metrics_host",
    "--metrics-port": "gateway.metrics_port",
    "--tls-certificate": "tls.certificate",
    "--tls-private-key": "tls.private_key",
    "--tls-client-ca": "tls.client_ca",
    "--token-file": "authorisation.token_file",
    "--log-format": "logging.format",
    "--log-level": "logging.level",
    "--trace-endpoint": "tracing.endpoint",
}


def setting_option(flag: str, setting: str) -> Callable[[_Command], _Command]:
    """Make an option of a setting, with the range, the default and the description of the setting.

    An option that is not given has no value: what the file and the environment say then counts.

    Args:
        flag: Name of the option, such as `--port`.
        setting: Whole name of the setting, such as gateway.port.

    Returns:
        A decorator for a command.
    """
    field = SETTINGS[setting]
    limits = bounds(field)
    kind: click.ParamType[Any] = click.STRING
    if limits is not None:
        kind = click.IntRange(int(limits[0]), int(limits[1]))
    elif plain_type(field) is Path:
        kind = click.Path(path_type=Path)
    default = field.get_default()
    shown = setting if default in (None, PydanticUndefined) else f"{setting} = {default}"
    description = " ".join((field.description or "").split())
    return click.option(flag, setting.replace(".", _DOT), type=kind, help=f"{description}  [{shown}]")


def gateway_options(command: _Command) -> _Command:
    """Give a command the options of all that open the gateway.

    Args:
        command: The function of the command.

    Returns:
        The same, with the options.
    """
    # The last one that is added is listed first.
    for flag, setting in reversed(_GATEWAY_OPTIONS.items()):
        command = setting_option(flag, setting)(command)
    return command


def flags_of(options: Mapping[str, Any]) -> dict[str, object]:
    """Return the settings that were given on the command line, by their whole names.

    Args:
        options: All options of the command, by the names of their parameters.
    """
    return {name.replace(_DOT, "."): value for name, value in options.items() if _DOT in name and value is not None}
