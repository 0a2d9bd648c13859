"""Boxes: the first candidate that fits, and the pixels inside."""

import torch

from kd_pipeline.views.boxes import first_valid, inside, whole_sides


def test_the_first_valid_candidate_is_taken() -> None:
    one = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    valid = torch.tensor([[False, True, True], [True, False, False], [False, False, False]])
    (first, second), found = first_valid((one, one * 10), valid)
    assert first.tolist() == [2, 4, 0]
    assert second.tolist() == [20, 40, 0]
    assert found.tolist() == [True, True, False]


def test_sides_have_the_area_and_the_ratio() -> None:
    first, second = whole_sides(torch.tensor([[36.0, 36.0]]), torch.tensor([[4.0, 1.0]]))
    assert first.tolist() == [[12, 6]]
    assert second.tolist() == [[3, 6]]
    assert first.dtype == second.dtype == torch.int64


def test_inside_counts_the_pixels_of_a_box() -> None:
    edges = tuple(torch.tensor([edge]) for edge in (1, 0, 3, 2))
    found = inside(edges, (4, 3))[0, 0].int().tolist()
    assert found == [[0, 0, 0], [1, 1, 0], [1, 1, 0], [0, 0, 0]]
