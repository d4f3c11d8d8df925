from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.next_word.columns import columns, share, window, window_count

sizes = st.tuples(st.integers(1, 5), st.integers(2, 60), st.integers(0, 4), st.integers(1, 20))


@given(sizes)
def test_windows_follow_each_other_without_a_gap(size: tuple[int, int, int, int]) -> None:
    batch_size, length, left_over, bptt = size
    text = columns(torch.arange(batch_size * length + left_over % batch_size), batch_size)
    pairs = [window(text, i, bptt) for i in range(window_count(text, bptt))]
    assert torch.equal(torch.cat([tokens for tokens, _ in pairs], dim=1), text[:, :-1])
    assert torch.equal(torch.cat([targets for _, targets in pairs], dim=1), text[:, 1:])
    assert all(0 < tokens.shape[1] <= bptt for tokens, _ in pairs)


def test_columns_are_contiguous_pieces_of_the_text() -> None:
    assert columns(torch.arange(7), 2).tolist() == [[0, 1, 2], [3, 4, 5]]


def test_the_shares_of_all_processes_make_the_whole() -> None:
    text = columns(torch.arange(24), 6)
    assert torch.equal(torch.cat([share(text, rank, 3) for rank in range(3)]), text)


def test_columns_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="6 columns do not divide over 4"):
        share(torch.zeros(6, 3), 0, 4)


def test_a_text_too_short_for_its_columns_is_refused() -> None:
    with pytest.raises(ValueError, match="3 tokens are too few for 2 columns"):
        columns(torch.arange(3), 2)
