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
def command(bundle: Path, model_store: Path, model_version: str) -> None:
    """Build a model archive from BUNDLE; the same bundle gives the same bytes.

    \b
    Example:
      pathlens pack build/digits/bundle --model-store model_store
    """  # noqa: D301
    archive = pack(bundle, model_store, model_version)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    click.echo(f"{archive}  {archive.stat().st_size / 1e6:.1f} MB  SHA-256 {digest}")
