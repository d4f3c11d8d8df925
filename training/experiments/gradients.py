"""How far back a gradient reaches: its norm at the state of every earlier step, with each remedy on and off.

L_T is the cross-entropy of a read-out at the last step, so |dL_T/dh_t| over T - t is the factor by which an error
fades, or grows, on its way back. It is measured on fresh weights: what training starts from. Two remedies of the
course do not act on this norm and are shown by what they do act on: clipping on the update, a window of
backpropagation on where the gradient ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional

from training import pictures
from training.config import Record, RecurrentConfig
from training.experiments.experiment import Experiment
from training.experiments.sizes import CELLS
from training.models.encoder import State
from training.models.recurrent import RecurrentEncoder
from training.pictures import COLOURS, GREY, NAMES

Array = npt.NDArray[np.float64]
Remedy = Literal["relu", "orthogonal", "norm_between", "norm_within", "forget_bias"]
REMEDIES: Mapping[Remedy, str] = {
    "relu": "ReLU for tanh",
    "orthogonal": "orthogonal start",
    "norm_between": "layer norm after the layer",
    "norm_within": "layer norm within the step",
    "forget_bias": "forget bias 1",
}

# A difference in the factor per step worth a word.
_NOTABLE = 0.01


class Variant(Record, frozen=True, kw_only=True):
    """A network: a cell, and the remedies that are on; all others are off."""

    architecture: str
    remedies: tuple[Remedy, ...] = ()

    @property
    def title(self) -> str:
        """In words."""
        extra = " and ".join(REMEDIES[remedy] for remedy in self.remedies)
        return f"{NAMES[self.architecture]}, {extra}" if extra else NAMES[self.architecture]


def _variants() -> Iterator[Variant]:
    on: dict[str, tuple[tuple[Remedy, ...], ...]] = {
        "rnn": (
            *(("relu",), ("orthogonal",), ("relu", "orthogonal")),
            *(("norm_between",), ("norm_within",)),
        ),
        "gru": (("orthogonal",), ("norm_between",)),
        "lstm": (("orthogonal",), ("norm_between",), ("forget_bias",)),
    }
    for architecture, remedies in on.items():
        yield Variant(architecture=architecture)
        yield from (Variant(architecture=architecture, remedies=each) for each in remedies)


class Settings(Record, frozen=True, kw_only=True):
    """How the experiment is run.

    Attributes:
        variants: Networks whose gradient is followed back.
        steps: T.
        width_in: E; inputs are standard normal.
        hidden_size: H, of one layer.
        classes: Of the read-out at the last step.
        batch_size: Sequences of each seed.
        seeds: One set of fresh weights and inputs for each.
        windows: Steps of backpropagation, for the remedy that cuts it; shown on `window_variant`.
        window_variant: A network whose gradient would reach far.
        spectral_radii: Largest eigenvalue to which the recurrent weights of a ReLU network are scaled, for clipping.
        clip_norm: Largest norm of a clipped gradient.
    """

    variants: tuple[Variant, ...] = tuple(_variants())
    steps: int = 60
    width_in: int = 32
    hidden_size: int = 64
    classes: int = 10
    batch_size: int = 32
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    windows: tuple[int, ...] = (10, 20, 40)
    window_variant: Variant = Variant(architecture="rnn", remedies=("orthogonal",))
    spectral_radii: tuple[float, ...] = (0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5)
    clip_norm: float = 1.0


class Curve(Record, frozen=True, kw_only=True):
    """Gradient norms of one network, relative to the norm at the last step.

    Attributes:
        variant: Which network.
        window: Steps of backpropagation; 0 for all.
        norms: Geometric mean over seeds and sequences for T - t = 0, 1, ...
        low: Tenth percentile.
        high: Ninetieth percentile.
        last: Mean norm at the last step, which the others are relative to.
        rate: Factor per step, the geometric mean over the first twenty (or the window, if shorter).
    """

    variant: Variant
    window: int = 0
    norms: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    last: float
    rate: float


class Clipping(Record, frozen=True, kw_only=True):
    """Norm of the gradient of all weights, as it comes and as it is applied, for a spectral radius; geometric means."""

    spectral_radius: float
    norm: float
    applied: float


class Findings(Record, frozen=True, kw_only=True):
    """What came out."""

    curves: tuple[Curve, ...]
    windows: tuple[Curve, ...]
    clipping: tuple[Clipping, ...]


class NormalisedElman(nn.Module):
    """Elman network with layer norm within the step: h' = tanh(norm(W_xh x + W_hh h)) (Ba et al. 2016).

    Not one of the product's encoders, since the recurrent operators of ONNX cannot express it.
    """

    def __init__(self, width_in: int, hidden_size: int) -> None:
        super().__init__()
        # The start of torch's own recurrent layers.
        weights = dict(nn.RNN(width_in, hidden_size).named_parameters())
        self.weight_in, self.weight_hidden = weights["weight_ih_l0"], weights["weight_hh_l0"]
        self.norm = nn.LayerNorm(hidden_size)

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One step over x (B, 1, E) and h (B, 1, H); gives h as features and as state."""
        h = torch.tanh(self.norm(x @ self.weight_in.T + state[0] @ self.weight_hidden.T))
        return h, (h,)


