"""A generation under way, for the HTTP routes and the WebSocket alike. No HTTP here."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from service.api.context import Context
from service.api.schema import GenerateAnswer, GenerateOptions, TokenAnswer
from service.contract import ModelConfig
from service.engine.sampling import Sampling
from service.errors import Invalid, NotStreaming, PayloadMismatch, TooLarge, WrongSeq
from service.repository import Served
from service.sessions.session import Chunk, Session
from service.sessions.slots import run_slot
from service.sessions.table import Wanted
from service.tasks.next_word import Generation, NextWordTask, Token, Written
from service.tasks.protocol import Outputs


@dataclass(frozen=True, slots=True)
class Begun:
    """A generation of a session, kept so that its request can be answered again.

    Attributes:
        first: `seq` of its first input.
        prompt: Digest of the text fed first; empty if there was none.
        wanted: What to generate.
        written: What has been, so far.
    """

    first: int
    prompt: bytes
    wanted: Generation
    written: Written


class Writing:
    """A generation under way.

    Args:
        context: The service.
        served: The model.
        options: What to generate.
    """

    def __init__(self, context: Context, served: Served, options: GenerateOptions) -> None:
        if not isinstance(served.task, NextWordTask):
            raise NotStreaming(f"model {served.config.name} does not generate")
        if options.max_tokens > context.settings.max_tokens:
            raise TooLarge(
                f"max_tokens is at most {context.settings.max_tokens}",
                limit=context.settings.max_tokens,
                path="$.max_tokens",
            )
        self._context = context
        self._served = served
        self._task = served.task
        self._deadline = context.deadline(options.timeout_s)
        self._wanted = _generation(options)
        self.seed = self._wanted.seed
        # Whether the same request again gives the same tokens.
        self.repeatable = options.seed is not None or options.temperature == 0
        self.written = Written()
        self._session: Session | None = None
        self._seq: int | None = None

    def from_text(self, inputs: str | list[Any]) -> AsyncGenerator[Token]:
        """Continue a text, in a session of its own that ends with it."""
        chunk = self._prompt(inputs)
        return self._from_text(chunk)

    def _prompt(self, inputs: str | list[Any]) -> Chunk:
        self._context.check_text(inputs)
        chunk = self._task.whole(inputs, "$.inputs")
        self._context.check_length(chunk.length)
        return chunk

    async def _from_text(self, chunk: Chunk) -> AsyncGenerator[Token]:
        engine, sessions = self._served.engine, self._context.sessions
        slot = await sessions.slots.take(engine)

        async def feed(chunk: Chunk, passing: tuple[str, ...]) -> tuple[Outputs, None]:
            outputs = self._task.outputs + passing
            return await run_slot(engine, slot, chunk, outputs, self._deadline), None

        try:
            async for token in self._task.generate(
                feed, chunk, self._wanted, self.written, feed_last=False
            ):
                self._count()
                yield token
        finally:
            engine.give_back(slot)

    async def from_session(
        self, session: Session, inputs: str | list[Any] | None, seq: int | None, after: int | None
    ) -> AsyncGenerator[Token]:
        """Continue from a session's state.

        Args:
            session: As found by `Sessions.find`.
            inputs: Text to feed first; None goes on from the last input.
            seq: Number of the first input.
            after: Index of the last token the caller has of the same request, to be given the rest of it.
        """
        sessions = self._context.sessions
        self._session = session
        prompt = None if inputs is None else self._prompt(inputs)
        with sessions.hold(session):
            begun = self._find_begun(session, prompt, seq, after)
            first = self._begin(session, prompt) if begun is None else self._go_on(session, begun)

            async def feed(chunk: Chunk, passing: tuple[str, ...]) -> tuple[Outputs, int]:
                nonlocal seq
                number = seq if begun is None else None
                wanted = Wanted(self._task.outputs, self._deadline, passing)
                applied = await sessions.apply(session, chunk, wanted, number, held=True)
                seq = None
                self._seq = applied.seq
                return applied.outputs, applied.seq

            for token in self.written.tokens[0 if after is None else after + 1 :]:
                yield token
            if self.written.tokens and self.written.tokens[-1].finish is not None:
                return
            async for token in self._task.generate(
                feed, first, self._wanted, self.written, feed_last=True
            ):
                self._count()
                yield token

    def _begin(self, session: Session, prompt: Chunk | None) -> Chunk | Outputs:
        if prompt is None and session.reply is None:
            raise Invalid("the session has no inputs yet; send some", path="$.inputs")
        session.generation = Begun(session.seq + 1, _digest(prompt), self._wanted, self.written)
        if prompt is not None:
            return prompt
        assert session.reply is not None
        return session.reply.outputs

    def _find_begun(
        self, session: Session, prompt: Chunk | None, seq: int | None, after: int | None
    ) -> Begun | None:
        """The generation this request asks for again, by `seq` or by the last event; None for a new one."""
        begun: Begun | None = session.generation
        if after is None:
            if seq is None or seq == session.seq + 1 or begun is None or seq != begun.first:
                return None
            if not self.repeatable:
                self._wanted = replace(self._wanted, seed=begun.wanted.seed)
            if begun.wanted != self._wanted or begun.prompt != _digest(prompt):
                raise PayloadMismatch(
                    f"seq {seq} of session {session.identity.id} began another generation",
                    committed=session.seq,
                    expected=session.seq + 1,
                )
        elif begun is None or begun.wanted != self._wanted or after >= len(begun.written.tokens):
            raise Invalid(
                "there is no such generation of this session to resume; resuming takes the same "
                "request, with its seed, and the id of an event it sent",
                path="Last-Event-ID",
            )
        return begun

    def _go_on(self, session: Session, begun: Begun) -> Outputs:
        written = begun.written
        applied = begun.first - 1 + bool(begun.prompt) + len(written.tokens)
        if written.pending is not None and session.seq == applied + 1:
            # The caller was lost after the token was committed and before it was sent.
            written.settle(session.seq)
            applied += 1
        if applied != session.seq or session.reply is None:
            raise WrongSeq(
                f"session {session.identity.id} has moved on since that generation",
                committed=session.seq,
                expected=session.seq + 1,
            )
        self.written, self.seed, self._seq = written, begun.wanted.seed, session.seq
        return session.reply.outputs

    def _count(self) -> None:
        config = self._served.config
        self._context.metrics.generated.labels(config.name, str(config.version)).inc()

    def answer(self, *, with_tokens: bool) -> GenerateAnswer:
        """All that was written, once the last token is."""
        config: ModelConfig = self._served.config
        tokens = self.written.tokens
        return GenerateAnswer(
            model=config.name,
            version=config.version,
            text=self.written.text,
            tokens=[token_answer(each) for each in tokens] if with_tokens else msgspec.UNSET,
            finish_reason=(tokens[-1].finish if tokens else None) or "interrupted",
            seed=self.seed,
            session=msgspec.UNSET if self._session is None else self._session.identity.id,
            seq=msgspec.UNSET if self._seq is None else self._seq,
        )


def _digest(prompt: Chunk | None) -> bytes:
    return b"" if prompt is None else prompt.digest()


def _generation(options: GenerateOptions) -> Generation:
    stop = (options.stop,) if isinstance(options.stop, str) else options.stop
    if "" in stop or len(stop) > 16:
        raise Invalid("stop takes up to 16 strings, none of them empty", path="$.stop")
    return Generation(
        Sampling(options.temperature, options.top_k, options.top_p),
        options.max_tokens,
        secrets.randbits(53) if options.seed is None else options.seed,
        stop,
        options.ignore_eos,
    )


def token_answer(token: Token) -> TokenAnswer:
    """A token as the API shows it."""
    return TokenAnswer(
        index=token.index,
        id=token.id,
        token=token.token,
        text=token.text,
        logprob=round(token.logprob, 6),
        seq=msgspec.UNSET if token.seq is None else token.seq,
    )
