"""Draws: uniform, apart by name and count, and the same for a row wherever it stands."""

import torch
from scipy.stats import kstest

from kd_pipeline.views.stream import Stream

STREAM = Stream(torch.arange(4000), seed=0, position=0)


def test_draws_are_uniform_and_independent_of_one_another() -> None:
    found = STREAM.uniforms("area", 3, 2.0, 5.0)
    assert found.shape == (4000, 3)
    for column in found.T:
        assert kstest(column.numpy(), "uniform", args=(2, 3)).pvalue > 1e-3
    noise = torch.corrcoef(found.T) - torch.eye(3)
    assert noise.abs().max() < 0.06


def test_a_row_draws_the_same_wherever_it_stands() -> None:
    alone = Stream(torch.tensor([17]), seed=0, position=0)
    assert torch.equal(alone.uniforms("area", 4)[0], STREAM.uniforms("area", 4)[17])
    # More draws do not change the first.
    assert torch.equal(alone.uniforms("area", 9)[0, :4], STREAM.uniforms("area", 4)[17])


def test_names_seeds_and_positions_draw_apart() -> None:
    others = [
        STREAM.uniform("b"),
        Stream(STREAM.keys, 1, 0).uniform("a"),
        Stream(STREAM.keys, 0, 1).uniform("a"),
    ]
    for other in others:
        assert torch.corrcoef(torch.stack([STREAM.uniform("a"), other]))[0, 1].abs() < 0.06


def test_choices_are_equally_likely() -> None:
    counts = torch.bincount(STREAM.choices("operation", 5, 2).flatten())
    assert len(counts) == 5
    assert (counts - 1600).abs().max() < 6 * 36
    assert STREAM.happens("cut", 0.25).double().mean().sub(0.25).abs() < 0.04
    assert STREAM.happens("cut", 1.0).all()
    assert not STREAM.happens("cut", 0.0).any()
