"""What an operator may choose about the gateway."""

from dataclasses import replace
from typing import Annotated, Self

from pydantic import Field

from pathlens.settings import Integer, Number, Port, settings

_MEBIBYTE = 1024 * 1024
# One is computed and the next one is there when it is done, and one place is left for a prediction. With more, calls
# are sent that could be joined to others, and predictions have more before them.
_REQUESTS_PER_WORKER = 3
# What an explanation may have beside its image: options, names, tags and lengths.
_BESIDE_IMAGE_BYTES = 128 * 1024


@settings
class GatewaySettings:
    """Addresses and limits of the gateway.

    Raises:
        ServerStartError: A value is out of range.
    """

    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    """Address that the gRPC server listens on; 0.0.0.0 for all, those of IPv6 included."""
    port: Port = 8080
    """Port of the gRPC server; 0 lets the system choose one."""
    metrics_host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    """Address that the Prometheus endpoint listens on."""
    metrics_port: Port = 9090
    """Port of the Prometheus endpoint; 0 lets the system choose one."""
    health_port: Annotated[Integer | None, Field(ge=0, le=65535)] = None
    """Port for probes on `host`: `grpc.health.v1` alone, in plain text, because the probes of Kubernetes speak no TLS.
    0 lets the system choose one, and without it there is none."""
    max_message_bytes: Annotated[Integer, Field(ge=1000, le=2**30)] = 64 * _MEBIBYTE
    """Largest message in either direction, from and to applications as well as TorchServe."""
    max_image_bytes: Annotated[Integer, Field(ge=1, le=2**30)] = 16 * _MEBIBYTE
    """Largest image, as an encoded file or as the data of a tensor."""
    max_image_pixels: Annotated[Integer, Field(ge=1, le=50_000_000)] = 50_000_000
    """Most pixels of an image, as the header of its file or the shape of its tensor tells. The handler decodes no more
    than 50 million in any case."""
    max_calls: Annotated[Integer, Field(ge=1, le=1_000_000)] = 1024
    """Calls that may be in progress at one time, streams and those that wait included; one more is refused at once."""
    max_in_flight: Annotated[Integer | None, Field(ge=1, le=100_000)] = None
    """Requests that TorchServe may hold at one time of each model, abandoned ones counted: enough to keep its workers
    busy, and few, because they are answered in the order in which they came; without it, three for each of
    `torchserve.workers`. The others wait in the gateway, where predictions go first. Keep it below TorchServe's
    `job_queue_size`, whose overflow cannot be told from a dead worker."""
    max_in_flight_bytes: Annotated[Integer, Field(ge=1, le=2**40)] = 128 * _MEBIBYTE
    """Bytes of these requests together, of all models; a request is always accepted when it is the only one.
    TorchServe's `heap_megabytes` has to have room for them."""
    max_queued: Annotated[Integer, Field(ge=0, le=100_000)] = 64
    """Calls that may wait in the gateway of each model: as many predictions, and as many explanations. One more is
    refused at once. Items of streams and batches wait without being counted."""
    max_queued_bytes: Annotated[Integer, Field(ge=1, le=2**40)] = 128 * _MEBIBYTE
    """Bytes of these calls, counted in the same way; and of all batches in progress and unanswered items of streams
    together. The only call or batch may have any size. A stream beyond it has its items read one at a time."""
    max_bulk_calls: Annotated[Integer, Field(ge=1, le=100_000)] = 64
    """Batches in progress, and streams with unanswered items, that there may be at one time. One more is refused at
    once."""
    prediction_share: Annotated[Number, Field(ge=0, le=0.9)] = 0.25
    """Part of `max_in_flight` and of its bytes that explanations leave to predictions: one place at the least, where
    there are two."""
    bulk_share: Annotated[Number, Field(ge=0, le=1)] = 0.75
    """Part of the places of explanations that items of streams and batches may have: one at the least."""
    upstream_timeout_seconds: Annotated[Number, Field(ge=0.01, le=86_400)] = 150.0
    """How long a caller waits for TorchServe, who has no deadline of its own or a later one. The call itself goes on:
    cancelling one that TorchServe still works on can restart its workers."""
    batch_chunk: Annotated[Integer, Field(ge=1, le=1000)] = 8
    """Most images that are computed together: items of a BatchExplain, and calls that wait for the same at the same
    time. A lone call never waits for others."""
    join_seconds: Annotated[Number, Field(ge=0, le=60)] = 0.05
    """Most time that calls of several callers are expected to take together; what takes longer is asked alone. 0 asks
    every call alone."""
    stream_window: Annotated[Integer, Field(ge=1, le=1000)] = 8
    """Most requests to TorchServe that one StreamExplain or BatchExplain has in flight."""
    max_batch_items: Annotated[Integer, Field(ge=1, le=100_000)] = 256
    """Most items of one BatchExplain."""
    max_class_labels: Annotated[Integer, Field(ge=0, le=10_000)] = 20
    """Most classes of a version that metrics of explanations tell apart by the label `class`: those that are
    predicted first. All others are `other`."""
    max_connection_age_seconds: Annotated[Number, Field(ge=1, le=86_400)] = 600.0
    """After which time a connection takes no more calls, so that clients which balance between gateways find new ones;
    its calls end as they would."""
    drain_seconds: Annotated[Number, Field(ge=0, le=86_400)] = 30.0
    """How long a stopping gateway waits for the requests that it has accepted."""

    @property
    def max_chunk_bytes(self) -> int:
        """Most bytes of items of a batch that are computed together; one that has more is computed alone."""
        return self.max_message_bytes // 2

    @property
    def largest_explanation_bytes(self) -> int:
        """Most bytes of a request to TorchServe that is no prediction."""
        return max(self.max_image_bytes + _BESIDE_IMAGE_BYTES, self.max_chunk_bytes)

    def requests_in_flight(self, workers: int = 1) -> int:
        """Tell how many requests of a model TorchServe may hold.

        Args:
            workers: How many worker processes each model has.

        Returns:
            `max_in_flight`, or what keeps so many workers busy.
        """
        return _REQUESTS_PER_WORKER * workers if self.max_in_flight is None else self.max_in_flight

    def for_workers(self, workers: int) -> Self:
        """Decide what depends on the number of workers.

        Args:
            workers: How many worker processes each model has.

        Returns:
            The same settings, `max_in_flight` among them.
        """
        return replace(self, max_in_flight=self.requests_in_flight(workers))
