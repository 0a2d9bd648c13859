"""digits: the packaged default."""

import numpy as np

from kd_pipeline.data.settings import DigitsSource
from kd_pipeline.data.sources_digits import list_digits


def test_values_0_to_16_become_0_to_255() -> None:
    from sklearn.datasets import load_digits

    listing = list_digits(DigitsSource(kind="digits"))
    assert listing.decoded is not None
    assert listing.decoded.shape == (1797, 1, 8, 8)
    assert listing.class_names == tuple("0123456789")
    assert set(listing.partitions) == {"pool"}
    np.testing.assert_array_equal(listing.example_ids, np.arange(1797))
    raw = load_digits().images
    np.testing.assert_array_equal(listing.labels, load_digits().target)
    # By hand: 8 * 255 / 16 = 127.5, rounded half to even.
    for value, expected in ((0, 0), (1, 16), (8, 128), (16, 255)):
        assert set(listing.decoded[:, 0][raw == value]) == {expected}
