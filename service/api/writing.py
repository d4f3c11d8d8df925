"""A generation under way, for the HTTP routes and the WebSocket alike. No HTTP here.

It goes on by callbacks: outputs come, a token is chosen with those of all texts of the turn (`rounds`), and is fed to
the model, without a task for it. Whoever reads is woken with all tokens that are there. One that reads slowly makes the
text wait, never more than a few tokens ahead.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import msgspec

from service.api.context import TENANT, Context
from service.api.feeding import Fed, OfSession, OfSlot
from service.api.schema import GenerateAnswer, GenerateOptions, TokenAnswer
from service.contract import ModelConfig
from service.engine.sampling import Sampling, uniforms
from service.engine.work import Flow, Priority, flow_of
from service.errors import Invalid, NotStreaming, PayloadMismatch, ServiceError, TooLarge, WrongSeq
from service.repository import Served
from service.sessions.session import Chunk, Session
from service.sessions.step import Applied, Wanted
from service.tasks.generation import Generation, Token, Written
from service.tasks.next_word import NextWordTask
from service.tasks.protocol import Outputs

# Tokens that a text may be ahead of its reader.
AHEAD = 16


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
    """A generation under way: first `from_text` or `from_session`, then `some` or `all`, and `close` whatever happens.

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
        self.writer = served.task.writer
        self._wanted = _generation(options, self.writer.vocab_size)
        self.sampling = self._wanted.sampling
        self.passing = self.writer.passing(self.sampling)
        self._steps = Wanted(
            self._task.outputs,
            context.deadline(options.timeout_s),
            self.passing,
        )
        self.generated = context.metrics.generated.labels(
            served.config.name, str(served.config.version)
        )
        self.seed = self._wanted.seed
        # Whether the same request again gives the same tokens.
        self.repeatable = options.seed is not None or options.temperature == 0
        self.written = Written()
        self.outputs: Outputs = {}
        self._session: Session | None = None
        self._seq: int | None = None

        self.numbers: Iterator[float] = iter(())
        self._begin: Callable[[], Awaitable[None]] | None = None
        self._fed: Fed | None = None
        self.open = True
        self._error: Exception | None = None
        # Tokens that the reader has not taken yet; None where it waits for the end.
        self._unread: list[Token] | None = []
        self._waits = False
        self._reader: asyncio.Future[None] | None = None

    # What to go on from.

    def from_text(self, inputs: str | list[Any], priority: Priority) -> None:
        """Continue a text, in a session of its own that ends with it."""
        flow = flow_of(TENANT, "once", priority)
        self._begin = partial(self._begin_text, self._prompt(inputs), flow)

    def from_session(
        self, session: Session, inputs: str | list[Any] | None, seq: int | None, after: int | None
    ) -> None:
        """Continue from a session's state.

        Args:
            session: As found by `Sessions.find`.
            inputs: Text to feed first; None goes on from the last input.
            seq: Number of the first input.
            after: Index of the last token the caller has of the same request, to be given the rest of it.
        """
        self._session = session
        prompt = None if inputs is None else self._prompt(inputs)
        self._begin = partial(self._begin_session, session, prompt, seq, after)

    def _prompt(self, inputs: str | list[Any]) -> Chunk:
        self._context.check_text(inputs)
        chunk = self._task.whole(inputs, "$.inputs")
        self._context.check_length(chunk.length)
        return chunk

    async def _begin_text(self, prompt: Chunk, flow: Flow) -> None:
        engine = self._served.engine
        slot = await self._context.sessions.slots.take(engine)
        fed = OfSlot(engine, slot, self._steps, flow, self._computed)
        if not self.open:
            # The reader left meanwhile.
            fed.leave()
            return
        self._start(fed, prompt)

    async def _begin_session(
        self, session: Session, prompt: Chunk | None, seq: int | None, after: int | None
    ) -> None:
        fed = OfSession(self._context.sessions, session, self._steps, self._applied)
        self._fed = fed
        begun = self._find_begun(session, prompt, seq, after)
        if begun is not None:
            self._go_on(session, begun, after)
            return
        if prompt is None and session.reply is None:
            raise Invalid("the session has no inputs yet; send some", path="$.inputs")
        session.generation = Begun(session.seq + 1, _digest(prompt), self._wanted, self.written)
        fed.seq = seq
        self._start(fed, prompt)

    def _start(self, fed: Fed, prompt: Chunk | None) -> None:
        self._fed = fed
        self.written.running = self.writer.end_of(prompt)
        self.numbers = uniforms(self.seed)
        if prompt is not None:
            self._feed(prompt)
            return
        assert self._session is not None
        assert self._session.reply is not None
        self._ready_again(self._session.reply.outputs)

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

    def _go_on(self, session: Session, begun: Begun, after: int | None) -> None:
        """Give the tokens that are there, then go on after them."""
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
        if self._unread is not None:
            self._unread += written.tokens[0 if after is None else after + 1 :]
        if written.finished:
            self.close()
            return
        self.numbers = uniforms(self.seed, len(written.tokens))
        self._ready_again(session.reply.outputs)

    # From token to token.

    def _computed(self, outcome: Outputs | Exception) -> None:
        if isinstance(outcome, Exception):
            self.fail(outcome)
        else:
            self._arrived(outcome, None)

    def _applied(self, outcome: Applied | Exception) -> None:
        if isinstance(outcome, Exception):
            self.fail(outcome)
        elif outcome.duplicate:
            self._seq = outcome.seq
            self._ready_again(outcome.outputs)
        else:
            self._seq = outcome.seq
            self._arrived(outcome.outputs, outcome.seq)

    def _arrived(self, outputs: Outputs, seq: int | None) -> None:
        """A step ended."""
        if not self.open:
            return
        if self.written.pending is None:
            # That was the prompt.
            self._ready(outputs)
            return
        token = self.written.settle(seq)
        if token.finish is not None:
            self._end()
        elif self._unread is not None and self._context.shutdown.began.is_set():
            # Nothing is fed beyond what the reader is told of.
            self._end()
        else:
            self._ready(outputs)
        self._give(token)

    def _ready(self, outputs: Outputs) -> None:
        """The next token is due."""
        self.outputs = outputs
        if self._unread is not None and len(self._unread) >= AHEAD:
            self._waits = True
        else:
            self._context.rounds.add(self)

    def _ready_again(self, outputs: Outputs) -> None:
        """The next token is due, after outputs that were kept for a reply."""
        try:
            self.writer.check(outputs, self.sampling)
        except Invalid as error:
            self.fail(error)
        else:
            self._ready(outputs)

    def chosen(self, token: int, logprob: float) -> None:
        """See `Row.chosen`."""
        assert self._fed is not None
        added = self.writer.add(self.written, self._wanted, token, logprob)
        if added.finish is None or self._fed.takes_last:
            self._feed(self.writer.chunk(added))
        else:
            self._end()
            self._give(self.written.settle(None))

    def _feed(self, chunk: Chunk) -> None:
        assert self._fed is not None
        try:
            self._fed.feed(chunk)
        except ServiceError as error:
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """See `Row.fail`."""
        if self.open:
            self._error = error
            self.close()

    def close(self) -> None:
        """End it, whether or not there is more to come."""
        self._end()
        self._wake()

    def _end(self) -> None:
        if self.open:
            self.open = False
            # They know each other, and the collector is not to be waited for.
            fed, self._fed = self._fed, None
            if fed is not None:
                fed.leave()

    # The reader.

    def _give(self, token: Token) -> None:
        if self._unread is not None:
            self._unread.append(token)
            self._wake()
        elif not self.open:
            self._wake()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def some(self) -> list[Token]:
        """The tokens since the last call; begins the generation at the first.

        Returns:
            At least one, or none when no more will come.

        Raises:
            ServiceError: The generation ended with it.
        """
        await self._begin_once()
        assert self._unread is not None
        while not self._unread and self.open:
            await self._news()
        tokens, self._unread = self._unread, []
        if self._waits and self.open:
            self._waits = False
            self._context.rounds.add(self)
        if not tokens and self._error is not None:
            raise self._error
        return tokens

    async def all(self) -> None:
        """Begin the generation and wait for its end; see `some` for what it raises. Tokens are in `written`."""
        self._unread = None
        await self._begin_once()
        while self.open:
            await self._news()
        if self._error is not None:
            raise self._error

    async def _begin_once(self) -> None:
        begin, self._begin = self._begin, None
        if begin is not None and self.open:
            await begin()

    async def _news(self) -> None:
        self._reader = asyncio.get_running_loop().create_future()
        try:
            await self._reader
        finally:
            self._reader = None

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


def _generation(options: GenerateOptions, vocab_size: int) -> Generation:
    stop = (options.stop,) if isinstance(options.stop, str) else options.stop
    if "" in stop or len(stop) > 16:
        raise Invalid("stop takes up to 16 strings, none of them empty", path="$.stop")
    top_k = options.top_k if options.top_k < vocab_size else 0
    return Generation(
        Sampling(options.temperature, top_k, options.top_p),
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
