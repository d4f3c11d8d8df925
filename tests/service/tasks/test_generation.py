from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from service.engine.sampling import Sampling, uniforms
from service.errors import Invalid
from service.sessions.session import Chunk
from service.tasks.generation import Generation, Token, Written
from service.tasks.next_word import NextWordTask
from service.tasks.protocol import Outputs
from tests.models import CHARACTERS, TOP_K, WORDS, reference_logits, reference_outputs

UNKNOWN, END, THE, CAT, SAT = range(5)
GREEDY = Sampling(temperature=0)


class Model:
    """Feeds chunks to the reference of the language model, as a session does."""

    def __init__(self) -> None:
        self.fed: list[int] = []
        self.passing: list[tuple[str, ...]] = []

    async def __call__(self, chunk: Chunk, passing: tuple[str, ...]) -> tuple[Outputs, int]:
        before = len(self.fed)
        self.fed += chunk.arrays["tokens"].tolist()
        self.passing.append(passing)
        outputs = reference_outputs(reference_logits(self.fed))
        wanted = (*NextWordTask.outputs, *passing)
        return {name: outputs[name][before + chunk.ends] for name in wanted}, len(self.fed)


class Script:
    """A model that says what it is told to, whatever it is fed."""

    def __init__(self, *words: str, vocabulary: Sequence[str] = WORDS) -> None:
        self.words = list(words)
        self.vocabulary = vocabulary
        self.fed = 0

    async def __call__(self, chunk: Chunk, passing: tuple[str, ...]) -> tuple[Outputs, None]:
        logits = np.zeros((1, len(self.vocabulary)))
        logits[0, self.vocabulary.index(self.words[min(self.fed, len(self.words) - 1)])] = 9.0
        self.fed += 1
        return reference_outputs(logits), None


async def write(
    task: NextWordTask,
    step: Any,
    prompt: str | list[int] | Outputs = "the cat",
    *,
    feed_last: bool = False,
    written: Written | None = None,
    limit: int = 1000,
    **options: Any,
) -> list[Token]:
    """Write a text as the service does, alone: up to `limit` more tokens after a prompt or after outputs."""
    wanted = Generation(**({"sampling": GREEDY, "max_tokens": 8, "seed": 1} | options))
    written = written or Written()
    writer, passing = task.writer, task.writer.passing(wanted.sampling)
    first = None if isinstance(prompt, dict) else task.whole(prompt, "$")
    if written.running is None:
        written.running = writer.end_of(first)
    outputs: Any = prompt if first is None else (await step(first, passing))[0]
    numbers = uniforms(wanted.seed, len(written.tokens))
    tokens: list[Token] = []
    while len(tokens) < limit and not written.finished:
        writer.check(outputs, wanted.sampling)
        (chosen,) = writer.choose([outputs], [wanted.sampling], np.array([next(numbers)]), passing)
        token, seq = writer.add(written, wanted, *chosen), None
        if token.finish is None or feed_last:
            outputs, seq = await step(writer.chunk(token), passing)
        tokens.append(written.settle(seq))
    return tokens


def text(tokens: Sequence[Token]) -> str:
    return "".join(token.text for token in tokens)


async def test_greedy_text_is_the_best_word_after_the_best_word(task: NextWordTask) -> None:
    model = Model()
    tokens = await write(task, model, max_tokens=6, ignore_eos=True)
    due, logprobs = [THE, CAT], []
    for _ in range(6):
        logits = reference_logits(due)[-1]
        due.append(int(np.argmax(np.where(np.arange(len(WORDS)) == UNKNOWN, -np.inf, logits))))
        logprobs.append(logits[due[-1]] - np.log(np.exp(logits).sum()))
    assert [token.id for token in tokens] == due[2:]
    assert [token.logprob for token in tokens] == pytest.approx(logprobs)
    assert [token.index for token in tokens] == list(range(6))
    assert [token.finish for token in tokens] == [None] * 5 + ["length"]
    # The last one has nowhere to go.
    assert model.fed == due[:-1]


async def test_a_session_is_fed_the_last_word_too(task: NextWordTask) -> None:
    model = Model()
    tokens = await write(task, model, max_tokens=3, ignore_eos=True, feed_last=True)
    assert model.fed == [THE, CAT, *(token.id for token in tokens)]
    assert [token.seq for token in tokens] == [3, 4, 5]


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(top_k=3), Sampling(top_k=0, top_p=0.8), Sampling(2.0, 5, 0.9)]
)
async def test_the_same_seed_gives_the_same_text(task: NextWordTask, sampling: Sampling) -> None:
    texts = [
        [t.id for t in await write(task, Model(), sampling=sampling, seed=seed, ignore_eos=True)]
        for seed in (5, 5, 6, 7, 8)
    ]
    assert texts[0] == texts[1]
    assert len(set(map(tuple, texts))) > 1
    assert all(UNKNOWN not in ids for ids in texts)


