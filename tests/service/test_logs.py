from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from service import logs


def line(record: logging.LogRecord) -> dict[str, Any]:
    text = logs.JsonFormatter().format(record)
    assert "\n" not in text
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def record(message: str, *arguments: object, **fields: Any) -> logging.LogRecord:
    made = logging.LogRecord("service.x", logging.WARNING, __file__, 1, message, arguments, None)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


@pytest.fixture
def ids() -> Iterator[None]:
    request, session = logs.request_id.set("r-1"), logs.session_id.set("s-1")
    yield
    logs.request_id.reset(request)
    logs.session_id.reset(session)


def test_a_record_is_one_line_of_json() -> None:
    found = line(record("model %s\nis ready", "m", created=0.5))
    assert datetime.fromisoformat(found.pop("time")) == datetime.fromtimestamp(0.5, UTC)
    assert found == {
        "level": "warning",
        "logger": "service.x",
        "message": "model m\nis ready",
    }


@pytest.mark.usefixtures("ids")
def test_the_ids_at_hand_are_named() -> None:
    found = line(record("hello"))
    assert (found["request_id"], found["session"]) == ("r-1", "s-1")


def test_data_stands_beside_the_message() -> None:
    found = line(
        record("hello", data={"status": 200, "path": Path("/x"), "error": ValueError("y")})
    )
    assert (found["status"], found["path"], found["error"]) == (200, "/x", "y")


def test_an_exception_is_told_with_its_traceback() -> None:
    try:
        raise KeyError("missing")
    except KeyError as error:
        found = line(record("failed", exc_info=(type(error), error, error.__traceback__)))
    assert "Traceback" in found["exception"]
    assert "KeyError: 'missing'" in found["exception"]


def test_the_whole_process_logs_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        logs.configure("info")
        logging.getLogger("anything").info("seen")
        logging.getLogger("anything").debug("not seen")
    finally:
        root.handlers[:] = before
        root.setLevel(level)
    (written,) = capsys.readouterr().err.splitlines()
    assert json.loads(written)["message"] == "seen"
