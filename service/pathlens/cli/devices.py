"""Devices that the commands take."""

import click
import torch


class Device(click.ParamType[str]):
    """A device that torch can compute on here."""

    name = "device"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name of the device, if a tensor can be made there."""
        try:
            torch.empty(0, device=str(value))
        except (RuntimeError, AssertionError) as error:
            self.fail(f"{value!r} is no device of this machine: {str(error).splitlines()[0]}", param, ctx)
        return str(value)
