"""The language models of the tests as tasks."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.contract import CONFIG_FILE, NextWord, decode_config
from service.tasks.next_word import NextWordTask
from tests.models import CHARACTERS, character_model, tokenizer


def _task(directory: Path, tokens: bytes) -> NextWordTask:
    config = decode_config((directory / CONFIG_FILE).read_bytes())
    assert isinstance(config.task, NextWord)
    return NextWordTask(config, config.task, tokens)


@pytest.fixture
def task(language: Path) -> NextWordTask:
    """Over words."""
    return _task(language, tokenizer())


@pytest.fixture
def characters(tmp_path: Path) -> NextWordTask:
    """Over characters."""
    return _task(character_model(tmp_path), tokenizer(CHARACTERS))
