"""Reading the configuration: a TOML file, above it the environment, above it the command line."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, TomlConfigSettingsSource

from pathlens.configuration.configuration import Configuration
from pathlens.configuration.origins import Origins
from pathlens.settings import refused


def load_configuration(
    file: Path | None = None, flags: Mapping[str, object] | None = None, *, split: bool = False, archives: bool = True
) -> Configuration:
    """Put the configuration together.

    Args:
        file: A TOML file with a table for each group; None without one.
        flags: What the command line says, by the whole names of the settings.
        split: Whether TorchServe and the gateway are to run apart.
        archives: Whether there have to be any.

    Returns:
        The configuration, every value checked.

    Raises:
        ServerStartError: Something in it is wrong; the message names all of it, and where it stands.
    """
    table = _Table(file)
    origins = Origins(file, table.toml_data, flags or {})

    class FromSources(Configuration):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],  # noqa: ARG003
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
            file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, table

    try:
        configuration = FromSources(**origins.command_line())
    except ValidationError as error:
        raise refused(origins.problems(error)) from error
    contradictions = configuration.contradictions()
    if split:
        contradictions += configuration.split_contradictions()
    if archives:
        contradictions += configuration.missing_archives()
    if problems := [*origins.problems(), *contradictions]:
        raise refused(problems)
    return configuration


class _Table(TomlConfigSettingsSource):
    """The file, which has to be there and to be TOML."""

    def __init__(self, file: Path | None) -> None:
        super().__init__(Configuration, file)
        # As they are written: the library would take [Gateway] for [gateway], and drop one of the two.
        self.init_kwargs = self.toml_data

    def _read_files(self, files: Any, deep_merge: bool = False) -> dict[str, Any]:  # noqa: ARG002
        if files is None:
            return {}
        try:
            return self._read_file(files)
        except OSError as error:
            raise refused([f"{files} cannot be read ({error.strerror or error})."]) from error
        except ValueError as error:
            raise refused([f"{files} is not TOML: {error}."]) from error
