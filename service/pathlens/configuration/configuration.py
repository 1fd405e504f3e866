"""All groups of settings together."""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import combinations
from types import MappingProxyType
from typing import Any, TypeAlias

from pydantic import Field
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, SettingsConfigDict

from pathlens.gateway import AuthorisationSettings, GatewaySettings, TlsSettings
from pathlens.observability import LoggingSettings, TracingSettings
from pathlens.settings import fields_of
from pathlens.torchserve import TorchServeSettings
from pathlens.torchserve.instance import LOOPBACK
from pathlens.torchserve.settings import heap_megabytes_for

PREFIX = "PATHLENS_"
"""What the environment variables begin with: PATHLENS_GATEWAY__PORT."""
DELIMITER = "__"
"""What they have between group and setting."""

# The addresses that stand for all others.
_EVERYWHERE = frozenset({"0.0.0.0", "::"})  # noqa: S104 - is looked for, not listened on

_Listening: TypeAlias = tuple[str, str, int]
"""Name of a setting, and the address and the port that it leads to."""

GROUPS: Mapping[str, Any] = MappingProxyType(
    {
        "gateway": GatewaySettings,
        "torchserve": TorchServeSettings,
        "tls": TlsSettings,
        "authorisation": AuthorisationSettings,
        "logging": LoggingSettings,
        "tracing": TracingSettings,
    }
)
"""The groups, which are tables in the file."""

SETTINGS: Mapping[str, FieldInfo] = MappingProxyType(
    {f"{group}.{name}": field for group, kind in GROUPS.items() for name, field in fields_of(kind).items()}
)
"""Definition of every setting by its whole name, such as gateway.port."""


