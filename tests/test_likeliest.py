"""The k largest by blocks are `torch.topk`'s, to the last of them."""

import pytest
import torch

from vopd_recipes.loss.likeliest import likeliest


@pytest.mark.parametrize("size", [1, 63, 64, 5000, 49152 + 17])
@pytest.mark.parametrize("k", [0, 1, 5, 20, 100, 10**6])
@pytest.mark.parametrize("rows", [0, 1, 7])
def test_it_is_topk(rows: int, k: int, size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(rows, size, dtype=torch.float64, generator=generator)
    assert torch.equal(likeliest(values, k), values.topk(min(k, size), dim=-1).indices)


@pytest.mark.parametrize("largest", [torch.inf, torch.nan, 3.0])
def test_values_that_are_far_off_equal_or_none(largest: float) -> None:
    """All in one block, at both ends; the rest impossible tokens."""
    values = torch.full((2, 5003), -torch.inf)
    values[0, :3], values[1, -3:] = largest, largest
    assert sorted(likeliest(values, 3)[0].tolist()) == [0, 1, 2]
    assert sorted(likeliest(values, 3)[1].tolist()) == [5000, 5001, 5002]
    chosen = likeliest(values, 5)
    assert all(len(set(row)) == 5 for row in chosen.tolist())


def test_a_view_with_gaps() -> None:
    values = torch.randn(6, 9000, generator=torch.Generator().manual_seed(1))[::2, 3:-4]
    assert torch.equal(likeliest(values, 4), values.topk(4, dim=-1).indices)
