"""Writes an export: everything into a temporary directory, through the gate, then into its place by one rename."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

import msgspec

from service.contract import (
    CARD_FILE,
    CONFIG_FILE,
    GOLDEN_FILE,
    MODEL_FILE,
    ContractError,
    Metric,
    ModelConfig,
    Variant,
    decode_config,
    digest,
    encode,
)
from training import floors
from training.export import parity, variants
from training.export.bundle import Bundle
from training.export.golden import golden
from training.export.runtime import LoadedGraph

# Beside the card, which shows it; the service does not read it.
CURVE_FILE = "curve.png"


def write(bundle: Bundle, root: Path) -> Path:
    """Check a model and write it to `<root>/<name>/<version>`, replacing what is there.

    Raises:
        ParityError: The graph does not equal the original; nothing is written.
        VariantError: A variant is too far from it; nothing is written.
    """
    graph = LoadedGraph(bundle.model, bundle.config)
    difference = parity.check(bundle, graph)
    metrics = floors.beside(bundle.measure(graph), bundle.config.provenance.datasets)
    made = variants.make(bundle, graph, metrics)
    files = {
        MODEL_FILE: bundle.model,
        **{each.variant.file: each.content for each in made},
        GOLDEN_FILE: encode(golden(bundle), indent=None),
        **bundle.files,
    }
    config = _completed(bundle.config, files, metrics, tuple(each.variant for each in made))
    target = root / config.name / str(config.version)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".new-") as temporary:
        new = Path(temporary) / "new"
        new.mkdir()
        for name, content in files.items():
            (new / name).write_bytes(content)
        (new / CONFIG_FILE).write_bytes(encode(config))
        (new / CARD_FILE).write_text(card(bundle, config, files, difference))
        if bundle.curve:
            (new / CURVE_FILE).write_bytes(bundle.curve)
        if target.exists():
            # A directory cannot be replaced in one step; the old one waits beside the new one.
            target.rename(Path(temporary) / "old")
        new.rename(target)
    return target


def read(directory: Path) -> tuple[ModelConfig, dict[str, bytes]]:
    """The config of an export and its files, verified.

    Raises:
        ContractError: There is no export, or a file is not the one it was written with.
    """
    try:
        config = decode_config((directory / CONFIG_FILE).read_bytes())
        files = {name: (directory / name).read_bytes() for name in config.files}
    except OSError as error:
        raise ContractError(f"{error}; run `seqtrain export` first") from None
    for name, content in files.items():
        if digest(content) != config.files[name]:
            raise ContractError(f"SHA-256 of {directory / name} is not the one in {CONFIG_FILE}")
    return config, files


def _completed(
    config: ModelConfig,
    files: dict[str, bytes],
    metrics: tuple[Metric, ...],
    made: tuple[Variant, ...],
) -> ModelConfig:
    provenance = msgspec.structs.replace(config.provenance, metrics=metrics)
    hashes = {name: digest(content) for name, content in files.items()}
    return msgspec.structs.replace(config, files=hashes, provenance=provenance, variants=made)


def card(bundle: Bundle, config: ModelConfig, files: dict[str, bytes], difference: float) -> str:
    """The model card: what it does, how well, from which data, how to make it again."""
    provenance = config.provenance
    quality = ["| measure | split | value | floor |", "| --- | --- | ---: | --- |"]
    quality += [
        f"| {m.name} | {m.split} | {m.value:.5g} | {_floor(m)} |" for m in provenance.metrics
    ]
    sizes = [f"| `{name}` | {len(content):,} |" for name, content in files.items()]
    commands = provenance.command.replace(" && ", "\n")
    return "\n".join(
        [
            f"# {config.name}, version {config.version}\n\n{config.description}.\n\n{bundle.card}",
            "\n## Quality\n\nMeasured on the exported file.\n",
            *quality,
            *([f"\n![Training curve]({CURVE_FILE})"] if bundle.curve else []),
            f"\nLargest difference between the file and the original model: {difference:.2g}.",
            *_variants(config),
            f"\n## Make it again\n\n```\n{commands}\n```\n",
            *_origin(config),
            f"\n## Files\n\nState of one session: {config.state_nbytes:,} bytes.\n",
            *["| file | bytes |", "| --- | ---: |", *sizes],
            "",
        ]
    )


def _variants(config: ModelConfig) -> Iterable[str]:
    """What the variants are, how far they are from the exact graph, and what they gain."""
    for variant in config.variants:
        device = {"cpu": "a processor", "cuda": "a GPU"}[variant.device]
        yield f"\n## Variant {variant.name}, for {device}\n\n`{variant.file}`, chosen by"
        yield f"`SEQSERVE_VARIANT={variant.name}`.\n"
        yield "| measure | split | exact | variant |\n| --- | --- | ---: | ---: |"
        for exact, found in zip(config.provenance.metrics, variant.metrics, strict=True):
            yield f"| {exact.name} | {exact.split} | {exact.value:.5g} | {found.value:.5g} |"
        steps = max(part.steps for part in variant.drift)
        yield f"\nApart from the exact graph over {steps:,} steps with state carried:\n"
        yield "| output | largest | mean | mean of the last tenth |\n| --- | ---: | ---: | ---: |"
        for part in variant.drift:
            yield f"| {part.output} | {part.largest:.2g} | {part.mean:.2g} | {part.late:.2g} |"
        yield from _speed_up(variant)


def _speed_up(variant: Variant) -> Iterable[str]:
    if not variant.speed_up:
        yield f"\nQuality is that of {variant.name} arithmetic computed on a processor; time was not measured."
        return
    yield "\nProcessor time of a step, exact over variant, one thread:\n"
    yield "| sessions in a batch | ratio | processor |\n| ---: | ---: | --- |"
    for part in variant.speed_up:
        yield f"| {part.batch_size} | {part.ratio:.2f} | {part.processor} |"


def sentence(metric: Metric) -> str:
    """A metric in words, its floor beside it."""
    return f"{metric.name} on {metric.split}: {metric.value:.5g}, floor {_floor(metric)}"


def _floor(metric: Metric) -> str:
    return "unknown" if metric.floor is None else f"{metric.floor:.4g} ({metric.floor_name})"


def _origin(config: ModelConfig) -> Iterable[str]:
    provenance = config.provenance
    if provenance.seed is not None:
        yield f"Seed {provenance.seed}, source at commit `{provenance.git_commit or 'unknown'}`, with"
        yield ", ".join(f"{name} {version}" for name, version in provenance.versions.items()) + "."
    for dataset in provenance.datasets:
        yield f"\nData: {dataset.name}, licence {dataset.licence}. SHA-256:\n"
        yield from (f"- `{name}` `{value}`" for name, value in dataset.sha256.items())
