"""What the README and the guide show is what a service with the shipped models answers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import readme
from tests.integration import process
from tests.integration.process import Service

EXPORTED = readme.README.parent / "exported"
EXAMPLES = list(readme.examples(readme.README.read_text()))
_NUMBER = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")
_PASSING = re.compile(r'"(created_at|idle_s|request_id)":("[^"]*"|[\d.e-]+)')


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    running = process.start(EXPORTED, tmp_path_factory.mktemp("readme") / "log")
    yield running
    assert process.stop(running) == 0


def parts(output: str) -> tuple[list[str], list[float]]:
    """Text and numbers of an output, without what differs from run to run."""
    output = _PASSING.sub(r'"\1":', output)
    return _NUMBER.split(output), [float(number) for number in _NUMBER.findall(output)]


def check(examples: list[tuple[list[str], str]], shipped: Service) -> None:
    for command, expected in examples:
        text, numbers = parts(readme.run(command, f"127.0.0.1:{shipped.port}"))
        expected_text, expected_numbers = parts(expected.strip("\n") + "\n")
        assert text == expected_text, command
        # Not to the last digit: processors differ there.
        assert numbers == pytest.approx(expected_numbers, rel=1e-2), command


def test_every_example_of_the_readme_answers_as_it_says_in_the_order_it_stands(
    shipped: Service,
) -> None:
    assert len(EXAMPLES) >= 10
    check(EXAMPLES, shipped)


def test_every_example_of_the_guide_answers_as_it_says(shipped: Service) -> None:
    found = list(readme.examples(readme.GUIDE.read_text()))
    assert found
    check(found, shipped)


def test_every_file_the_readme_links_to_is_there() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", readme.README.read_text())
    assert links
    assert [link for link in links if not Path(readme.README.parent, link).exists()] == []
