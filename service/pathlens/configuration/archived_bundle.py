"""A look at the bundle inside a model archive."""

import zipfile
import zlib
from pathlib import Path
from typing import cast

from pathlens.errors import BundleError, ServerStartError
from pathlens.torchserve import ArchivedModel


def check_bundle(model: ArchivedModel) -> None:
    """Check that an archive holds a bundle of this pathlens, of the model's name, and that no file of it was changed.

    Args:
        model: The archive.

    Raises:
        BundleError: It does not.
        ServerStartError: torch is not installed.
    """
    try:
        from pathlens.bundle.archive import BUNDLE_FOLDER
        from pathlens.bundle.store import MANIFEST, check_files, read_manifest
    except ModuleNotFoundError as error:
        raise ServerStartError(f"{error}: run `pip install 'pathlens[serve]'`.") from error
    try:
        with zipfile.ZipFile(model.archive) as archive:
            folder = zipfile.Path(archive, f"{BUNDLE_FOLDER}/")
            if not (folder / MANIFEST).is_file():
                raise _refused(model, "holds no bundle")
            # A folder in an archive reads as one on disk does.
            bundle = cast("Path", folder)
            manifest = read_manifest(bundle)
            check_files(bundle, manifest)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, OSError) as error:
        raise _refused(model, f"is damaged ({error})") from error
    if manifest.name != model.name:
        raise _refused(model, f"holds a bundle that calls itself {manifest.name!r}")


def _refused(model: ArchivedModel, what: str) -> BundleError:
    return BundleError(
        f"The model archive {model.archive} {what}: make it anew with `pathlens pack`.",
        metadata={"archive": model.archive},
    )