class Network(nn.Module):
    """A recurrent layer, one step at a time, and a read-out."""

    def __init__(self, settings: Settings, variant: Variant) -> None:
        super().__init__()
        self.step: nn.Module
        self.norm: nn.Module = nn.Identity()
        self.shape = (1, settings.hidden_size)
        self.parts = 2 if variant.architecture == "lstm" else 1
        if "norm_within" in variant.remedies:
            self.step = NormalisedElman(settings.width_in, settings.hidden_size)
        else:
            self.step = RecurrentEncoder(_config(settings, variant), settings.width_in)
            self.norm = self.step.norms[0]
        self.output = nn.Linear(settings.hidden_size, settings.classes)

    def forward(self, x: Tensor, window: int = 0) -> tuple[Tensor, list[State]]:
        """Scores (B, classes) after the last step of x (B, T, E), and the state after every step."""
        state: State = tuple(x.new_zeros(len(x), *self.shape) for _ in range(self.parts))
        states = []
        for t in range(x.shape[1]):
            left = x.shape[1] - t
            if window and left % window == 0:
                state = tuple(part.detach() for part in state)
            _, state = self.step(x[:, t : t + 1], state)
            states.append(state)
        return self.output(self.norm(state[0][:, -1])), states


def _config(settings: Settings, variant: Variant) -> RecurrentConfig:
    on = variant.remedies
    return RecurrentConfig(
        cell="rnn_relu" if "relu" in on else CELLS[variant.architecture],
        hidden_size=settings.hidden_size,
        layer_norm="norm_between" in on,
        orthogonal="orthogonal" in on,
        forget_bias=1.0 if "forget_bias" in on else 0.0,
    )


def measure(settings: Settings) -> Findings:
    """Follow the gradient back through every network."""
    full = settings.window_variant
    return Findings(
        curves=tuple(_curve(settings, variant, window=0) for variant in settings.variants),
        windows=tuple(_curve(settings, full, window) for window in (*settings.windows, 0)),
        clipping=tuple(_clipping(settings, radius) for radius in settings.spectral_radii),
    )


def _curve(settings: Settings, variant: Variant, window: int) -> Curve:
    norms = np.concatenate([_norms(settings, variant, window, seed) for seed in settings.seeds])
    relative = norms / norms[:, :1]
    mean = _geometric_mean(relative)
    reach = min(20, settings.steps - 1, window - 1 if window else settings.steps)
    low, high = np.quantile(relative, (0.1, 0.9), axis=0)
    return Curve(
        variant=variant,
        window=window,
        norms=_short(mean),
        low=_short(low),
        high=_short(high),
        last=float(f"{norms[:, 0].mean():.5g}"),
        rate=float(f"{mean[reach] ** (1 / reach):.5g}"),
    )


def _norms(settings: Settings, variant: Variant, window: int, seed: int) -> Array:
    """Norm of each sequence's gradient at T - t = 0, 1, ..., (B, T); over h and c together for an LSTM."""
    network, x, labels = _start(settings, variant, seed)
    scores, states = network(x, window)
    parts = [part for state in states for part in state]
    loss = functional.cross_entropy(scores, labels, reduction="sum")
    # Zeros where no gradient comes.
    gradients = torch.autograd.grad(loss, parts, allow_unused=True, materialize_grads=True)
    squares = torch.stack([gradient.flatten(1).square().sum(dim=1) for gradient in gradients])
    by_step = squares.reshape(settings.steps, -1, len(x)).sum(dim=1).sqrt()
    norms: Array = by_step.T.flip(1).numpy()
    return norms


def _start(settings: Settings, variant: Variant, seed: int) -> tuple[Network, Tensor, Tensor]:
    torch.manual_seed(seed)
    # Double precision: a single-precision gradient that fades by half a step is gone after 150 of them.
    network = Network(settings, variant).double()
    x = torch.randn(settings.batch_size, settings.steps, settings.width_in, dtype=torch.float64)
    labels = torch.randint(settings.classes, (settings.batch_size,))
    return network, x, labels


