"""Exported test models, written once for all tests; and how properties are examined."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

from tests import models

# An example may take its time: machines differ, and the first one warms caches.
settings.register_profile("tests", deadline=None, print_blob=True)
settings.load_profile("tests")


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
