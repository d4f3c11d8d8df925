"""What language models have to beat: n-grams. No torch here but in reading the text."""

from __future__ import annotations

from training.floors import Floors
from training.next_word import corpora, vocabulary
from training.next_word.config import NextWordRun
from training.next_word.kneser_ney import KneserNey
from training.next_word.perplexity import metric

# Of words the order that is usually published. Of characters a short past, and the one that does best on Tiny
# Shakespeare's validation text.
ORDERS = {"word": (5,), "character": (4, 7)}


def floors(run: NextWordRun) -> Floors:
    """See `Task.floors`: n-grams of the training text on the validation text, read as the model reads it."""
    corpus = corpora.load(run.data)
    tokenizer = vocabulary.build(corpus.train, corpus.level)
    train, valid = (
        vocabulary.encode(tokenizer, text).numpy() for text in (corpus.train, corpus.valid)
    )
    metrics = []
    for order in ORDERS[corpus.level]:
        model = KneserNey(train, order, tokenizer.get_vocab_size())
        # The first token has no past and is not predicted.
        nats = -float(model.log_probabilities(valid)[1:].mean())
        metrics.append(metric(corpus, nats, f"modified Kneser-Ney {order}-gram"))
    return Floors((corpus.dataset,), tuple(metrics))