def _clipping(settings: Settings, radius: float) -> Clipping:
    variant = Variant(architecture="rnn", remedies=("relu",))
    norms, applied = [], []
    for seed in settings.seeds:
        network, x, labels = _start(settings, variant, seed)
        assert isinstance(network.step, RecurrentEncoder)
        weight = dict(network.step.named_parameters())["layers.0.weight_hh_l0"].detach()
        weight *= radius / torch.linalg.eigvals(weight).abs().max()
        torch.autograd.backward(functional.cross_entropy(network(x)[0], labels))
        parameters = tuple(network.parameters())
        norms.append(float(nn.utils.clip_grad_norm_(parameters, settings.clip_norm)))
        gradients = [p.grad for p in parameters if p.grad is not None]
        applied.append(float(nn.utils.get_total_norm(gradients)))
    return Clipping(
        spectral_radius=radius,
        norm=_short(_geometric_mean(np.array(norms)[:, None]))[0],
        applied=_short(_geometric_mean(np.array(applied)[:, None]))[0],
    )


def _geometric_mean(values: Array) -> Array:
    """Over the rows; 0 where a value is 0."""
    with np.errstate(divide="ignore"):
        mean: Array = np.exp(np.log(values).mean(axis=0))
    return mean


def _short(values: Array) -> tuple[float, ...]:
    """Five significant digits are more than are repeatable on another machine."""
    return tuple(float(f"{value:.5g}") for value in values)


def draw(settings: Settings, findings: Findings) -> Figure:
    """Four panels: the cells, the remedies of the plain RNN, the window, clipping."""
    figure, panels = pictures.figure(2, 2, size=(11, 8))
    _draw_cells(panels[0], findings)
    _draw_remedies(panels[1], findings)
    _draw_windows(panels[2], findings)
    _draw_clipping(panels[3], settings, findings)
    for panel in panels[:3]:
        panel.set(xlabel="steps back in time, T - t", ylabel="|dL/dh(t)| / |dL/dh(T)|")
        panel.set_yscale("log")
    return figure


def _draw_cells(panel: Axes, findings: Findings) -> None:
    panel.set_title("Cells: fresh weights, no remedy, and the LSTM's forget bias")
    for curve in findings.curves:
        name, remedies = curve.variant.architecture, curve.variant.remedies
        if remedies not in ((), ("forget_bias",)):
            continue
        back = range(len(curve.norms))
        dashed = "--" if remedies else "-"
        panel.plot(back, curve.norms, dashed, color=COLOURS[name], label=_label(curve))
        if not remedies:
            panel.fill_between(
                back, curve.low, curve.high, color=COLOURS[name], alpha=0.15, linewidth=0
            )
    steps = np.arange(len(findings.curves[0].norms))
    panel.plot(steps, 0.5**steps, ":", color=GREY, label="0.5 a step, the course's example")
    panel.legend(frameon=False, fontsize=9)


def _draw_remedies(panel: Axes, findings: Findings) -> None:
    panel.set_title("Remedies of the plain RNN")
    colours = (COLOURS["rnn"], "#cc79a7", "#0072b2", "#009e73", GREY, "#e69f00")
    curves = [c for c in findings.curves if c.variant.architecture == "rnn"]
    for curve, colour in zip(curves, colours, strict=True):
        # Drawn on top of the curve that it does not change.
        dashed = (0, (4, 4)) if "norm_between" in curve.variant.remedies else "-"
        label = _label(curve).removeprefix("RNN, ")
        panel.plot(curve.norms, linestyle=dashed, color=colour, label=label)
    panel.set_ylim(bottom=min(min(curve.norms) for curve in curves) ** 1.15)
    panel.legend(frameon=False, fontsize=9, loc="lower left")


def _draw_windows(panel: Axes, findings: Findings) -> None:
    panel.set_title("Truncated backpropagation: nothing beyond the window")
    shades = ("#08306b", "#4292c6", "#9ecae1", "#cccccc")
    for i, (curve, shade) in enumerate(zip(findings.windows, shades, strict=True)):
        norms = np.array(curve.norms)
        inside = norms > 0
        label = f"window of {curve.window}" if curve.window else "no window"
        # The curves lie on each other: the shorter one is the thinner one, and in front.
        style: dict[str, Any] = {"linewidth": 2 + 3 * i, "zorder": 5 - i}
        panel.plot(np.flatnonzero(inside), norms[inside], color=shade, label=label, **style)
    panel.legend(frameon=False, fontsize=9, title=f"{findings.windows[0].variant.title}")