@pytest.mark.parametrize(
    ("sampling", "needs_all"),
    [
        (GREEDY, False),
        (Sampling(top_k=TOP_K - 1), False),
        (Sampling(top_k=TOP_K), True),
        (Sampling(top_k=0), True),
        (Sampling(top_k=50), True),
    ],
)
async def test_the_whole_vocabulary_is_fetched_only_where_it_may_be_chosen(
    task: NextWordTask, sampling: Sampling, needs_all: bool
) -> None:
    model = Model()
    await write(task, model, sampling=sampling)
    assert set(model.passing) == {("logits",) if needs_all else ()}


async def test_the_end_of_a_line_ends_the_text_or_not(task: NextWordTask) -> None:
    tokens = await write(task, Script("cat", "<eos>", "the", "cat"))
    assert [(t.token, t.text, t.finish) for t in tokens] == [
        ("cat", " cat", None),
        ("<eos>", "\n", "eos"),
    ]
    tokens = await write(task, Script("cat", "<eos>", "the", "cat"), ignore_eos=True, max_tokens=4)
    assert text(tokens) == " cat\nthe cat"
    assert tokens[-1].finish == "length"


async def test_words_are_joined_as_people_write_them(task: NextWordTask) -> None:
    script = Script("3", "@-@", "cat", ".", "the", "<eos>")
    assert text(await write(task, script)) == " 3-cat. the\n"


async def test_after_the_end_of_a_line_there_is_no_blank(task: NextWordTask) -> None:
    assert text(await write(task, Script("the"), [END], max_tokens=1)) == "the"


@pytest.mark.parametrize(
    ("stop", "due"),
    [
        (("sat",), " cat "),
        ((" sat",), " cat"),
        (("t s",), " ca"),
        (("zebra", "on"), " cat sat "),
        (("sat on", "cat sat"), " "),
        (("zebra",), " cat sat on mat\n"),
        (("cat sat on a",), " cat sat on mat\n"),
        (("\n",), " cat sat on mat"),
    ],
)
async def test_the_text_ends_before_a_stop_string(
    task: NextWordTask, stop: tuple[str, ...], due: str
) -> None:
    script = Script("cat", "sat", "on", "mat", "<eos>")
    tokens = await write(task, script, stop=stop)
    assert text(tokens) == due
    assert tokens[-1].finish == ("eos" if due.endswith("\n") else "stop")


async def test_text_that_may_be_a_stop_string_is_held_back(task: NextWordTask) -> None:
    tokens = await write(task, Script("cat", "sat", "on", "<eos>"), stop=("cat sat a",))
    assert [token.text for token in tokens] == [" ", "", "cat sat on", "\n"]


async def test_held_back_text_is_sent_at_the_last_token(task: NextWordTask) -> None:
    tokens = await write(task, Script("cat", "sat"), stop=("cat sat on",), max_tokens=2)
    assert [token.text for token in tokens] == [" ", "cat sat"]


async def test_a_text_goes_on_where_it_was_cut(task: NextWordTask) -> None:
    """A stream that broke after three tokens is resumed from the outputs of the last one."""
    options = {"sampling": Sampling(top_k=4), "seed": 3, "ignore_eos": True, "feed_last": True}
    whole = await write(task, Model(), **options)
    model, written = Model(), Written()
    await write(task, model, written=written, limit=3, **options)
    last = {
        name: value[-1:] for name, value in reference_outputs(reference_logits(model.fed)).items()
    }
    rest = await write(task, model, last, written=written, **options)
    assert whole == written.tokens
    assert rest == written.tokens[3:]
    assert written.text == text(whole)


async def test_a_text_that_is_finished_does_not_go_on(task: NextWordTask) -> None:
    written = Written()
    await write(task, Model(), written=written, max_tokens=2, ignore_eos=True)
    assert await write(task, Model(), written=written, max_tokens=2, ignore_eos=True) == []


