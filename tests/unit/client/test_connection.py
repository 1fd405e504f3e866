import asyncio
import time
from pathlib import Path
from typing import Any, get_args

import pytest

from pathlens.client import AsyncClient, Client, Connection, TransportSecurity
from pathlens.client.connection import LoadBalancing
from pathlens.errors import InvalidRequestError, ResourceExhaustedError

from .both_clients import Kind, both_clients, call
from .scripted_service import ScriptedService, serving

TOKEN = "correct-horse-battery"  # noqa: S105


def ask_often(kind: Kind, connection: Connection) -> None:
    # With a pause, in which connections can come up.
    async def ask() -> None:
        async with AsyncClient(connection) as client:
            for _ in range(20):
                await client.list_models()
                await asyncio.sleep(0.02)

    if issubclass(kind, Client):
        with kind(connection) as client:
            for _ in range(20):
                client.list_models()
                time.sleep(0.02)
    else:
        asyncio.run(ask())


@both_clients
@pytest.mark.parametrize("load_balancing", get_args(LoadBalancing))
def test_only_round_robin_spreads_calls_over_the_addresses(kind: Kind, load_balancing: LoadBalancing) -> None:
    with serving(ScriptedService()) as first, serving(ScriptedService()) as second:
        ask_often(kind, Connection(f"ipv4:{first.address},{second.address}", load_balancing=load_balancing))
        used = sum(bool(service.seen) for service in (first, second))
    assert used == (2 if load_balancing == "round_robin" else 1)


@both_clients
def test_a_message_over_the_limit_is_refused_with_the_remedy_and_not_repeated(kind: Kind) -> None:
    with serving(ScriptedService()) as service:
        small = Connection(service.address, max_message_bytes=1000)
        with pytest.raises(ResourceExhaustedError) as failure:
            call(kind, small, "predict", b"x" * 10_000)
        assert failure.value.reason == "MESSAGE_TOO_LARGE"
        assert "max_message_bytes" in failure.value.message
        assert service.seen == []


def test_a_larger_limit_lets_larger_messages_through() -> None:
    with serving(ScriptedService(), options=[("grpc.max_receive_message_length", 2**24)]) as service:
        large = Connection(service.address, max_message_bytes=2**24)
        assert call(Client, large, "predict", b"x" * 10_000_000)


@pytest.mark.parametrize("token", [TOKEN, Path("no-such-file")])
def test_a_token_is_not_sent_to_another_machine_in_plain_text(token: str | Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"security=TransportSecurity\(\)") as failure:
        Connection("pathlens.example.com:443", token=token)
    assert TOKEN not in repr(failure.value)


def test_a_token_may_travel_over_tls_or_stay_on_this_machine() -> None:
    assert Connection("pathlens.example.com:443", TransportSecurity(), token=TOKEN).token == TOKEN
    assert Connection("localhost:8080", token=TOKEN).token == TOKEN


def test_the_token_is_not_shown() -> None:
    assert TOKEN not in repr(Connection("localhost:8080", token=TOKEN))


@pytest.mark.parametrize("token", ["", f"{TOKEN} {TOKEN}", f"{TOKEN}\n", f"{TOKEN}é", TOKEN * 1000])
def test_what_is_no_token_is_refused_without_being_quoted(token: str) -> None:
    with pytest.raises(InvalidRequestError) as failure:
        Connection("localhost:8080", token=token)
    assert failure.value.reason == "TOKEN_INVALID"
    assert "correct" not in f"{failure.value!r} {failure.value.metadata}"


@pytest.mark.parametrize(
    "settings", [{"load_balancing": "random"}, {"max_message_bytes": 0}, {"max_message_bytes": 2**31}]
)
def test_a_setting_out_of_range_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match=str(next(iter(settings.values())))):
        Connection("localhost:8080", **settings)
