"""What the routes share: the parts of the service, and whether it is shutting down."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import HTTPConnection

from service.api.rounds import Rounds
from service.errors import Draining, Invalid, NotStreaming, TooLarge
from service.metrics import Metrics
from service.repository import Repository, Served
from service.sessions.table import Sessions
from service.settings import Settings

TENANT = "default"
# English text has six with the blank; taking a text apart costs up to a microsecond for each.
_CHARACTERS_PER_STEP = 8


@dataclass(slots=True)
class Shutdown:
    """How far shutting down has come.

    Attributes:
        announced: Readiness fails, so that load balancers look elsewhere; requests are still served.
        began: New work is refused and streams end with a hint where to resume.
        sockets: Tasks that serve a WebSocket; each ends after its farewell.
    """

    announced: bool = False
    began: asyncio.Event = field(default_factory=asyncio.Event)
    sockets: set[asyncio.Task[Any]] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Context:
    """The parts of one running service.

    Attributes:
        rounds: Chooses the next tokens of all texts that are being written.
    """

    settings: Settings
    metrics: Metrics
    repository: Repository
    sessions: Sessions
    shutdown: Shutdown
    rounds: Rounds = field(default_factory=Rounds)

    def admit(self) -> None:
        """Let new work in.

        Raises:
            Draining: The process is shutting down.
        """
        if self.shutdown.began.is_set():
            raise Draining("this process is shutting down; send the request again", retry_after_s=1)

    def deadline(self, timeout_s: float | None) -> float:
        """Monotonic time at which a request is given up."""
        return self.sessions.clock() + (timeout_s or self.settings.timeout_s)

    def check_count(self, count: int) -> None:
        """Check the number of inputs of one request.

        Raises:
            Invalid: There are none.
            TooLarge: There are more than `max_inputs`.
        """
        if not count:
            raise Invalid("there are no inputs", path="$.inputs")
        if count > self.settings.max_inputs:
            raise TooLarge(
                f"{count} inputs, at most {self.settings.max_inputs} in one request",
                limit=self.settings.max_inputs,
                path="$.inputs",
            )

    @property
    def max_characters(self) -> int:
        """Characters that one request may have."""
        return _CHARACTERS_PER_STEP * self.settings.max_input_steps

    def check_text(self, inputs: object) -> None:
        """Check the characters of one request, before time is spent on taking them apart.

        Raises:
            TooLarge: There are more than the longest input of words of usual length has.
        """
        limit = self.max_characters
        if _characters(inputs) > limit:
            raise TooLarge(
                f"more than {limit} characters in one request", limit=limit, path="$.inputs"
            )

    def check_length(self, length: int) -> None:
        """Check the time steps of one request.

        Raises:
            TooLarge: There are more than `max_input_steps`.
        """
        if length > self.settings.max_input_steps:
            raise TooLarge(
                f"{length} time steps, at most {self.settings.max_input_steps} in one request",
                limit=self.settings.max_input_steps,
                path="$.inputs",
            )

    def streaming(self, model: str, version: int | None) -> Served:
        """A model that can be stepped.

        Raises:
            NotStreaming: It answers whole inputs only.
            UnknownModel, ModelNotReady: See `Repository.get`.
        """
        served = self.repository.get(model, version)
        if not served.config.streaming:
            sibling = served.config.streaming_sibling
            hint = f"; {sibling} of the same task can be stepped" if sibling else ""
            raise NotStreaming(
                f"model {model} answers whole inputs only; it keeps no session{hint}",
                **({"streaming_sibling": sibling} if sibling else {}),
            )
        return served

    def check_whole(self, served: Served, length: int) -> None:
        """Check that a model can take a whole input.

        Raises:
            TooLarge: It cannot be stepped, and the input is longer than one run of it.
        """
        limit = served.config.batching.max_chunk_length
        if not served.config.streaming and length > limit:
            raise TooLarge(
                f"{length} time steps; model {served.config.name} takes at most {limit} at once",
                limit=limit,
                path="$.inputs",
            )


def _characters(inputs: object) -> int:
    """Characters of all texts in a list of texts, or of lists of them."""
    if isinstance(inputs, str):
        return len(inputs)
    total = 0
    for each in inputs if isinstance(inputs, list) else ():
        if isinstance(each, str):
            total += len(each)
        elif isinstance(each, list):
            total += sum(len(piece) for piece in each if isinstance(piece, str))
    return total


def context_of(connection: HTTPConnection) -> Context:
    """The context of the application a request came to."""
    context: Context = connection.app.state.context
    return context