async def test_a_token_on_its_way_when_the_stream_breaks_can_be_settled(
    task: NextWordTask,
) -> None:
    class Broken(Model):
        async def __call__(self, chunk: Chunk, passing: tuple[str, ...]) -> tuple[Outputs, int]:
            outputs = await super().__call__(chunk, passing)
            if len(self.fed) == 3:
                raise ConnectionError
            return outputs

    written = Written()
    with pytest.raises(ConnectionError):
        await write(task, Broken(), written=written, feed_last=True, max_tokens=3)
    assert written.tokens == []
    token = written.settle(3)
    assert (written.tokens, token.seq, written.pending) == ([token], 3, None)


async def test_going_on_from_outputs_without_logits_needs_a_small_top_k(
    task: NextWordTask,
) -> None:
    last = reference_outputs(reference_logits([THE]))
    del last["logits"]
    with pytest.raises(Invalid, match="needs top_k 1 to 5") as error:
        await write(task, Model(), last, sampling=Sampling(top_k=0))
    assert error.value.extra == {"path": "$.top_k"}


@pytest.mark.parametrize("there", [2, 3, 5])
async def test_the_first_token_is_one_of_those_that_the_last_step_gave(
    task: NextWordTask, there: int
) -> None:
    whole = reference_outputs(reference_logits([THE]))
    few = narrowed(whole, there)
    hot = Sampling(temperature=50.0, top_k=TOP_K - 1)
    options = {"sampling": hot, "max_tokens": 1, "ignore_eos": True}
    found = {(await write(task, Model(), few, seed=seed, **options))[0].id for seed in range(60)}
    assert found == set(few["top_indices"][0].tolist()) - {UNKNOWN}


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(top_k=1), Sampling(1.5, 2, 0.9)])
async def test_texts_go_on_from_as_few_candidates_as_they_choose_among(
    task: NextWordTask, sampling: Sampling
) -> None:
    whole = reference_outputs(reference_logits([THE]))
    few = narrowed(whole, sampling.top_k + 1 if sampling.temperature else 2)
    options = {"sampling": sampling, "seed": 5, "max_tokens": 4, "ignore_eos": True}
    due = await write(task, Model(), whole, **options)
    assert await write(task, Model(), few, **options) == due


def test_rows_with_few_and_many_candidates_are_chosen_together(task: NextWordTask) -> None:
    whole = reference_outputs(reference_logits([THE]))
    how, uniform = [Sampling(2.0, 2), Sampling(2.0, 4)], np.array([0.9, 0.9])
    apart = [task.writer.choose([whole], [each], uniform[:1], ())[0] for each in how]
    assert task.writer.choose([narrowed(whole, 3), whole], how, uniform, ()) == apart


def narrowed(outputs: Outputs, count: int) -> dict[str, np.ndarray]:
    """As a step leaves them that asked for so many."""
    ranked = ("top_indices", "top_scores")
    return {
        name: values[..., :count] if name in ranked else values
        for name, values in outputs.items()
        if name != "logits"
    }


# Characters.


async def test_characters_are_joined_without_blanks_and_no_line_ends_the_text(
    characters: NextWordTask,
) -> None:
    said = "cat.\n\nthe  mat\n"
    script = Script(*said, vocabulary=CHARACTERS)
    tokens = await write(characters, script, prompt="the ", max_tokens=len(said))
    assert text(tokens) == said
    assert [token.token for token in tokens] == list(said)
    assert tokens[-1].finish == "length"


@pytest.mark.parametrize("stop", ["\n\n", "\nthe", " "])
async def test_a_text_of_characters_ends_before_a_stop_string(
    characters: NextWordTask, stop: str
) -> None:
    said = "cat.\n\nthe mat"
    script = Script(*said, vocabulary=CHARACTERS)
    tokens = await write(characters, script, prompt="the ", max_tokens=50, stop=(stop,))
    assert text(tokens) == said[: said.index(stop)]
    assert tokens[-1].finish == "stop"


async def test_every_character_may_be_chosen(characters: NextWordTask) -> None:
    hot = Sampling(temperature=100.0, top_k=0)
    tokens = await write(characters, Model(), prompt="the ", sampling=hot, max_tokens=400)
    assert {token.token for token in tokens} == set(CHARACTERS)


async def test_a_text_of_characters_goes_on_from_outputs(characters: NextWordTask) -> None:
    last = reference_outputs(reference_logits([THE]))
    script = Script("t", vocabulary=CHARACTERS)
    (token,) = await write(characters, script, last, max_tokens=1)
    assert token.text == CHARACTERS[int(np.argmax(reference_logits([THE])[0]))]
