"""`pathlens models`."""

import click
from google.protobuf.json_format import MessageToJson
from rich import box
from rich.console import Console
from rich.table import Table

from pathlens.cli.connection import Connect, connection_options, retries_option, retry_policy, timeout_option
from pathlens.wire.models import model_to_message


@click.command("models")
@connection_options
@timeout_option(default=60.0, show_default=True, help="With all repetitions.")
@retries_option
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
def command(connect: Connect, timeout: float, retries: int, form: str) -> None:
    """Describe what a running service serves.

    \b
    Examples:
      pathlens models --address localhost:8080 --format json
      pathlens models --address pathlens.example.com:443 --tls --token-file token
    """  # noqa: D301
    with connect(timeout=timeout, retries=retry_policy(retries)) as client:
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
