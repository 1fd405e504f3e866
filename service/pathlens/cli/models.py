"""`pathlens models`."""

import click
from google.protobuf.json_format import MessageToJson
from rich import box
from rich.console import Console
from rich.table import Table

from pathlens.client import Client
from pathlens.wire.models import model_to_message


@click.command("models")
@click.option("--address", default="localhost:8080", show_default=True, help="Host and port of the gateway.")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
def command(address: str, form: str) -> None:
    """Describe what a running service serves.

    \b
    Example:
      pathlens models --address localhost:8080 --format json
    """  # noqa: D301
    with Client(address) as client:
        models = client.list_models()
    if form == "json":
        for model in models:
            click.echo(MessageToJson(model_to_message(model), preserving_proto_field_name=True))
        return
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    table.add_column("model", overflow="fold")
    for heading in ("version", "with pathway", "input", "taps", "sources", "granularity", "ablation"):
        table.add_column(heading, no_wrap=heading != "with pathway")
    for model in models:
        table.add_row(
            model.model.name,
            model.model.version,
            f"{model.class_pathway_count} of {len(model.labels)}",
            "x".join(map(str, model.input_shape)),
            str(len(model.taps)),
            "\n".join(source.value for source in model.sources),
            model.granularity.value,
            model.ablation.value,
        )
    Console().print(table)
