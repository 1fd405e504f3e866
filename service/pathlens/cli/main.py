"""The `pathlens` command group; each command is imported when it is called, so that `explain` needs no torch."""

import os
from importlib import import_module
from typing import Any

import click

from pathlens.errors import PathlensError
from pathlens.version import __version__

_COMMANDS = {
    "backend": "Choose what computes where a bundle is served on the CPU.",
    "evaluate": "Measure how good the explanations of a bundle are.",
    "explain": "Explain images through a running service.",
    "export": "Write the explanation of a bundle as one ONNX graph.",
    "fit": "Capture a classifier and train its pathways.",
    "gateway": "Open the gateway to a TorchServe that runs beside it.",
    "models": "Describe what a running service serves.",
    "pack": "Build a model archive from a bundle.",
    "roar": "Retrain without the pixels that maps call important (ROAR).",
    "serve": "Serve model archives over gRPC.",
    "torchserve": "Run TorchServe for a gateway that runs beside it.",
    "verify": "Compare an exported explainer with PyTorch.",
}
_EXTRAS = {
    "backend": "onnx",
    "evaluate": "evaluate",
    "export": "onnx",
    "gateway": "gateway",
    "roar": "evaluate",
    "serve": "serve",
    "torchserve": "serve",
    "verify": "onnx",
}
"""What to install for a command; the others need `fit` at most."""

_SERVING = frozenset({"serve", "torchserve", "gateway"})


class _Commands(click.Group):
    """A group that loads the module of a command on its first use and reports errors in one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        if cmd_name in _SERVING:
            # gRPC's core reads this when it is imported. It writes past every logger, even a line for each caller whose
            # TLS is wrong; it shall write its errors alone.
            os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
        try:
            command: click.Command = import_module(f"pathlens.cli.{cmd_name}").command
        except KeyboardInterrupt:
            # Importing torch takes seconds, and click would end with 1, by which `verify` says that something differs.
            click.echo("Interrupted.", err=True)
            raise click.exceptions.Exit(130) from None
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("pathlens"):
                raise
            extra = _EXTRAS.get(cmd_name, "fit")
            raise click.ClickException(f"{error}. Install what this needs: pip install 'pathlens[{extra}]'") from error
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        # Without this, listing the commands would import all of them.
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PathlensError as error:
            request = error.metadata.get("request_id")
            raise click.ClickException(
                f"{error.message} [{error.reason}]" + (f" (request {request})" if request else "")
            ) from error
        except OSError as error:
            raise click.ClickException(f"{error.filename or 'The system'}: {error.strerror or error}") from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="pathlens")
def main() -> None:
    """Serve an image classifier together with the neural pathways behind each prediction.

    \b
    Bring your own classifier in three commands:
      pathlens fit --classifier my.package:make --weights my.safetensors --images photos/ --out my-bundle
      pathlens pack my-bundle
      pathlens serve
    """  # noqa: D301 - \b tells click to keep the lines
