from __future__ import annotations

from pathlib import Path

import pytest
import torch
from msgspec.structs import replace
from tokenizers import Tokenizer

from tests.training.small import small
from training.ner import names
from training.ner.config import NerRun
from training.ner.data import load
from training.ner.learner import TaggerLearner
from training.ner.words import numbers_of
from training.runs import load as load_run
from training.trainer import Share

CONFIG = Path(__file__).parents[3] / "training" / "configs" / "ner_bidirectional.toml"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NerRun:
    monkeypatch.setenv("SEQSERVE_DATA", str(tmp_path))
    found = small(load_run(CONFIG), tmp_path)  # type: ignore[arg-type]
    assert isinstance(found, NerRun)
    return found


def learner(run: NerRun, part: Share | None = None) -> TaggerLearner:
    return TaggerLearner(run, load(run.data), ((), ()), part or Share(), names.load(run.data.names))


def test_a_batch_is_a_function_of_its_step(run: NerRun) -> None:
    first, second = learner(run), learner(run)
    steps = [0, first.steps_per_epoch, 3, 2 * first.steps_per_epoch + 1, 1]
    due = {step: first.batch(step) for step in steps}
    for step in reversed(steps):
        for a, b in zip(due[step], second.batch(step), strict=True):
            assert torch.equal(a, b)


def test_an_epoch_reads_every_word_once(run: NerRun) -> None:
    whole = learner(run)
    batches = [whole.batch(step) for step in range(whole.steps_per_epoch)]
    words = torch.cat([batch[0].flatten() for batch in batches])
    due = [i for sentences in whole._train for s in sentences for i in s["words"].tolist()]
    assert sorted(words.tolist()) == sorted(due)
    # Some sentences are read together: longer texts than the 7 words of each.
    assert {batch[0].shape[1] for batch in batches} > {7}
    assert all(batch[0].numel() <= max(16, batch[0].shape[1]) for batch in batches)
    assert all(batch[3].sum() == pytest.approx(1) for batch in batches)


@pytest.mark.parametrize("count", [2, 3])
def test_shares_have_the_loss_and_gradient_of_the_whole(run: NerRun, count: int) -> None:
    whole = learner(run)
    whole.model.eval()
    parts = [learner(run, Share(rank, count)) for rank in range(count)]
    for step in range(4):

        def gradients(part: TaggerLearner, step: int) -> tuple[float, list[torch.Tensor]]:
            whole.model.zero_grad()
            state = part.fresh_state(step)
            assert state is not None
            loss, after = whole.model(*part.batch(step), state)
            loss.backward()
            assert after == ()
            learnt = [p for p in whole.model.parameters() if p.requires_grad]
            return float(loss.detach()), [p.grad.clone() for p in learnt if p.grad is not None]

        due, due_gradients = gradients(whole, step)
        found = [gradients(part, step) for part in parts]
        assert sum(loss for loss, _ in found) / count == pytest.approx(due, rel=1e-5)
        for i, gradient in enumerate(due_gradients):
            mean = torch.stack([each[i] for _, each in found]).mean(0)
            torch.testing.assert_close(mean, gradient, rtol=1e-4, atol=1e-6)


def test_word_vectors_are_not_learnt_and_the_unknown_word_is(run: NerRun) -> None:
    whole = learner(run)
    assert not whole._model.vectors.weight.requires_grad
    words = torch.zeros(1, 2, dtype=torch.int64)
    characters = torch.zeros(1, 2, run.model.characters, dtype=torch.int64)
    features = whole._model.features(words, characters)
    features.sum().backward()
    assert whole._model.shared.grad is not None
    unknown, *lists = whole._model.shared.grad.abs().sum(1).tolist()
    assert unknown > 0
    assert lists == [0, 0]


def test_a_rare_name_has_the_vector_of_its_list(run: NerRun) -> None:
    whole = learner(run)
    tokenizer = Tokenizer.from_str(whole.files["tokenizer.json"].decode())
    assert whole.files["names.txt"] == b"Ann\nZoe\n"
    lists = [["Ann", "Zoe"], ["Kim"]]
    numbers = numbers_of(tokenizer, lists, "", run.model.characters)
    words = numbers(["Ann", "Zoe", "zoe", "Kim", "Bob"])["words"].tolist()
    size, ann = tokenizer.get_vocab_size(), tokenizer.get_vocab()["Ann"]
    assert words == [ann, size, size, size + 1, 0]
    model = whole._model
    table = model.table()
    # As the only name with a vector of its own, Ann is the mean of them.
    assert torch.equal(table[size], table[ann])
    assert table[size + 1].abs().sum() == 0
    characters = torch.zeros(1, 5, run.model.characters, dtype=torch.int64)
    model.eval()
    features = model.features(torch.tensor([words]), characters)[0, :, : run.model.embedding_dim]
    assert torch.equal(features, table[words])


def test_a_hidden_word_is_taken_for_its_list(run: NerRun) -> None:
    whole = learner(replace(run, model=replace(run.model, word_dropout=1.0)))
    model = whole._model
    size = model.vectors.num_embeddings
    model.shared.data = torch.arange(3.0)[:, None].expand(-1, run.model.embedding_dim).clone()
    vocabulary = Tokenizer.from_str(whole.files["tokenizer.json"].decode()).get_vocab()
    words = torch.tensor([[0, vocabulary["Ann"], vocabulary["saw"], size, size + 1]])
    characters = torch.zeros(1, 5, run.model.characters, dtype=torch.int64)
    features = model.train().features(words, characters)
    assert features[0, :, 0].tolist() == [0, 1, 0, 1, 2]


def test_validation_counts_spans_of_whole_sentences(run: NerRun) -> None:
    whole = learner(run)
    whole.model.eval()
    scalars = whole.validate(whole.model)
    assert set(scalars) == {"valid/span F1", "valid/span precision", "valid/span recall"}
    assert all(0 <= value <= 100 for value in scalars.values())
    assert whole.criterion in scalars
