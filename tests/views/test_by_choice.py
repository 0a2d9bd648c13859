"""Operations by row: each row goes through its own and no other."""

import pytest
import torch

from kd_pipeline.views.by_choice import change_by_choice


def test_every_row_goes_through_its_own_operation() -> None:
    images = torch.arange(5.0).view(5, 1, 1, 1)
    seen: list[list[int]] = []

    def add_ten(rows: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        seen.append(sorted(positions.tolist()))
        return rows + 10

    choices = torch.tensor([2, 0, 1, 2, 1])
    changed = change_by_choice(images, choices, (None, lambda rows, _: rows * 0 - 1, add_ten))
    assert changed.flatten().tolist() == [10, 1, -1, 13, -1]
    assert seen == [[0, 3]]
    assert images.flatten().tolist() == [0, 1, 2, 3, 4]


def test_a_choice_beyond_the_operations_is_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        change_by_choice(torch.zeros(2, 1, 1, 1), torch.tensor([0, 2]), (None, None))


def test_an_operation_that_no_row_has_is_not_called() -> None:
    def fail(rows: torch.Tensor, _positions: torch.Tensor) -> torch.Tensor:
        raise AssertionError

    images = torch.ones(2, 1, 1, 1)
    assert change_by_choice(images, torch.tensor([0, 0]), (None, fail, fail)).equal(images)
