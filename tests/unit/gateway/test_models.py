import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest

from pathlens.errors import InternalError, InvalidRequestError, NotFoundError, UnavailableError
from pathlens.gateway.models import ModelDirectory
from pathlens.wire.v1 import explanation_service_pb2 as messages

from .fault_injector import LABELS, FaultInjector, running_upstream


@asynccontextmanager
async def directory_of(*names: str) -> AsyncIterator[tuple[ModelDirectory, FaultInjector]]:
    async with FaultInjector() as injector, running_upstream(injector) as (upstream, _):
        yield ModelDirectory(names, upstream), injector


def reference(name: str = "", version: str = "") -> messages.ModelReference:
    return messages.ModelReference(name=name, version=version)


def test_a_refreshed_directory_holds_what_the_handlers_say() -> None:
    async def scenario() -> None:
        async with directory_of("squares", "digits") as (directory, _):
            await directory.refresh()
            assert [model.model.name for model in directory.models] == ["digits", "squares"]
            assert tuple(directory.models[0].labels) == LABELS

    asyncio.run(scenario())


@pytest.mark.parametrize("asked", [reference(), reference("digits"), reference("digits", "1.0"), reference("", "1.0")])
def test_the_only_model_is_found(asked: messages.ModelReference) -> None:
    async def scenario() -> None:
        async with directory_of("digits") as (directory, _):
            await directory.refresh()
            assert directory.resolve(asked).model.name == "digits"

    asyncio.run(scenario())


def test_an_empty_name_is_ambiguous_among_several_models() -> None:
    async def scenario() -> None:
        async with directory_of("digits", "squares") as (directory, _):
            await directory.refresh()
            with pytest.raises(InvalidRequestError, match="digits, squares") as caught:
                directory.resolve(reference())
            assert (caught.value.reason, caught.value.field) == ("MODEL_AMBIGUOUS", "model.name")

    asyncio.run(scenario())


def test_an_unknown_name_is_not_found_and_the_served_ones_are_named() -> None:
    async def scenario() -> None:
        async with directory_of("digits", "squares") as (directory, _):
            await directory.refresh()
            with pytest.raises(NotFoundError) as caught:
                directory.resolve(reference("letters"))
            assert caught.value.reason == "MODEL_NOT_FOUND"
            assert caught.value.metadata == {"model": "letters", "served": "digits, squares"}

    asyncio.run(scenario())


def test_an_unknown_version_is_not_found_and_the_served_one_is_named() -> None:
    async def scenario() -> None:
        async with directory_of("digits") as (directory, _):
            await directory.refresh()
            with pytest.raises(NotFoundError) as caught:
                directory.resolve(reference("digits", "7"))
            assert caught.value.reason == "MODEL_NOT_FOUND"
            assert caught.value.metadata["served"] == "digits 1.0"

    asyncio.run(scenario())


def test_a_model_that_has_not_answered_yet_is_unavailable() -> None:
    async def scenario() -> None:
        async with directory_of("digits") as (directory, _):
            with pytest.raises(UnavailableError) as caught:
                directory.resolve(reference())
            assert (caught.value.reason, caught.value.retry_after) == ("MODEL_LOADING", 2.5)

    asyncio.run(scenario())


def test_a_failed_refresh_keeps_what_is_known() -> None:
    async def scenario() -> None:
        async with directory_of("digits") as (directory, injector):
            await directory.refresh()
            injector.failure = (grpc.StatusCode.INTERNAL, "Worker died.")
            with pytest.raises(UnavailableError):
                await directory.refresh()
            assert directory.resolve(reference()).model.name == "digits"

    asyncio.run(scenario())


def test_a_bundle_under_a_foreign_name_is_a_defect() -> None:
    async def scenario() -> None:
        async with directory_of("digits") as (directory, injector):
            injector.model_name_prefix = "other_"
            with pytest.raises(InternalError) as caught:
                await directory.refresh()
            assert caught.value.reason == "MODEL_NAME_MISMATCH"

    asyncio.run(scenario())


def test_a_directory_needs_a_model() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_upstream(injector) as (upstream, _):
            with pytest.raises(ValueError, match="at least one"):
                ModelDirectory([], upstream)

    asyncio.run(scenario())
