"""What all tasks have in common: inputs at once are read as each by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from service.errors import Invalid
from service.tasks.protocol import Parameters, Task, chunk_of, join_pieces

PARAMETERS = Parameters()


def compare(task: Task, values: list[Any]) -> None:
    """What `chunk_of` makes of all is what `piece` makes of each, or the error of the first that it refuses."""
    expected = None
    try:
        pieces = [task.piece(value, f"$.inputs[{i}]") for i, value in enumerate(values)]
    except Invalid as refusal:
        expected = refusal
    if expected is not None:
        with pytest.raises(Invalid) as error:
            chunk_of(task, values, "$.inputs", PARAMETERS)
        assert (error.value.detail, error.value.extra) == (expected.detail, expected.extra)
        return
    due = join_pieces(pieces, PARAMETERS, every_step=task.every_step)
    chunk = chunk_of(task, values, "$.inputs", PARAMETERS)
    assert chunk.digest() == due.digest()
    assert chunk.ends.tolist() == due.ends.tolist()
    assert chunk.keep.tolist() == due.keep.tolist()
    for name, array in due.arrays.items():
        assert chunk.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(chunk.arrays[name], array)
