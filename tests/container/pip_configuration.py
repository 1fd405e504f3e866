"""How pip is configured on this machine, to let a build inside of a container find packages in the same places."""

import ast
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

_ENVIRONMENT = ":env:"


@dataclass(frozen=True)
class PipConfiguration:
    """What a pip elsewhere needs.

    Attributes:
        text: A configuration file that says what all files and variables of this machine say together.
        paths: Files and folders of this machine that it names.
    """

    text: str
    paths: tuple[Path, ...]


def pip_configuration() -> PipConfiguration:
    """Ask pip for its configuration."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return parse(listed)


def parse(listed: str) -> PipConfiguration:
    """Read what `pip config list` prints.

    Args:
        listed: Lines such as `global.timeout='60'`; those of variables begin with `:env:`.
    """
    settings: dict[str, dict[str, str]] = {}
    lines = [line.partition("=") for line in listed.splitlines() if "=" in line]
    # Variables go before files.
    for name, _, value in sorted(lines, key=lambda line: line[0].startswith(_ENVIRONMENT)):
        section, _, key = name.partition(".")
        section = "global" if section == _ENVIRONMENT else section
        settings.setdefault(section, {})[key] = " ".join(str(ast.literal_eval(value)).split())
    text = "".join(
        f"[{section}]\n" + "".join(f"{key} = {value}\n" for key, value in values.items())
        for section, values in settings.items()
    )
    words = (word for values in settings.values() for value in values.values() for word in value.split())
    paths = {path for word in words if (path := _local(word)) is not None and path.exists()}
    return PipConfiguration(text, tuple(sorted(paths)))


def _local(word: str) -> Path | None:
    if word.startswith("/"):
        return Path(word)
    address = urlsplit(word)
    if address.scheme != "file":
        return None
    # The pages of an index point to files beside it.
    return Path(unquote(address.path)).parent
