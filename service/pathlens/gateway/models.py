"""Which models are served."""

import asyncio
from collections.abc import Sequence

from pathlens.errors import InternalError, InvalidRequestError, NotFoundError, UnavailableError
from pathlens.gateway.quoting import shortened
from pathlens.gateway.upstream import Upstream
from pathlens.gateway.upstream_errors import RESTART_SECONDS
from pathlens.wire.internal.v1 import worker_pb2
from pathlens.wire.status import OK, error_from_status
from pathlens.wire.v1 import explanation_service_pb2 as messages

# A description is read from memory; a handler that takes longer is in trouble.
_DESCRIPTION_SECONDS = 30.0


class ModelDirectory:
    """Describes the served models and finds the one that a request means.

    Args:
        names: Names under which TorchServe serves the models.
        upstream: The way to their handlers.

    Raises:
        ValueError: No name is given.
    """

    def __init__(self, names: Sequence[str], upstream: Upstream) -> None:
        if not names:
            raise ValueError("A gateway without models has nothing to serve: name at least one.")
        self._names = tuple(sorted(set(names)))
        self._upstream = upstream
        self._models: dict[str, messages.Model] = {}

    @property
    def models(self) -> list[messages.Model]:
        """The models that have described themselves, by name."""
        return [self._models[name] for name in self._names if name in self._models]

    async def refresh(self) -> None:
        """Let every model describe itself anew.

        Raises:
            PathlensError: A model did not answer; what it said before stays valid.
        """
        descriptions = await asyncio.gather(*(self._describe(name) for name in self._names))
        self._models = dict(zip(self._names, descriptions, strict=True))

    def resolve(self, reference: messages.ModelReference) -> messages.Model:
        """Find the model that a request means.

        Args:
            reference: Name and version; an empty name means the only model, an empty version the served one.

        Returns:
            The model's description.

        Raises:
            InvalidRequestError: The name is empty and several models are served.
            NotFoundError: No such name or version is served.
            UnavailableError: The model has not answered yet.
        """
        served = ", ".join(self._names)
        name = reference.name
        if not name:
            if len(self._names) > 1:
                raise InvalidRequestError(
                    f"The request names no model and {len(self._names)} are served: name one of {served}.",
                    reason="MODEL_AMBIGUOUS",
                    field="model.name",
                    metadata={"served": served},
                )
            name = self._names[0]
        if name not in self._names:
            raise NotFoundError(
                f"There is no model {shortened(name)!r}: name one of {served}.",
                reason="MODEL_NOT_FOUND",
                field="model.name",
                metadata={"model": shortened(name), "served": served},
            )
        model = self._models.get(name)
        if model is None:
            raise UnavailableError(
                f"Model {name!r} is still loading: repeat the request in {RESTART_SECONDS} s.",
                reason="MODEL_LOADING",
                metadata={"model": name},
                retry_after=RESTART_SECONDS,
            )
        if reference.version and reference.version != model.model.version:
            raise NotFoundError(
                f"Model {name!r} is served in version {model.model.version!r}, not {shortened(reference.version)!r}:"
                " leave the version empty for the newest.",
                reason="MODEL_NOT_FOUND",
                field="model.version",
                metadata={
                    "model": name,
                    "version": shortened(reference.version),
                    "served": f"{name} {model.model.version}",
                },
            )
        return model

    async def _describe(self, name: str) -> messages.Model:
        call = worker_pb2.WorkerCall(
            get_model=messages.GetModelRequest(model=messages.ModelReference(name=name)),
        )
        answer = await self._upstream.ask(name, "", [call], _DESCRIPTION_SECONDS)
        reply = answer.replies[0]
        if reply.status.code != OK.code:
            raise error_from_status(reply.status)
        model = reply.get_model.model
        if model.model.name != name:
            # Callers address a model by the name they see in ListModels, so the two must be the same.
            raise InternalError(
                f"TorchServe serves as {name!r} a bundle that calls itself {model.model.name!r}: pack it again under"
                " the name that it is served by.",
                reason="MODEL_NAME_MISMATCH",
                metadata={"served": name, "described": model.model.name},
            )
        return model
