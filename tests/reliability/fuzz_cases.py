"""What the fuzzer sends: call number n of a seed, always the same."""

from random import Random

from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from pathlens.wire.v1 import explanation_service_pb2 as pb
from reliability.fuzz_bytes import damaged_message
from reliability.fuzz_call import BATCH, CONNECTION, HEALTH, REFLECTION, SERVICE, STREAM, UNARY, FuzzCall
from reliability.fuzz_frames import connection
from reliability.fuzz_images import damaged_picture, pictures
from reliability.fuzz_messages import MessageMaker

_SHARES = {"values": 20, "values in batches": 14, "values in streams": 10, "bytes": 24, "bytes in streams": 6}
_SHARES |= {"images": 14, "images in batches": 14, "images in streams": 8, "metadata": 6, "connections": 4}
KINDS = tuple(_SHARES)
"""Kinds of calls, as the table names them."""

_WEIGHTS = tuple(_SHARES.values())
_MOST_ITEMS = 32
_REQUEST_ID = "x-request-id"
_METADATA: tuple[tuple[str, str | bytes], ...] = (
    *(
        (_REQUEST_ID, ""),
        (_REQUEST_ID, "a"),
        (_REQUEST_ID, " ~!@#$%^&*(){}[]|\\:;\"'<>,.?/"),
        (_REQUEST_ID, "%0a{0}%s" * 9),
    ),
    *(
        (_REQUEST_ID, "a" * 129),
        (_REQUEST_ID, "a" * 4096),
        (_REQUEST_ID, "%0a{0}%s" * 900),
        (_REQUEST_ID, "a" * 100_000),
    ),
    *(
        ("authorization", "Bearer"),
        ("authorization", "Bearer "),
        ("authorization", "Basic dXNlcjp1c2Vy"),
        ("authorization", ""),
    ),
    *(("authorization", "bearer " + "x" * 5000), ("authorization", "Bearer a b c"), ("authorization-bin", b"\x00\xff")),
    *(("x-bin", b""), ("x-bin", bytes(range(256))), ("x-bin", b"\xff" * 3000), ("x-request-id-bin", b"\x00\xff\xfe")),
    *(("traceparent", ""), ("traceparent", "00-" + "f" * 32 + "-" + "f" * 16 + "-ff"), ("traceparent", "x" * 3000)),
    *(
        ("tracestate", "a=1," * 200),
        ("baggage", "key=value;" * 300),
        ("grpc-trace-bin", b"\x00" * 29),
        ("grpc-tags-bin", b"\xff"),
    ),
    *(("a", "b"), ("_", "-"), ("0.1", "x"), ("x" * 500, "y"), ("content-language", "tlh"), ("accept-encoding", "br")),
)
_TIMEOUTS = (1e-9, 1e-4, 0.001, 0.003, 0.01, 0.03, 1e4, 1e8)


def fuzz_call(seed: int, number: int) -> FuzzCall:
    """Make one call.

    Args:
        seed: Seed of the run.
        number: Which one; each is drawn on its own, so that any can be made again alone.

    Returns:
        The call.
    """
    draw = Random(f"{seed}:{number}")
    return fuzz_call_of(draw, draw.choices(KINDS, _WEIGHTS)[0])


