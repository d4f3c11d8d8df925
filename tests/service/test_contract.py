from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.contract import (
    CONFIG_FILE,
    GOLDEN_FILE,
    ContractError,
    Golden,
    GoldenCase,
    StateTensor,
    decode_config,
    decode_golden,
    digest,
    encode,
)


@pytest.fixture
def config(language: Path) -> dict[str, Any]:
    """config.json of the language model, to be spoilt."""
    loaded: dict[str, Any] = json.loads((language / CONFIG_FILE).read_bytes())
    return loaded


@pytest.fixture
def labels(planner: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((planner / CONFIG_FILE).read_bytes())
    return loaded


def refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        decode_config(json.dumps(config).encode())


@pytest.mark.parametrize("model", ["accumulator", "language", "planner"])
def test_what_is_written_is_read_again(model: str, request: pytest.FixtureRequest) -> None:
    directory: Path = request.getfixturevalue(model)
    config = decode_config((directory / CONFIG_FILE).read_bytes())
    assert decode_config(encode(config)) == config
    golden = decode_golden((directory / GOLDEN_FILE).read_bytes())
    assert decode_golden(encode(golden, indent=None)) == golden


def test_text_ends_with_a_newline_and_is_one_line_if_asked() -> None:
    golden = Golden(cases=(GoldenCase(inputs={}, split=(), outputs={}, state={}),))
    assert encode(golden).endswith(b"}\n")
    assert encode(golden, indent=None).count(b"\n") == 1


@pytest.mark.parametrize("version", [0, 2, 99])
def test_an_unknown_schema_version_is_refused_before_anything_else(version: int) -> None:
    with pytest.raises(ContractError, match=f"schema_version {version} is unknown.*reads 1"):
        decode_config(json.dumps({"schema_version": version, "new": 1}).encode())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "config.json: Input data was truncated"),
        (b"not json", "config.json: JSON is malformed"),
        (b"[]", r"config.json: Expected `object`"),
        (b"{}", "missing required field `schema_version`"),
        (b'{"schema_version": 1}', "missing required field `name`"),
        (b'{"schema_version": "1"}', r"Expected `int`, got `str` - at `\$.schema_version`"),
        (b"\xff", "config.json: "),
    ],
)
def test_what_is_no_config_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        decode_config(data)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("colour",), "red", "unknown field `colour`"),
        (("batching", "max_rows"), 3, r"unknown field `max_rows` - at `\$.batching`"),
        (("task", "name"), "chess", "Invalid value 'chess'"),
        (("inputs", 0, "dtype"), "float16", "Invalid enum value 'float16'"),
        (("batching", "max_batch_size"), 0, r">= 1 - at `\$.batching.max_batch_size`"),
        (("batching", "max_chunk_length"), -1, ">= 1"),
        (("batching", "max_batch_tokens"), 0, ">= 1"),
        (("state", 0, "shape"), [1, 0], ">= 1"),
        (("version",), 0, ">= 1"),
        (("task", "top_k"), 1, ">= 2"),
        (("state", 0, "initial"), [1.0, 2.0], r"state h of shape \(1, 8\) has 2 initial values"),
        (("inputs",), [], "the task takes one input, not 0"),
        (("task", "vocab_size"), 13, r"needs an output logits of shape \(13,\), declared is \(12,"),
        (("outputs", 1, "name"), "best", "needs an output top_scores .*declared is None"),
        (("outputs", 2, "shape"), [5], r"needs an output top_indices of shape \(6,\)"),
    ],
)
def test_what_is_wrong_is_named(
    config: dict[str, Any], path: tuple[Any, ...], value: Any, message: str
) -> None:
    place: Any = config
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    refused(config, message)


def test_a_labels_model_gives_a_score_for_each_label(labels: dict[str, Any]) -> None:
    labels["task"]["labels"].append("theatre")
    refused(labels, r"needs an output scores of shape \(4,\), declared is \(3,\)")


def test_a_symbol_is_as_long_as_the_input(labels: dict[str, Any]) -> None:
    labels["task"]["symbols"]["foggy"] = [1.0]
    refused(labels, r"symbol foggy has 1 numbers, the input shape \(2,\)")


def test_a_state_begins_with_one_number_or_with_each() -> None:
    def state(initial: Any, dtype: Any = "float32") -> np.ndarray:
        return StateTensor(
            input_name="a", output_name="b", shape=(2, 2), dtype=dtype, initial=initial
        ).initial_array()

    assert state(0.5).tolist() == [[0.5, 0.5], [0.5, 0.5]]
    assert state((1.0, 2.0, 3.0, 4.0)).tolist() == [[1, 2], [3, 4]]
    assert state(2.0, "int64").dtype == np.int64


def test_the_size_of_the_state_is_known(language: Path, planner: Path) -> None:
    sizes = [
        decode_config((d / CONFIG_FILE).read_bytes()).state_nbytes for d in (language, planner)
    ]
    assert sizes == [2 * 8 * 4, 6 * 4]


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"cases": [{}]}', b'{"cases": [], "x": 1}'])
def test_what_is_no_golden_file_is_refused(data: bytes) -> None:
    with pytest.raises(ContractError, match=r"golden\.json: "):
        decode_golden(data)


def test_a_digest_is_the_sha_256_in_hexadecimal() -> None:
    assert digest(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


_READERS = """
import sys, threading
from pathlib import Path
from service.contract import decode_config, decode_golden

config, golden = (Path(sys.argv[1], f"{name}.json").read_bytes() for name in ("config", "golden"))
start = threading.Barrier(8)


def read():
    start.wait()
    decode_config(config)
    decode_golden(golden)


threads = [threading.Thread(target=read) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_threads_may_be_the_first_to_read_together(language: Path) -> None:
    """As when models load side by side; in a process of its own, since only the first reading can go wrong."""
    for _ in range(3):
        subprocess.run([sys.executable, "-c", _READERS, language], check=True, timeout=60)
