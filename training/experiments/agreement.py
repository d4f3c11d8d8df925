"""How far back a model remembers: accuracy of agreement by the distance between subject and verb.

All architectures have the same number of parameters, see the same sentences in the same order for the same number of
steps, and start as the product's training starts them. Distances beyond the longest one trained on show what was
learnt: a rule or a length.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from torch import Tensor, nn
from torch.nn import functional

from training import pictures
from training.config import EncoderConfig, Record, TransformerConfig
from training.experiments import sentences
from training.experiments.experiment import Experiment
from training.experiments.sentences import Grammar, Sentence
from training.experiments.sizes import sized_like
from training.models.encoders import make_encoder
from training.pictures import ARCHITECTURES, COLOURS, GREY, MARKERS, NAMES

# The plain RNN as it is taught, beside the one that the product trains.
PLAIN_RNN = "plain_rnn"
MODELS = {PLAIN_RNN: "RNN without orthogonal start"} | {name: NAMES[name] for name in ARCHITECTURES}
# A difference in accuracy worth a sentence.
_NOTABLE = 0.02


class Settings(Record, frozen=True, kw_only=True):
    """How the experiment is run.

    Attributes:
        grammar: How sentences are made.
        train_distances: Distances trained on, each as often as the others.
        test_distances: Distances tested.
        train_sentences: Sentences trained on, for each seed.
        test_sentences: Sentences tested, for each distance; the same for every model.
        embedding_dim: E.
        transformer: Its shape, which sets the number of parameters for all.
        seeds: One training of each architecture for each.
        steps: Steps of each training.
        batch_size: Sentences of a step.
        lr: Peak learning rate of Adam, reached after a tenth of the steps, from where it falls in a line to 0.
        clip_norm: Largest gradient norm.
    """

    grammar: Grammar = Grammar()
    train_distances: tuple[int, ...] = (0, *range(3, 21))
    test_distances: tuple[int, ...] = (0, 4, 8, 12, 16, 20, 24, 28, 32, 40)
    train_sentences: int = 20_000
    test_sentences: int = 400
    embedding_dim: int = 32
    transformer: TransformerConfig = TransformerConfig(
        width=32, heads=2, num_layers=2, feedforward=64, window=48
    )
    seeds: tuple[int, ...] = (1, 2, 3)
    steps: int = 700
    batch_size: int = 32
    lr: float = 3e-3
    clip_norm: float = 1.0


class Training(Record, frozen=True, kw_only=True):
    """One trained model.

    Attributes:
        architecture: Which of the `MODELS`.
        seed: Of its sentences and weights.
        width: Hidden size, or width of the Transformer.
        parameters: Numbers it learnt.
        cpu_s: Processor time of its training.
        accuracy: Share of right verbs of the sentence, for each tested distance.
    """

    architecture: str
    seed: int
    width: int
    parameters: int
    cpu_s: float
    accuracy: tuple[float, ...]


class Findings(Record, frozen=True, kw_only=True):
    """What came out.

    Attributes:
        nearest_noun: Accuracy of agreeing with the last noun before the verb, for each tested distance.
        trainings: One for each model and seed.
    """

    nearest_noun: tuple[float, ...]
    trainings: tuple[Training, ...]


class Agreement(nn.Module):
    """Says after every word how likely the next one, if a verb, is plural."""

    def __init__(self, config: EncoderConfig, embedding_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(sentences.VOCABULARY), embedding_dim)
        # The scale of the language model's embedding; the encoders are made for it.
        nn.init.normal_(self.embedding.weight, std=embedding_dim**-0.5)
        self.encoder = make_encoder(config, embedding_dim)
        self.output = nn.Linear(self.encoder.width_out, len(sentences.LABELS))

    def forward(self, words: Tensor) -> Tensor:
        """Scores (B, T, 2) of singular and plural after word ids (B, T)."""
        x, _ = self.encoder(self.embedding(words), self.encoder.initial_state(len(words)))
        scores: Tensor = self.output(x)
        return scores


def measure(settings: Settings) -> Findings:
    """Train every architecture with every seed."""
    random = np.random.default_rng(0)
    tests = [
        [sentences.sentence(d, settings.grammar, random) for _ in range(settings.test_sentences)]
        for d in settings.test_distances
    ]
    trainings: list[Training] = []
    for seed in settings.seeds:
        batches = _batches(settings, seed)
        trainings += (_train(settings, name, seed, batches, tests) for name in MODELS)
    nearest = tuple(_nearest_noun(test) for test in tests)
    return Findings(nearest_noun=nearest, trainings=tuple(trainings))


def config_of(settings: Settings, model: str) -> EncoderConfig:
    """Shape and start of one of the `MODELS`, with as many parameters as the Transformer, as nearly as can be."""
    architecture = "rnn" if model == PLAIN_RNN else model
    config = sized_like(
        settings.transformer, architecture, lambda config: parameters_of(settings, config)
    )
    if model == PLAIN_RNN:
        config = msgspec.structs.replace(config, orthogonal=False)
    return config


def parameters_of(settings: Settings, config: EncoderConfig) -> int:
    """How many numbers a model of this experiment learns."""
    with torch.device("meta"):
        model = Agreement(config, settings.embedding_dim)
    return sum(parameter.numel() for parameter in model.parameters())


def _batches(settings: Settings, seed: int) -> list[tuple[Tensor, Tensor]]:
    """The batches of every step, drawn with replacement from the sentences of a seed."""
    random = np.random.default_rng(seed)
    distances = random.choice(settings.train_distances, settings.train_sentences)
    pool = [sentences.sentence(int(d), settings.grammar, random) for d in distances]
    draws = random.integers(0, len(pool), (settings.steps, settings.batch_size))
    return [_tensors([pool[i] for i in draw]) for draw in draws]


def _tensors(batch: Sequence[Sentence]) -> tuple[Tensor, Tensor]:
    words, due = sentences.batch(batch)
    return torch.from_numpy(words), torch.from_numpy(due)


def _train(
    settings: Settings,
    architecture: str,
    seed: int,
    batches: Sequence[tuple[Tensor, Tensor]],
    tests: Sequence[Sequence[Sentence]],
) -> Training:
    started = time.process_time()
    torch.manual_seed(seed)
    config = config_of(settings, architecture)
    model = Agreement(config, settings.embedding_dim)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr)
    for step, (words, due) in enumerate(batches):
        done = step / len(batches)
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * min(10 * done + 1 / len(batches), (1 - done) / 0.9)
        scores = model(words)
        loss = functional.cross_entropy(scores.flatten(0, 1), due.flatten(), ignore_index=-1)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        optimizer.step()
    return Training(
        architecture=architecture,
        seed=seed,
        width=config.width if isinstance(config, TransformerConfig) else config.hidden_size,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        cpu_s=round(time.process_time() - started, 1),
        accuracy=tuple(round(_accuracy(model, test), 4) for test in tests),
    )


@torch.no_grad()
def _accuracy(model: Agreement, test: Sequence[Sentence]) -> float:
    """Share of the sentences whose own verb, the last one, comes out in the right number."""
    words, due = _tensors(test)
    last = torch.tensor([len(each.words) - 1 for each in test])
    rows = torch.arange(len(test))
    right = model(words)[rows, last].argmax(dim=-1) == due[rows, last]
    return float(right.float().mean())


def _nearest_noun(test: Sequence[Sentence]) -> float:
    right = 0
    for each in test:
        nouns = [word for word in each.words if word in sentences.NOUNS[0] + sentences.NOUNS[1]]
        right += (nouns[-1] in sentences.NOUNS[1]) == each.verbs[-1][1]
    return right / len(test)


def draw(settings: Settings, findings: Findings) -> Figure:
    """Accuracy over distance: the mean over the seeds, and a band from the worst to the best."""
    figure, (panel,) = pictures.figure(size=(7.5, 4.4))
    longest = max(settings.train_distances)
    panel.axvspan(longest, max(settings.test_distances), color=GREY, alpha=0.1, linewidth=0)
    panel.text(longest + 0.4, 0.6, "longer than trained on", color=GREY, fontsize=9)
    # At no distance the last noun is the subject.
    panel.plot(settings.test_distances[1:], findings.nearest_noun[1:], ":", color=GREY)
    panel.text(settings.test_distances[1], 0.54, "agree with the last noun", color=GREY, fontsize=9)
    for name, title in MODELS.items():
        values = _by_seed(findings, name)
        look, line = ("rnn", "--") if name == PLAIN_RNN else (name, "-")
        panel.fill_between(
            settings.test_distances,
            values.min(axis=0),
            values.max(axis=0),
            color=COLOURS[look],
            alpha=0.15,
            linewidth=0,
        )
        panel.plot(
            settings.test_distances,
            values.mean(axis=0),
            color=COLOURS[look],
            linestyle=line,
            marker=MARKERS[look],
            markerfacecolor="white" if name == PLAIN_RNN else COLOURS[look],
            markersize=4.5,
            label=f"{title}: {_parameters(findings, name):,} parameters",
        )
    panel.set(xlabel="words between subject and verb", ylabel="right verbs", ylim=(0.44, 1.02))
    panel.yaxis.set_major_formatter(PercentFormatter(1.0))
    panel.legend(loc="lower left", bbox_to_anchor=(0, 0.27), frameon=False, fontsize=9)
    return figure


def _by_seed(findings: Findings, architecture: str) -> npt.NDArray[np.float64]:
    """Accuracy by seed and distance."""
    return np.array([t.accuracy for t in findings.trainings if t.architecture == architecture])


def _parameters(findings: Findings, architecture: str) -> int:
    return next(t.parameters for t in findings.trainings if t.architecture == architecture)


def describe(settings: Settings, findings: Findings) -> str:
    """What the picture shows."""
    means = {name: _by_seed(findings, name).mean(axis=0) for name in MODELS}
    trained = settings.test_distances.index(max(settings.train_distances))
    seconds = {
        name: np.mean([t.cpu_s for t in findings.trainings if t.architecture == name])
        for name in MODELS
    }
    return "\n\n".join(
        [
            _setting(settings, findings),
            f"At {settings.test_distances[trained]} words, the longest distance trained on, {_listed(means, trained)}. "
            f"At {settings.test_distances[-1]} words, {_listed(means, -1)}. "
            f"Agreeing with the last noun before the verb gives "
            f"{min(findings.nearest_noun[1:]):.0%} to {max(findings.nearest_noun[1:]):.0%}.",
            *_verdicts(settings, means, trained),
            "Processor time of one training: "
            + ", ".join(f"{MODELS[name]} {value:.0f} s" for name, value in seconds.items())
            + ".",
        ]
    )


def _setting(settings: Settings, findings: Findings) -> str:
    counts = [training.parameters for training in findings.trainings]
    return " ".join(
        [
            'Made sentences ("near the houses , the cat that the dogs beside the king chase ... was"): a subject, then',
            "phrases with nouns, and clauses with subjects and verbs of their own, then a verb that must agree with",
            "its subject. Training sentences have a distance drawn evenly from 0 and 3 to",
            f"{max(settings.train_distances)} words; {settings.train_sentences:,} of them for each of",
            f"{len(settings.seeds)} seeds, {settings.steps:,} steps of {settings.batch_size}, a learning rate of",
            f"{settings.lr:g} for all, {min(counts):,} to {max(counts):,} parameters. The line is the mean over the",
            "seeds, the band reaches from the worst to the best.",
        ]
    )


def _listed(means: Mapping[str, npt.NDArray[np.float64]], place: int) -> str:
    ranked = sorted(means, key=lambda name: -means[name][place])
    parts = [f"{MODELS[name]} {means[name][place]:.1%}" for name in ranked]
    return f"{', '.join(parts[:-1])} and {parts[-1]} of the verbs are right"


def _verdicts(
    settings: Settings, means: Mapping[str, npt.NDArray[np.float64]], trained: int
) -> Iterator[str]:
    for distance, place in ((settings.test_distances[trained], trained), (_longest(settings), -1)):
        gated = float(means["gru"][place] + means["lstm"][place]) / 2
        compared = " and ".join(
            f"{_compared(gated - float(means[name][place]))} the {MODELS[name]}"
            for name in ("rnn", PLAIN_RNN)
        )
        yield f"At {distance} words the gated cells are {compared}."
    losses = {name: float(mean[trained] - mean[-1]) for name, mean in means.items()}
    worst = max(losses, key=lambda name: losses[name])
    yield (
        f"From {settings.test_distances[trained]} to {settings.test_distances[-1]} words, lengths that none was "
        f"trained on, the {MODELS[worst]} loses most: {losses[worst]:.0%} of the verbs; the "
        f"{MODELS[min(losses, key=lambda name: losses[name])]} loses least, {min(losses.values()):.0%}."
    )


def _compared(lead: float) -> str:
    """A difference in accuracy in words."""
    if abs(lead) < _NOTABLE:
        return f"within {_NOTABLE:.0%} of"
    return f"right on {abs(lead):.0%} {'more' if lead > 0 else 'less'} of the verbs than"


def _longest(settings: Settings) -> int:
    return max(settings.test_distances)


EXPERIMENT = Experiment(
    name="agreement",
    title="Agreement over a distance",
    settings=Settings(),
    findings=Findings,
    measure=measure,
    draw=draw,
    describe=describe,
)