def fuzz_call_of(draw: Random, kind: str) -> FuzzCall:
    """Make one call of a kind.

    Args:
        draw: Where decisions come from.
        kind: One of `KINDS`.

    Returns:
        The call.
    """
    maker = MessageMaker(draw, pictures())
    match kind:
        case "values":
            method = draw.choice((*UNARY, SERVICE + "Predict", SERVICE + "Explain", STREAM))
            return FuzzCall(kind, method, (_request(maker, method),))
        case "values in batches":
            size = draw.randint(2, _MOST_ITEMS)
            return FuzzCall(kind, BATCH, (maker.batch(size).SerializeToString(),), cases=size)
        case "values in streams":
            items = tuple(maker.stream_item(str(number)) for number in range(draw.randint(2, _MOST_ITEMS)))
            return FuzzCall(kind, STREAM, tuple(item.SerializeToString() for item in items), cases=len(items))
        case "bytes":
            method = draw.choice((*UNARY, SERVICE + "Predict", SERVICE + "Explain", HEALTH))
            return FuzzCall(kind, method, (_damaged_request(draw, maker, method),))
        case "bytes in streams":
            method = draw.choice((STREAM, STREAM, REFLECTION))
            requests = [_request(maker, method) for _ in range(draw.randrange(3))]
            # A stream ends with the first message that is none: what comes before it has to be answered.
            messages = (*requests, _damaged_request(draw, maker, method), *requests)
            return FuzzCall(kind, method, messages)
        case "images":
            return _images(draw, kind, draw.choice((SERVICE + "Predict", SERVICE + "Explain")), 1)
        case "images in batches":
            return _images(draw, kind, BATCH, draw.randint(2, _MOST_ITEMS))
        case "images in streams":
            return _images(draw, kind, STREAM, draw.randint(2, _MOST_ITEMS))
        case "metadata":
            method = draw.choice((SERVICE + "Predict", SERVICE + "Explain", SERVICE + "ListModels", STREAM, BATCH))
            timeout = draw.choice(_TIMEOUTS) if draw.random() < 0.3 else None
            metadata = tuple(draw.choice(_METADATA) for _ in range(draw.randint(0 if timeout else 1, 4)))
            return FuzzCall(kind, method, (_honest(method),), metadata, timeout)
        case _:
            path = draw.choice((SERVICE + "Predict", SERVICE + "ListModels", STREAM, HEALTH))
            return FuzzCall(kind, CONNECTION, (connection(draw, path, _honest(path)),))


def _request(maker: MessageMaker, method: str) -> bytes:
    if method == HEALTH:
        return health_pb2.HealthCheckRequest(service="readiness").SerializeToString()
    if method == REFLECTION:
        return reflection_pb2.ServerReflectionRequest(
            host="h", file_containing_symbol="pathlens.v1.Image"
        ).SerializeToString()
    return maker.request(method.removeprefix(SERVICE))


def _damaged_request(draw: Random, maker: MessageMaker, method: str) -> bytes:
    return damaged_message(draw, _request(maker, method), _request(maker, draw.choice(UNARY)))


def _images(draw: Random, kind: str, method: str, count: int) -> FuzzCall:
    requests = [pb.ExplainRequest(image=pb.Image(encoded=damaged_picture(draw))) for _ in range(count)]
    outputs = draw.choice(([pb.OUTPUT_FAITHFULNESS], [pb.OUTPUT_HEATMAP], [pb.OUTPUT_OVERLAY, pb.OUTPUT_PATHWAY]))
    # A picture of thousands of pixels is decoded soon, but its overlay is not drawn soon.
    options = pb.ExplanationOptions(outputs=outputs if draw.random() < 0.2 else outputs[:0])
    if method == BATCH:
        batch = pb.BatchExplainRequest(options=options)
        batch.items.extend(pb.BatchExplainItem(image=request.image) for request in requests)
        return FuzzCall(kind, method, (batch.SerializeToString(),), cases=count)
    if method == STREAM:
        items = [pb.StreamExplainRequest(id=str(number), request=request) for number, request in enumerate(requests)]
        return FuzzCall(kind, method, tuple(item.SerializeToString() for item in items), cases=count)
    (request,) = requests
    if method.endswith("Predict"):
        return FuzzCall(kind, method, (pb.PredictRequest(image=request.image).SerializeToString(),))
    request.options.CopyFrom(options)
    return FuzzCall(kind, method, (request.SerializeToString(),))


def _honest(method: str) -> bytes:
    image = pb.Image(tensor=pb.Tensor(data_type=pb.DATA_TYPE_UINT8, shape=[8, 8], data=bytes(range(64))))
    match method.removeprefix(SERVICE):
        case "Predict":
            return pb.PredictRequest(image=image).SerializeToString()
        case "Explain":
            return pb.ExplainRequest(image=image).SerializeToString()
        case "StreamExplain":
            return pb.StreamExplainRequest(id="0", request=pb.ExplainRequest(image=image)).SerializeToString()
        case "BatchExplain":
            return pb.BatchExplainRequest(items=[pb.BatchExplainItem(image=image)]).SerializeToString()
        case _:
            return b""
