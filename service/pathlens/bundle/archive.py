"""Model archives: a bundle and its handler in the .mar form that any TorchServe loads."""

import importlib.util
import json
import re
import zipfile
from pathlib import Path

from pathlens.bundle.store import MANIFEST, check_files, read_manifest
from pathlens.errors import BundleError
from pathlens.files import write_whole

HANDLER = "pathlens_handler.py"
BUNDLE_FOLDER = "bundle"

# The earliest moment a zip entry can carry: the archive depends on its content alone.
_EPOCH = (1980, 1, 1, 0, 0, 0)


def pack(bundle: Path, model_store: Path, version: str = "1.0", file_name: str | None = None) -> Path:
    """Build a model archive from a bundle; the same input gives the same bytes.

    Args:
        bundle: Folder of the bundle.
        model_store: Folder to put the archive in, made if missing.
        version: Version under which the model is served.
        file_name: Name of the archive in the folder; None means `NAME.mar`, which replaces the model's archive.

    Returns:
        Path of the archive, which appears whole or not at all.

    Raises:
        BundleError: If the folder is not a bundle, if a file of it was changed, if the version is not a number such
            as 1.0, or if the file name is none of an archive.
    """
    manifest = read_manifest(bundle)
    check_files(bundle, manifest)
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", version):
        raise BundleError(f"version is {version!r}; TorchServe takes numbers such as 1.0.")
    target = model_store / (f"{manifest.name}.mar" if file_name is None else file_name)
    # Hidden files are those that are still being written.
    if target.parent != model_store or target.suffix != ".mar" or target.name.startswith("."):
        raise BundleError(f"The file name is {file_name!r}: give one such as {manifest.name}-{version}.mar.")
    contents = {
        "MAR-INF/MANIFEST.json": json.dumps(
            {
                "archiverVersion": "0.12.0",
                "runtime": "python",
                "model": {"modelName": manifest.name, "handler": HANDLER, "modelVersion": version},
            },
            indent=2,
        ).encode(),
        HANDLER: _handler_source(),
        f"{BUNDLE_FOLDER}/{MANIFEST}": (bundle / MANIFEST).read_bytes(),
    }
    for name in sorted(manifest.files):
        contents[f"{BUNDLE_FOLDER}/{name}"] = (bundle / name).read_bytes()
    with write_whole(target) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, data in contents.items():
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data)
    return target


def _handler_source() -> bytes:
    specification = importlib.util.find_spec(HANDLER.removesuffix(".py"))
    if specification is None or specification.origin is None:
        raise BundleError(f"{HANDLER} is not installed; install pathlens again.")
    return Path(specification.origin).read_bytes()