class Configuration(BaseSettings):
    """What `pathlens serve`, `torchserve` and `gateway` are told; `load_configuration` makes it."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter=DELIMITER,
        # What deployments write for "not set".
        env_ignore_empty=True,
        # The settings themselves read JSON, and complain as about any other value.
        enable_decoding=False,
        extra="forbid",
        frozen=True,
    )

    gateway: GatewaySettings = Field(default_factory=dict, validate_default=True)
    torchserve: TorchServeSettings = Field(default_factory=dict, validate_default=True)
    tls: TlsSettings | None = None
    authorisation: AuthorisationSettings = Field(default_factory=dict, validate_default=True)
    logging: LoggingSettings = Field(default_factory=dict, validate_default=True)
    tracing: TracingSettings = Field(default_factory=dict, validate_default=True)

    def contradictions(self) -> list[str]:
        """List the settings that are right each and wrong together."""
        gateway, torchserve = self.gateway, self.torchserve
        in_flight = gateway.requests_in_flight(torchserve.workers)
        derived = "" if gateway.max_in_flight else f", from torchserve.workers {torchserve.workers},"
        found = _clashes([*self._gateway_ports(), *self._torchserve_ports()])
        found += self._contradictory_limits()
        if in_flight >= torchserve.job_queue_size:
            found.append(
                f"gateway.max_in_flight is {in_flight}{derived} and torchserve.job_queue_size"
                f" {torchserve.job_queue_size}: choose a queue that holds more than the gateway sends."
            )
        if in_flight < torchserve.workers:
            found.append(
                f"gateway.max_in_flight is {in_flight} and torchserve.workers {torchserve.workers}: choose"
                f" at least {2 * torchserve.workers}, or workers stand idle."
            )
        if gateway.max_message_bytes > torchserve.max_message_bytes:
            found.append(
                f"gateway.max_message_bytes is {gateway.max_message_bytes} and torchserve.max_message_bytes"
                f" {torchserve.max_message_bytes}: let TorchServe take what the gateway takes, or its workers die."
            )
        if gateway.upstream_timeout_seconds <= torchserve.response_timeout_seconds:
            found.append(
                f"gateway.upstream_timeout_seconds is {gateway.upstream_timeout_seconds:g} and"
                f" torchserve.response_timeout_seconds {torchserve.response_timeout_seconds}: let the gateway wait"
                " longer than TorchServe lets a worker compute."
            )
        needed = heap_megabytes_for(gateway.max_in_flight_bytes, torchserve.max_message_bytes)
        if torchserve.heap_megabytes < needed:
            found.append(
                f"torchserve.heap_megabytes is {torchserve.heap_megabytes}, and the messages in flight may take more:"
                f" choose at least {needed}, or lower gateway.max_in_flight_bytes or torchserve.max_message_bytes."
            )
        return found

    def split_contradictions(self) -> list[str]:
        """List what else is wrong where TorchServe and the gateway are two containers of a pod."""
        gateway, torchserve = self.gateway, self.torchserve
        found = [
            f"torchserve.{name} is 0: choose a port, such as {example}, and tell it to `pathlens torchserve` and"
            " `pathlens gateway`, or they do not find each other."
            for name, example in (("inference_port", 7070), ("management_port", 7071))
            if getattr(torchserve, name) == 0
        ]
        probes = [
            ("torchserve.health_port", torchserve.host, torchserve.health_port),
            ("torchserve.metrics_port", torchserve.host, torchserve.metrics_port),
        ]
        known = [*self._gateway_ports(), *self._torchserve_ports()]
        found += [clash for clash in _clashes([*known, *probes]) if clash not in _clashes(known)]
        if torchserve.drain_seconds < gateway.drain_seconds:
            found.append(
                f"torchserve.drain_seconds is {torchserve.drain_seconds:g} and gateway.drain_seconds"
                f" {gateway.drain_seconds:g}: let TorchServe wait as long as the gateway finishes calls, and a little"
                " longer."
            )
        return found

    def missing_archives(self) -> list[str]:
        """Say that there is nothing to serve, if so."""
        torchserve = self.torchserve
        # A store that cannot be read holds none.
        with suppress(OSError):
            if torchserve.archive_files():
                return []
        return [
            "torchserve.archives is empty: give at least one .mar file, as `pathlens pack BUNDLE` makes them, or a"
            f" model_store that holds one, which {str(torchserve.model_store)!r} does not."
        ]

    def _gateway_ports(self) -> list[_Listening]:
        gateway = self.gateway
        return [
            ("gateway.port", gateway.host, gateway.port),
            ("gateway.metrics_port", gateway.metrics_host, gateway.metrics_port),
            ("gateway.health_port", gateway.host, gateway.health_port or 0),
        ]

    def _torchserve_ports(self) -> list[_Listening]:
        torchserve = self.torchserve
        return [
            ("torchserve.inference_port", LOOPBACK, torchserve.inference_port),
            ("torchserve.management_port", LOOPBACK, torchserve.management_port),
        ]

    def _contradictory_limits(self) -> list[str]:
        gateway = self.gateway
        found = []
        if gateway.max_image_bytes > gateway.max_message_bytes:
            found.append(
                f"gateway.max_image_bytes is {gateway.max_image_bytes} and gateway.max_message_bytes"
                f" {gateway.max_message_bytes}: let a message hold an image."
            )
        if gateway.max_bulk_calls > gateway.max_calls:
            found.append(
                f"gateway.max_bulk_calls is {gateway.max_bulk_calls} and gateway.max_calls {gateway.max_calls}: streams"
                " and batches are calls, so choose no more of them."
            )
        share = math.floor(gateway.max_in_flight_bytes * (1.0 - gateway.prediction_share))
        if share < gateway.largest_explanation_bytes:
            found.append(
                f"gateway.max_in_flight_bytes is {gateway.max_in_flight_bytes}, of which gateway.prediction_share"
                f" leaves explanations {share}, and one may have {gateway.largest_explanation_bytes}, after"
                " gateway.max_image_bytes and gateway.max_message_bytes: choose more bytes or a smaller share, or large"
                " explanations wait for ever."
            )
        return found


def _clashes(listening: Sequence[_Listening]) -> list[str]:
    """Name the pairs of settings that cannot both be listened on."""
    return [
        f"{one} and {other} are both {port}: choose two ports."
        for (one, host, port), (other, other_host, other_port) in combinations(listening, 2)
        if port == other_port != 0 and (host == other_host or {host, other_host} & _EVERYWHERE)
    ]
