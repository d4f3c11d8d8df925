"""Exported test models, written once for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import models


@pytest.fixture(scope="session")
def accumulator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of an exported accumulator."""
    return models.accumulator(tmp_path_factory.mktemp("accumulator"))


@pytest.fixture(scope="session")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of an exported language model."""
    return models.language_model(tmp_path_factory.mktemp("language"))


@pytest.fixture(scope="session")
def planner() -> Path:
    """Directory of the shipped weekend planner."""
    return Path(__file__).parents[1] / "exported" / "weekend-planner" / "1"
