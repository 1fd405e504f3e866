"""One line for each call, and nothing in it that is nobody's business."""

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import trustme

from captured_log import CapturedLog, captured_log
from pathlens.gateway import AuthorisationSettings
from pathlens.gateway.metrics import METHODS
from pathlens.wire.request_id import REQUEST_ID_KEY
from pathlens.wire.v1 import explanation_service_pb2 as messages

from .fault_injector import FaultInjector, running_gateway
from .secured import secure_channel, secured_gateway, tls_files
from .test_gateway import batch_of, image, service, stream_item

ACCESS = "pathlens.access"
SEVEN = ((REQUEST_ID_KEY, "seven"),)
PREDICT = messages.PredictRequest(image=image())
TOKEN = "correct-horse-battery-staple"  # noqa: S105 - of the tests alone
WRONG_TOKEN = "incorrect-horse-battery-staple"  # noqa: S105 - of the tests alone
TEXT = "client text " * 20


@pytest.fixture
def log() -> Iterator[CapturedLog]:
    with captured_log() as captured:
        yield captured


def run(scenario: Callable[[FaultInjector, Any], Awaitable[None]], **limits: Any) -> None:
    async def running() -> None:
        async with FaultInjector() as injector, running_gateway(injector, **limits) as (_, channel):
            await scenario(injector, service(channel))

    asyncio.run(running())


def line(log: CapturedLog) -> dict[str, Any]:
    (one,) = log.records(ACCESS)
    return one


def test_a_call_is_one_line_with_all_that_is_known_of_it(log: CapturedLog) -> None:
    async def scenario(_injector: FaultInjector, stub: Any) -> None:
        await stub.Predict(PREDICT, metadata=SEVEN, timeout=10)

    run(scenario)
    access = line(log)
    assert 0 < access.pop("seconds") < 10
    # gRPC rounds what it sends.
    assert access.pop("deadline_left") == pytest.approx(10, abs=1)
    assert access.pop("timestamp").endswith("Z")
    assert access == {
        "level": "info",
        "logger": ACCESS,
        "event": "Predict finished",
        "method": "Predict",
        "code": "OK",
        "model": "digits",
        "version": "1.0",
        "request_id": "seven",
    }


def test_every_method_has_its_line(log: CapturedLog) -> None:
    async def scenario(_injector: FaultInjector, stub: Any) -> None:
        await stub.Predict(PREDICT)
        await stub.Explain(messages.ExplainRequest(image=image()))
        await stub.BatchExplain(batch_of(b"one"))
        assert [one async for one in stub.StreamExplain(iter([stream_item(b"one")]))]
        await stub.GetClassPathway(messages.GetClassPathwayRequest(class_index=1))
        await stub.ListModels(messages.ListModelsRequest())
        await stub.GetModel(messages.GetModelRequest())

    run(scenario)
    lines = log.records(ACCESS)
    assert [one["method"] for one in lines] == list(METHODS)
    assert len({one["request_id"] for one in lines}) == len(METHODS)
    assert [one.get("model") for one in lines] == ["digits"] * 5 + [None, "digits"]
    assert not any("deadline_left" in one for one in lines)


def test_a_refused_call_says_why(log: CapturedLog) -> None:
    async def scenario(_injector: FaultInjector, stub: Any) -> None:
        request = messages.PredictRequest(model=messages.ModelReference(name="nowhere"), image=image())
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.Predict(request)

    run(scenario)
    access = line(log)
    assert (access["level"], access["code"], access["reason"]) == ("info", "NOT_FOUND", "MODEL_NOT_FOUND")
    assert "model" not in access


def test_a_caller_who_leaves_is_cancelled(log: CapturedLog) -> None:
    async def scenario(injector: FaultInjector, stub: Any) -> None:
        injector.open.clear()
        call = stub.Predict(PREDICT)
        await injector.until(1)
        call.cancel()
        with suppress(asyncio.CancelledError):
            await call
        while not log.records(ACCESS):
            await asyncio.sleep(0.01)

    run(scenario)
    assert line(log)["code"] == "CANCELLED"


