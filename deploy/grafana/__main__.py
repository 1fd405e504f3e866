"""Write the dashboards, or tell whether the committed ones are those that the code makes."""

import sys
from pathlib import Path

import click
from grafana_foundation_sdk.cog.encoder import JSONEncoder

from grafana.explanations import explanations
from grafana.resources import resources
from grafana.service import service

FOLDER = Path(__file__).parent


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 where a committed file differs.")
def main(check: bool) -> None:
    """Write the dashboards beside their code."""
    different = []
    for name, build in (("service", service), ("explanations", explanations), ("resources", resources)):
        path = FOLDER / f"{name}.json"
        content = JSONEncoder(indent=2, ensure_ascii=False).encode(build()) + "\n"
        if not check:
            path.write_text(content, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != content:
            different.append(path.name)
    if different:
        click.echo(f"{', '.join(different)}: not what the code makes; run `make dashboards`", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
