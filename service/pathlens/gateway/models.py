"""Which models are served."""

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from pathlens.errors import InternalError, InvalidRequestError, NotFoundError, UnavailableError
from pathlens.gateway.quoting import shortened
from pathlens.gateway.upstream import Upstream
from pathlens.gateway.upstream_errors import RESTART_SECONDS, error_from_reply
from pathlens.model_version import ModelVersion
from pathlens.wire.internal.v1 import worker_pb2
from pathlens.wire.status import OK
from pathlens.wire.v1 import explanation_service_pb2 as messages

# A description is read from memory; a handler that takes longer is in trouble.
_DESCRIPTION_SECONDS = 30.0


class ModelDirectory:
    """Describes the served versions of models and finds the one that a request means.

    Args:
        served: Names and versions under which TorchServe serves the models.
        upstream: The way to their handlers.
    """

    def __init__(self, served: Iterable[ModelVersion], upstream: Upstream) -> None:
        self._models: dict[ModelVersion, messages.Model | None] = dict.fromkeys(served)
        self._upstream = upstream
        self._uses: Counter[ModelVersion] = Counter()

    @property
    def served(self) -> tuple[ModelVersion, ...]:
        """What is served, by name, and from the newest version of each model to the oldest."""
        newest_first = sorted(self._models, reverse=True)
        return tuple(sorted(newest_first, key=lambda version: version.name))

    @property
    def models(self) -> list[messages.Model]:
        """The versions that have described themselves, in the same order."""
        return [model for version in self.served if (model := self._models[version]) is not None]

    async def refresh(self) -> None:
        """Let everything that is served describe itself anew.

        Raises:
            PathlensError: A model did not answer; what it said before stays valid.
        """
        served = self.served
        descriptions = await asyncio.gather(*(self._describe(version) for version in served))
        # What was added or removed meanwhile stays so.
        self._models.update(
            (version, model) for version, model in zip(served, descriptions, strict=True) if version in self._models
        )

    def add(self, model: messages.Model, version: ModelVersion) -> None:
        """Serve another version, which requests mean from now on if it is the newest.

        Args:
            model: What it says about itself.
            version: Name and version under which TorchServe serves it.

        Raises:
            InternalError: It calls itself something else.
        """
        _check_name(model, version)
        self._models[version] = model

    def remove(self, version: ModelVersion) -> None:
        """Let no further request mean a version; those that do already go on.

        Args:
            version: The version; another one has to be left.
        """
        self._models.pop(version, None)

    def uses(self, version: ModelVersion) -> int:
        """Tell how many calls of applications work with a version.

        Args:
            version: The version, which may have been removed.

        Returns:
            How many.
        """
        return self._uses[version]

    @contextmanager
    def use(self, reference: messages.ModelReference) -> Iterator[messages.Model]:
        """Find the version that a request means, and keep it loaded until the request has its answer.

        Args:
            reference: As for `resolve`.

        Yields:
            The model's description.

        Raises:
            PathlensError: As for `resolve`.
        """
        model = self.resolve(reference)
        version = ModelVersion(model.model.name, model.model.version)
        self._uses[version] += 1
        try:
            yield model
        finally:
            self._uses[version] -= 1
            # Versions come and go for as long as the gateway runs.
            if not self._uses[version]:
                del self._uses[version]

    def resolve(self, reference: messages.ModelReference) -> messages.Model:
        """Find the model that a request means.

        Args:
            reference: Name and version; an empty name means the only model, an empty version the newest one.

        Returns:
            The model's description.

        Raises:
            InvalidRequestError: The name is empty and several models are served.
            NotFoundError: No such name or version is served.
            UnavailableError: The model has not answered yet, or no model has been found so far.
        """
        if not self._models:
            raise no_models()
        names = sorted({version.name for version in self._models})
        served = ", ".join(names)
        name = reference.name
        if not name:
            if len(names) > 1:
                raise InvalidRequestError(
                    f"The request names no model and {len(names)} are served: name one of {served}.",
                    reason="MODEL_AMBIGUOUS",
                    field="model.name",
                    metadata={"served": served},
                )
            name = names[0]
        if name not in names:
            raise NotFoundError(
                f"There is no model {shortened(name)!r}: name one of {served}.",
                reason="MODEL_NOT_FOUND",
                field="model.name",
                metadata={"model": shortened(name), "served": served},
            )
        if reference.version and ModelVersion(name, reference.version) not in self._models:
            raise self._no_version(name, reference.version)
        candidates = [version for version in self.served if version.name == name]
        if reference.version:
            candidates = [ModelVersion(name, reference.version)]
        for version in candidates:
            model = self._models[version]
            if model is not None:
                return model
        raise UnavailableError(
            f"Model {name!r} is still loading: repeat the request in {RESTART_SECONDS} s.",
            reason="MODEL_LOADING",
            metadata={"model": name},
            retry_after=RESTART_SECONDS,
        )

    def _no_version(self, name: str, asked: str) -> NotFoundError:
        versions = [version for version in self.served if version.name == name]
        listed = ", ".join(repr(version.version) for version in versions)
        return NotFoundError(
            f"Model {name!r} is served in version {listed}, not {shortened(asked)!r}: leave the version empty for the"
            " newest.",
            reason="MODEL_NOT_FOUND",
            field="model.version",
            metadata={"model": name, "version": shortened(asked), "served": ", ".join(map(str, versions))},
        )

    async def _describe(self, version: ModelVersion) -> messages.Model:
        reference = messages.ModelReference(name=version.name, version=version.version)
        call = worker_pb2.WorkerCall(get_model=messages.GetModelRequest(model=reference))
        answer = await self._upstream.ask(version.name, version.version, [call], _DESCRIPTION_SECONDS)
        reply = answer.replies[0]
        if reply.status.code != OK.code:
            raise error_from_reply(reply.status, version.name)
        model = reply.get_model.model
        _check_name(model, version)
        return model


def no_models() -> UnavailableError:
    """Say that nothing is served yet.

    Returns:
        The error.
    """
    return UnavailableError(
        f"TorchServe serves no model yet: repeat the request in {RESTART_SECONDS} s.",
        reason="MODEL_LOADING",
        retry_after=RESTART_SECONDS,
    )


def _check_name(model: messages.Model, version: ModelVersion) -> None:
    described = ModelVersion(model.model.name, model.model.version)
    if described != version:
        # Callers address a model by the name they see in ListModels, so the two must be the same.
        raise InternalError(
            f"TorchServe serves as {str(version)!r} a bundle that calls itself {str(described)!r}: pack it again under"
            " the name that it is served by.",
            reason="MODEL_NAME_MISMATCH",
            metadata={"served": version, "described": described},
        )
