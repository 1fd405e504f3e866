"""Looking at the archives on disk again and again."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pathlens.torchserve.settings import TorchServeSettings
from pathlens.torchserve.stored_archive import Stamp


@dataclass(frozen=True)
class Sight:
    """What a look has found, by absolute path.

    Args:
        settled: Archives that looked the same in the look before.
        unsettled: Those that appeared, changed or vanished since then, or cannot be looked at.
    """

    settled: Mapping[Path, Stamp]
    unsettled: frozenset[Path]


class Lookout:
    """Looks at the archives that are to be served, and trusts what it has seen twice.

    A file that is being copied changes from look to look, and one that is being replaced may be missing for a moment.
    Looks are used and not events of the file system, which network volumes and mounted ConfigMaps do not deliver.

    Args:
        settings: Name the archives.
        before: What a look would have found before the first one, by absolute path.
    """

    def __init__(self, settings: TorchServeSettings, before: Mapping[Path, Stamp]) -> None:
        self._settings = settings
        self._before: Mapping[Path, Stamp | None] = before

    def look(self) -> Sight:
        """Look at all archives.

        Returns:
            What is there, and what is on the move.

        Raises:
            OSError: The model store cannot be read: that says nothing about what it holds.
        """
        now = _stamps(self._settings.archive_files())
        before, self._before = self._before, now
        settled = {path: stamp for path, stamp in now.items() if stamp is not None and before.get(path) == stamp}
        return Sight(settled, frozenset((before.keys() | now.keys()) - settled.keys()))


def _stamps(archives: tuple[Path, ...]) -> dict[Path, Stamp | None]:
    """Look at files; None stands for one that is there and cannot be looked at."""
    stamps: dict[Path, Stamp | None] = {}
    for archive in archives:
        path = archive.absolute()
        try:
            stamps[path] = Stamp.of(path)
        except FileNotFoundError:
            continue
        except OSError:
            stamps[path] = None
    return stamps