def test_a_defect_is_an_error_with_its_traceback(log: CapturedLog, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr("pathlens.gateway.validation.check_image", broken)

    async def scenario(_injector: FaultInjector, stub: Any) -> None:
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.Predict(PREDICT, metadata=SEVEN)

    run(scenario)
    access = line(log)
    assert (access["level"], access["event"], access["request_id"]) == ("error", "Predict failed", "seven")
    assert access["exception"].splitlines()[-1] == "RuntimeError: a defect"


def test_an_image_of_a_stream_that_cannot_be_explained_is_logged_with_its_number(
    log: CapturedLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(request: messages.ExplainRequest, *_: object) -> None:
        if request.image.encoded == b"two":
            raise RuntimeError("a defect")

    monkeypatch.setattr("pathlens.gateway.validation.check_explain", broken)

    async def scenario(_injector: FaultInjector, stub: Any) -> None:
        items = [stream_item(one) for one in (b"one", b"two", b"three")]
        assert len([one async for one in stub.StreamExplain(iter(items), metadata=SEVEN)]) == 3

    run(scenario)
    (defect,) = log.records("pathlens.gateway.servicer")
    assert (defect["request_id"], defect["item"]) == ("seven", 2)
    assert "item" not in line(log)


def test_what_torchserve_answered_is_logged_with_the_id(log: CapturedLog) -> None:
    async def scenario(injector: FaultInjector, stub: Any) -> None:
        injector.failure = (grpc.StatusCode.INTERNAL, "something new\nin two lines")
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.Predict(PREDICT, metadata=SEVEN)

    run(scenario)
    (failure,) = log.records("pathlens.gateway.upstream_errors")
    assert failure["request_id"] == "seven"
    assert failure["event"].endswith("something new\nin two lines")


def test_no_line_holds_a_secret_or_the_text_of_a_caller(log: CapturedLog, tmp_path: Path) -> None:
    authority = trustme.CA()
    files = tls_files(tmp_path, authority)
    token_file = tmp_path / "tokens"
    token_file.write_text(f"shop:{TOKEN}\n")
    token_file.chmod(0o600)
    secrets = [TOKEN, WRONG_TOKEN, "cookie-of-the-caller", "image-of-the-caller"]
    secrets += [part for part in files.private_key.read_text().splitlines() if "-----" not in part]

    async def calls(stub: Any) -> None:
        encoded = image(b"image-of-the-caller")
        options = messages.ExplanationOptions(targets=messages.Targets(labels=[TEXT]))
        extra = ("cookie", "cookie-of-the-caller")
        for token in (TOKEN, WRONG_TOKEN):
            metadata = (("authorization", f"Bearer {token}"), extra)
            reference = messages.ModelReference(name=TEXT)
            for call in (
                stub.Predict(messages.PredictRequest(image=encoded), metadata=metadata),
                stub.Predict(messages.PredictRequest(image=encoded, model=reference), metadata=metadata),
                stub.Explain(messages.ExplainRequest(image=encoded, options=options), metadata=metadata),
                stub.Predict(PREDICT, metadata=(*metadata, (REQUEST_ID_KEY, TEXT))),
            ):
                with suppress(grpc.aio.AioRpcError):
                    await call
            items = [messages.StreamExplainRequest(id=TEXT * 50, request=messages.ExplainRequest(image=encoded))]
            with suppress(grpc.aio.AioRpcError):
                assert [one async for one in stub.StreamExplain(iter(items), metadata=metadata)]

    async def plain_text(address: str) -> None:
        host, port = address.split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"GET /{TOKEN} HTTP/1.1\r\n\r\n".encode())
        await writer.drain()
        writer.close()
        with suppress(ssl.SSLError, OSError):
            await asyncio.open_connection(host, int(port), ssl=ssl.create_default_context())

    async def scenario() -> None:
        authorisation = AuthorisationSettings(token_file=token_file)
        async with (
            FaultInjector() as injector,
            secured_gateway(injector, files.settings(), authorisation) as gateway,
            secure_channel(gateway, authority) as channel,
        ):
            await calls(service(channel))
            await plain_text(gateway.address)

    asyncio.run(scenario(), debug=False)
    assert len(log.records(ACCESS)) == 10
    callers = {(one["code"] == "UNAUTHENTICATED", one.get("caller")) for one in log.records(ACCESS)}
    assert callers == {(False, "shop"), (True, None)}
    assert {one["code"] for one in log.records(ACCESS)} == {"OK", "NOT_FOUND", "UNAUTHENTICATED"}
    for written in log.text.splitlines():
        assert not [secret for secret in secrets if secret in written]
        # What a caller has written is in no line at all.
        assert "client text" not in written
        assert isinstance(json.loads(written), dict)
