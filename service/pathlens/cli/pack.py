"""`pathlens pack`."""

import hashlib
from pathlib import Path

import click

from pathlens.bundle.archive import pack


@click.command("pack")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--model-store", type=click.Path(path_type=Path), default=Path("model_store"), show_default=True, help="Where to."
)
@click.option("--version", "model_version", default="1.0", show_default=True, help="Version to serve it under.")
@click.option("--file-name", metavar="NAME.mar", help="File to write there instead of the model's NAME.mar.")
def command(bundle: Path, model_store: Path, model_version: str, file_name: str | None) -> None:
    """Build a model archive from BUNDLE; the same bundle gives the same bytes.

    A service that runs on the model store serves what is put there: a new version in the file of the old one takes its
    place, one in a file of its own is served beside it.

    \b
    Examples:
      pathlens pack build/digits/bundle --model-store model_store
      pathlens pack build/digits/bundle --version 2.0
      pathlens pack build/digits/bundle --version 2.0 --file-name digits-2.0.mar
    """  # noqa: D301
    archive = pack(bundle, model_store, model_version, file_name)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    click.echo(f"{archive}  {archive.stat().st_size / 1e6:.1f} MB  SHA-256 {digest}")
