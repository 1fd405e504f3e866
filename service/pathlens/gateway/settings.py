"""What an operator may choose about the gateway."""

from dataclasses import dataclass

_MEBIBYTE = 1024 * 1024


@dataclass(frozen=True)
class GatewaySettings:
    """Addresses and limits of the gateway.

    Attributes:
        host: Address that the gRPC server listens on.
        port: Its port; 0 lets the system choose one.
        metrics_host: Address that the Prometheus endpoint listens on.
        metrics_port: Its port; 0 lets the system choose one.
        max_message_bytes: Largest message in either direction, from and to applications as well as TorchServe.
        max_image_bytes: Largest image, as an encoded file or as the data of a tensor.
        max_in_flight: Requests that TorchServe may hold at one time, abandoned ones counted. Keep it below TorchServe's
            `job_queue_size`, whose overflow cannot be told from a dead worker.
        max_in_flight_bytes: Bytes of these requests together; a request is always accepted when it is the only one.
            TorchServe's `heap_megabytes` has to have room for them.
        upstream_timeout_seconds: How long a caller waits for TorchServe, who has no deadline of its own or a later one.
            The call itself goes on: cancelling one that TorchServe still works on can restart its workers.
        batch_chunk: Most items of a BatchExplain that are computed together.
        stream_window: Most requests to TorchServe that one StreamExplain or BatchExplain has in flight.
        max_batch_items: Most items of one BatchExplain.
        drain_seconds: How long a stopping gateway waits for the requests that it has accepted.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    metrics_host: str = "127.0.0.1"
    metrics_port: int = 9090
    max_message_bytes: int = 64 * _MEBIBYTE
    max_image_bytes: int = 16 * _MEBIBYTE
    max_in_flight: int = 64
    max_in_flight_bytes: int = 128 * _MEBIBYTE
    upstream_timeout_seconds: float = 150.0
    batch_chunk: int = 8
    stream_window: int = 8
    max_batch_items: int = 256
    drain_seconds: float = 30.0
