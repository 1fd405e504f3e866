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


def pack(bundle: Path, model_store: Path, version: str = "1.0") -> Path:
    """Build `NAME.mar` from a bundle; the same input gives the same bytes.

    Args:
        bundle: Folder of the bundle.
        model_store: Folder to put the archive in, made if missing.
        version: Version under which the model is served.

    Returns:
        Path of the archive, which appears whole or not at all.

    Raises:
        BundleError: If the folder is not a bundle, if a file of it was changed, or if the version is not a number such
            as 1.0.
    """
    manifest = read_manifest(bundle)
    check_files(bundle, manifest)
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", version):
        raise BundleError(f"version is {version!r}; TorchServe takes numbers such as 1.0.")
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
    target = model_store / f"{manifest.name}.mar"
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
