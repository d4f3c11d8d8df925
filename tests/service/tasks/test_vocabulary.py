from __future__ import annotations

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel

from service.contract import Sentiment
from service.tasks.vocabulary import read_vocabulary

WORDS = ["<unk>", "a", "naïve", '"', "\\", "\u2028", "🙂", "\x00", "e\u0301"]


def spec(vocab_size: int) -> Sentiment:
    return Sentiment(vocab_size=vocab_size, labels=("bad", "good"), exclusive=True)


def test_the_words_are_those_the_tokenizers_library_reads() -> None:
    ids = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(WordLevel(ids, unk_token="<unk>"))
    for pretty in (False, True):
        content = tokenizer.to_str(pretty=pretty).encode()
        assert read_vocabulary(content, spec(len(WORDS))) == tokenizer.get_vocab() == ids


def test_added_tokens_are_words_too() -> None:
    tokenizer = Tokenizer(WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    tokenizer.add_special_tokens([AddedToken("<eos>"), AddedToken("a")])
    content = tokenizer.to_str().encode()
    assert (
        read_vocabulary(content, spec(3))
        == tokenizer.get_vocab()
        == {"<unk>": 0, "a": 1, "<eos>": 2}
    )


def test_models_with_one_vocabulary_keep_its_words_once() -> None:
    tokenizer = Tokenizer(WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    one, other = (read_vocabulary(tokenizer.to_str().encode(), spec(2)) for _ in range(2))
    assert one is other
