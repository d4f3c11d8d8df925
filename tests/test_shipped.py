"""What `make models` rebuilds is what exported/ holds, and it stays small enough to be cloned."""

from __future__ import annotations

import re
from pathlib import Path

from service.contract import ALL_SCORES, CONFIG_FILE, MODEL_FILE, TOP_K, NextWord, decode_config
from service.engine.graph import Graph
from training.config import TrainedRun
from training.export.variants import STEPS, accept
from training.runs import load

ROOT = Path(__file__).parents[1]
LIMIT = 40 * 2**20


def shipped() -> dict[str, str]:
    """Configuration of each shipped model, by the model's name."""
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    match = re.search(r"^SHIPPED := (.*)$", makefile, re.MULTILINE)
    assert match is not None
    return {load(ROOT / "training" / "configs" / f"{c}.toml").name: c for c in match[1].split()}


def test_make_models_rebuilds_what_is_exported() -> None:
    exported = {path.parts[-3] for path in (ROOT / "exported").glob(f"*/*/{CONFIG_FILE}")}
    assert shipped().keys() == exported


def test_a_sibling_that_can_be_stepped_is_exported_too() -> None:
    for name in shipped():
        config = decode_config((ROOT / "exported" / name / "1" / CONFIG_FILE).read_bytes())
        assert config.streaming or config.streaming_sibling in shipped()


def test_all_models_together_are_small() -> None:
    assert sum(p.stat().st_size for p in (ROOT / "exported").rglob("*") if p.is_file()) < LIMIT


def test_variants_are_those_that_the_configurations_ask_for() -> None:
    for name, config in shipped().items():
        run = load(ROOT / "training" / "configs" / f"{config}.toml")
        wanted = run.export.variants if isinstance(run, TrainedRun) else ()
        found = decode_config((ROOT / "exported" / name / "1" / CONFIG_FILE).read_bytes())
        assert tuple(variant.name for variant in found.variants) == wanted
        for variant in found.variants:
            accept(name, variant, found.provenance.metrics)
            assert min(part.steps for part in variant.drift) == STEPS


def test_language_models_can_be_asked_for_few_candidates_and_no_other_scores() -> None:
    found = {}
    for name in shipped():
        directory = ROOT / "exported" / name / "1"
        config = decode_config((directory / CONFIG_FILE).read_bytes())
        for file in (MODEL_FILE, *(variant.file for variant in config.variants)):
            if isinstance(config.task, NextWord):
                options = Graph((directory / file).read_bytes(), config).options
                assert found.setdefault(name, options) == options, file
    assert found == {
        "next-word-lstm": {TOP_K, ALL_SCORES},
        "next-word-transformer": {TOP_K, ALL_SCORES},
        # Of one cluster: to give all is to copy nothing.
        "shakespeare-gru": {TOP_K},
    }
