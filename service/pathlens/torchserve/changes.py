"""What to do about new, changed and vanished archives: decisions alone, without a look at anything."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from pathlens.errors import BundleError, PathlensError
from pathlens.model_version import ModelVersion
from pathlens.torchserve.served_models import twin


@dataclass(frozen=True)
class Content:
    """What an archive holds.

    Args:
        version: Name and version that it says.
        sha256: Hash of the whole archive.
    """

    version: ModelVersion
    sha256: str


@dataclass
class Arrivals:
    """What to do with archives that were read.

    Args:
        load: Those to load, in the order of their versions.
        known: Those that hold what is served already.
        refused: Those that cannot be served, and why.
        twins: Those of the refused ones for whose version another archive stands.
    """

    load: list[Path] = field(default_factory=list)
    known: list[Path] = field(default_factory=list)
    refused: dict[Path, PathlensError] = field(default_factory=dict)
    twins: list[Path] = field(default_factory=list)


@dataclass(frozen=True)
class Departures:
    """What to do with versions whose archives are gone.

    Args:
        unload: Those to unload, in the order of their versions.
        kept: Those that stay, because nothing else of their model is served.
    """

    unload: tuple[ModelVersion, ...]
    kept: tuple[ModelVersion, ...]


def arrivals(
    read: Mapping[Path, Content], claims: Mapping[Path, ModelVersion], served: Mapping[ModelVersion, str]
) -> Arrivals:
    """Decide what to do with archives that were read: a name and version is served from one archive, with one content.

    Args:
        read: What was read.
        claims: The version that each archive on disk stands for so far.
        served: Hash of what is served as each version.

    Returns:
        Every archive that was read, in one of three lists.
    """
    decided = Arrivals()
    holders = {version: path for path, version in claims.items() if path not in read}
    for path, content in sorted(read.items(), key=lambda item: (item[1].version, item[0])):
        version = content.version
        sha256 = served.get(version)
        if sha256 is not None and sha256 != content.sha256:
            decided.refused[path] = _taken(path, content, sha256)
        elif version in holders:
            decided.refused[path] = twin(version, 2)
            decided.twins.append(path)
        else:
            (decided.load if sha256 is None else decided.known).append(path)
            holders[version] = path
    return decided


def departures(claimed: Collection[ModelVersion], served: Collection[ModelVersion]) -> Departures:
    """Decide which versions to unload; the last one of a model stays, so that an emptied store ends no service.

    Args:
        claimed: Versions that archives on disk stand for.
        served: Versions that are served.

    Returns:
        The served versions that no archive stands for.
    """
    unload: list[ModelVersion] = []
    kept: list[ModelVersion] = []
    for _, versions in groupby(sorted(served), key=lambda version: version.name):
        all_of_it = list(versions)
        gone = [version for version in all_of_it if version not in claimed]
        if gone == all_of_it:
            kept.append(gone.pop())
        unload += gone
    return Departures(tuple(unload), tuple(kept))


def _taken(path: Path, content: Content, sha256: str) -> BundleError:
    version = content.version
    return BundleError(
        f"{path} holds {version.name!r} in version {version.version!r}, which is served with another content: give the"
        " new one a version of its own with `pathlens pack --version`.",
        reason="VERSION_TAKEN",
        metadata={
            "archive": path,
            "model": version.name,
            "version": version.version,
            "sha256": content.sha256,
            "served": sha256,
        },
    )
