from __future__ import annotations

import json
import re
from http import HTTPStatus

import pytest

from service import errors
from service.errors import Draining, Overloaded, ServiceError, TooLarge, WrongSeq

ALL = sorted(
    (e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, ServiceError)),
    key=lambda error: error.code,
)


@pytest.mark.parametrize("error", ALL)
def test_every_error_has_a_status_a_code_a_title_and_a_sentence(error: type[ServiceError]) -> None:
    assert HTTPStatus(error.status) >= 400
    assert re.fullmatch("[a-z_]+", error.code)
    assert error.title
    assert error.__doc__


def test_codes_are_unique() -> None:
    assert len({error.code for error in ALL}) == len(ALL)


@pytest.mark.parametrize("error", ALL)
def test_close_codes_are_ours_or_the_protocols(error: type[ServiceError]) -> None:
    close_code = error("detail").close_code
    assert close_code == 4000 + error.status or close_code in (1009, 1012)


def test_close_codes_of_the_protocol_are_used_where_it_has_one() -> None:
    assert (TooLarge("x").close_code, Draining("x").close_code) == (1009, 1012)


def test_a_problem_names_what_happened_and_what_helps() -> None:
    error = WrongSeq("session s has 5 inputs committed", committed=5, expected=6)
    assert json.loads(json.dumps(error.problem())) == {
        "type": "urn:seqserve:error:wrong_seq",
        "title": "Wrong sequence number",
        "status": 409,
        "detail": "session s has 5 inputs committed",
        "code": "wrong_seq",
        "committed": 5,
        "expected": 6,
    }
    assert str(Overloaded("full")) == "full"