def _draw_clipping(panel: Axes, settings: Settings, findings: Findings) -> None:
    panel.set_title("Clipping: the update, not the gradient's reach")
    radii = [each.spectral_radius for each in findings.clipping]
    norms = [each.norm for each in findings.clipping]
    applied = [each.applied for each in findings.clipping]
    panel.plot(radii, norms, "o-", color=COLOURS["rnn"], label="gradient of all weights")
    label = f"as applied, clipped at {settings.clip_norm:g}"
    panel.plot(radii, applied, "s--", color=COLOURS["lstm"], label=label)
    panel.set(xlabel="spectral radius of the recurrent weights, ReLU", ylabel="norm")
    panel.set_yscale("log")
    panel.legend(frameon=False, fontsize=9)


def _label(curve: Curve) -> str:
    return f"{curve.variant.title}: {curve.rate:.2f} a step"


def describe(settings: Settings, findings: Findings) -> str:
    """What the picture shows."""
    plain = {c.variant.architecture: c for c in findings.curves if not c.variant.remedies}
    fastest = min(plain.values(), key=lambda curve: curve.rate)
    reach = min(20, settings.steps - 1)
    rates = ", ".join(f"{curve.variant.title} {curve.rate:.2f}" for curve in plain.values())
    return "\n\n".join(
        [
            _setting(settings),
            f"Factor per step over the first {reach} steps: {rates}. The gradient of the "
            f"{fastest.variant.title} fades fastest: after {reach} steps {fastest.norms[reach]:.1g} of it is left; "
            f"the course's example of 0.5 a step gives {0.5**reach:.1g}.",
            _table(findings),
            _windows_in_words(findings),
            _clipping_in_words(settings, findings),
        ]
    )


def _setting(settings: Settings) -> str:
    return (
        f"Norm of the gradient of the loss of step {settings.steps} at the state of every earlier step (for the LSTM h "
        f"and c together), relative to the last; one layer of {settings.hidden_size}, fresh weights, "
        f"{len(settings.seeds)} seeds of {settings.batch_size} sequences. The line is their geometric mean, the band "
        "holds the middle 80 %."
    )


def _table(findings: Findings) -> str:
    rows = [
        "| network | remedy | factor per step, off | on | effect |",
        "| --- | --- | ---: | ---: | --- |",
    ]
    off: Curve | None = None
    for curve in findings.curves:
        if not curve.variant.remedies:
            off = curve
            continue
        assert off is not None
        remedy = " and ".join(REMEDIES[each] for each in curve.variant.remedies)
        rows.append(
            f"| {NAMES[curve.variant.architecture]} | {remedy} | {off.rate:.3f} | {curve.rate:.3f} | "
            f"{_effect(off.rate, curve.rate)} |"
        )
    return "\n".join(rows)


def _effect(off: float, on: float) -> str:
    if abs(on - off) < _NOTABLE:
        return "none on this norm"
    if on > 1:
        return "grows instead of fading" if off < 1 else "grows"
    return "reaches further" if on > off else "fades faster"


def _windows_in_words(findings: Findings) -> str:
    *cut, full = findings.windows
    beyond = max(max(curve.norms[curve.window :]) for curve in cut)
    same = all(
        np.allclose(curve.norms[: curve.window], full.norms[: curve.window], rtol=1e-3)
        for curve in cut
    )
    sizes = ", ".join(str(curve.window) for curve in cut)
    inside = "unchanged" if same else "changed"
    outside = "exactly zero" if beyond == 0 else f"at most {beyond:.1g}"
    return (
        f"A window of backpropagation ({sizes} steps) is no remedy of fading: within it the gradient is {inside}, "
        f"beyond it {outside}."
    )


def _clipping_in_words(settings: Settings, findings: Findings) -> str:
    first, last = findings.clipping[0], findings.clipping[-1]
    largest = max(each.applied for each in findings.clipping)
    # The gradients of some seeds are clipped before their mean is as large.
    clipped = [each.spectral_radius for each in findings.clipping if each.applied < each.norm]
    where = f"from a radius of {min(clipped):g} on" if clipped else "never"
    return (
        f"A ReLU network whose recurrent weights have a spectral radius of {first.spectral_radius:g} to "
        f"{last.spectral_radius:g} has a gradient of norm {first.norm:.2g} to {last.norm:.2g}; clipping at "
        f"{settings.clip_norm:g} acts {where} and leaves an update of at most {largest:.2g}."
    )


EXPERIMENT = Experiment(
    name="gradients",
    title="Gradients back in time",
    settings=Settings(),
    findings=Findings,
    measure=measure,
    draw=draw,
    describe=describe,
)
