import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest

from pathlens.errors import InternalError, InvalidRequestError, NotFoundError, UnavailableError
from pathlens.gateway.models import ModelDirectory
from pathlens.model_version import ModelVersion
from pathlens.wire.v1 import explanation_service_pb2 as messages

from .fault_injector import LABELS, FaultInjector, running_upstream


@asynccontextmanager
async def directory_of(*names: str) -> AsyncIterator[tuple[ModelDirectory, FaultInjector]]:
    async with FaultInjector() as injector, running_upstream(injector) as (upstream, _):
        yield ModelDirectory([ModelVersion(name, "1.0") for name in names], upstream), injector


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


def described(version: ModelVersion) -> messages.Model:
    return messages.Model(model=messages.ServedModel(name=version.name, version=version.version))


@asynccontextmanager
async def directory_with(*versions: str) -> AsyncIterator[ModelDirectory]:
    """A directory with these versions of one model besides 1.0."""
    async with directory_of("digits") as (directory, _):
        await directory.refresh()
        for version in versions:
            directory.add(described(ModelVersion("digits", version)), ModelVersion("digits", version))
        yield directory


def test_an_empty_version_means_the_newest_and_an_older_one_can_be_named() -> None:
    async def scenario() -> None:
        async with directory_with("1.9", "1.10") as directory:
            assert directory.resolve(reference()).model.version == "1.10"
            assert directory.resolve(reference("digits", "1.9")).model.version == "1.9"
            assert [model.model.version for model in directory.models] == ["1.10", "1.9", "1.0"]

    asyncio.run(scenario())


def test_all_versions_are_named_when_none_of_them_is_meant() -> None:
    async def scenario() -> None:
        async with directory_with("1.9", "1.10") as directory:
            with pytest.raises(NotFoundError, match=r"'1.10', '1.9', '1.0', not '3'") as caught:
                directory.resolve(reference("digits", "3"))
            assert caught.value.metadata["served"] == "digits 1.10, digits 1.9, digits 1.0"

    asyncio.run(scenario())


def test_a_removed_version_is_meant_by_no_further_request() -> None:
    async def scenario() -> None:
        async with directory_with("2.0") as directory:
            directory.remove(ModelVersion("digits", "2.0"))
            assert directory.resolve(reference()).model.version == "1.0"
            with pytest.raises(NotFoundError):
                directory.resolve(reference("digits", "2.0"))

    asyncio.run(scenario())


def test_a_version_is_in_use_from_its_request_to_the_answer_although_it_was_removed() -> None:
    async def scenario() -> None:
        version = ModelVersion("digits", "2.0")
        async with directory_with("2.0") as directory:
            with directory.use(reference()), directory.use(reference("digits", "1.0")):
                assert directory.uses(version) == 1
                directory.remove(version)
                assert directory.uses(version) == 1
            assert directory.uses(version) == 0

    asyncio.run(scenario())


def test_the_newest_version_is_not_meant_before_it_has_described_itself() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_upstream(injector) as (upstream, _):
            old, new = ModelVersion("digits", "1.0"), ModelVersion("digits", "2.0")
            directory = ModelDirectory([old, new], upstream)
            directory.add(described(old), old)
            assert directory.resolve(reference()).model.version == "1.0"
            with pytest.raises(UnavailableError):
                directory.resolve(reference("digits", "2.0"))

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


def test_without_models_callers_are_told_to_come_back() -> None:
    async def scenario() -> None:
        async with FaultInjector() as injector, running_upstream(injector) as (upstream, _):
            with pytest.raises(UnavailableError) as caught:
                ModelDirectory([], upstream).resolve(messages.ModelReference())
            assert caught.value.reason == "MODEL_LOADING"
            assert caught.value.retry_after

    asyncio.run(scenario())
