"""Which models are served, after a look into their archives."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from pathlens.errors import BundleError, PathlensError, ServerStartError
from pathlens.model_version import ModelVersion
from pathlens.torchserve.archive import ArchivedModel, read_archive
from pathlens.torchserve.settings import TorchServeSettings


@dataclass(frozen=True)
class ServedModels:
    """The models of the archives that can be served, and what is wrong with the others.

    Args:
        models: In the order of the archives.
        problems: Archives that are missing, damaged, of a name and version that another one has, or not those that were
            pinned; and pins of nothing.
    """

    models: tuple[ArchivedModel, ...]
    problems: tuple[PathlensError, ...]

    @classmethod
    def of(cls, settings: TorchServeSettings) -> "ServedModels":
        """Look into the archives.

        Args:
            settings: Names the archives and the SHA-256 of those that are pinned.
        """
        models: list[ArchivedModel] = []
        problems: list[PathlensError] = []
        try:
            archives = settings.archive_files()
        except OSError as error:
            return cls((), (_no_store(settings, f"cannot be read ({error.strerror})"),))
        if not archives:
            return cls((), (_no_store(settings, "holds no archive"),))
        for archive in archives:
            try:
                models.append(read_archive(archive))
            except PathlensError as error:
                problems.append(error)
        problems += _twins(models)
        # What cannot be read may be what a pin means.
        if len(models) == len(archives):
            problems += _unknown(models, settings.archive_sha256)
        problems += _changed(models, settings.archive_sha256)
        return cls(tuple(models), tuple(problems))

    def all(self) -> tuple[ArchivedModel, ...]:
        """Return the models, if nothing is wrong with any archive.

        Raises:
            PathlensError: The first of the problems.
        """
        if self.problems:
            raise self.problems[0]
        return self.models


def _no_store(settings: TorchServeSettings, what: str) -> BundleError:
    return BundleError(
        f"The model store {settings.model_store} {what}: put archives there, as `pathlens pack BUNDLE` makes them.",
        reason="ARCHIVE_NOT_FOUND",
        metadata={"model_store": settings.model_store},
    )


def check_pins(model: ArchivedModel, sha256: str, pins: Mapping[str, str]) -> None:
    """Check that an archive is the one that was pinned; where there are no pins, any archive will do.

    Args:
        model: What is in the archive.
        sha256: Hash of the archive.
        pins: SHA-256 that the archive of a model, or of a file name, has to have.

    Raises:
        BundleError: It is another one, or no pin names it.
    """
    pinned = {pins[name] for name in _pinned_by(model) if name in pins}
    if pins and not pinned:
        raise BundleError(
            f"{model.archive} is not pinned: archive_sha256 names neither the model {model.name!r} nor the file"
            f" {model.archive.name!r}. Take the archive away, or pin it with {sha256}.",
            reason="ARCHIVE_NOT_PINNED",
            metadata={"archive": model.archive, "model": model.name, "sha256": sha256},
        )
    for expected in sorted(pinned - {sha256}):
        raise BundleError(
            f"{model.archive} has SHA-256 {sha256}, and archive_sha256 says {expected}: it is not the archive that was"
            " pinned. Restore that one, or pin this one.",
            reason="ARCHIVE_CHANGED",
            metadata={"archive": model.archive, "sha256": sha256, "pinned": expected},
        )


def twin(version: ModelVersion, count: int) -> ServerStartError:
    """Refuse archives of the same name and version.

    Args:
        version: Their name and version.
        count: How many there are.

    Returns:
        The error.
    """
    return ServerStartError(
        f"{count} archives hold a model named {version.name!r} in version {version.version!r}: leave out all but one,"
        " or give each a version of its own with `pathlens pack --version`.",
        metadata={"model": version.name, "version": version.version},
    )


def _twins(models: Sequence[ArchivedModel]) -> list[PathlensError]:
    counts = Counter(model.served_as for model in models)
    return [twin(version, count) for version, count in counts.items() if count > 1]


def _changed(models: Sequence[ArchivedModel], pins: Mapping[str, str]) -> list[PathlensError]:
    problems: list[PathlensError] = []
    for model in models if pins else ():
        with model.archive.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
        try:
            check_pins(model, actual, pins)
        except BundleError as error:
            problems.append(error)
    return problems


def _unknown(models: Sequence[ArchivedModel], pins: Mapping[str, str]) -> list[PathlensError]:
    known = sorted({name for model in models for name in _pinned_by(model)})
    return [
        ServerStartError(
            f"archive_sha256 names {name!r}, which is neither a model nor the file name of an archive: did you mean"
            f" {get_close_matches(name, known, 1, 0)[0]!r}?",
            metadata={"name": name},
        )
        for name in pins
        if name not in known
    ]


def _pinned_by(model: ArchivedModel) -> tuple[str, str]:
    return model.name, model.archive.name
