"""Checksums: values worked by hand, and no changed value passes."""

import io
from pathlib import Path

import pytest

from kd_pipeline.checksums import checked_dumps, checked_loads, file_checksum


def test_the_checksum_of_a_file_is_its_crc32(tmp_path: Path) -> None:
    """The check value of CRC-32 is that of the nine digits."""
    (tmp_path / "file").write_bytes(b"123456789")
    assert file_checksum(tmp_path / "file") == file_checksum(io.BytesIO(b"123456789")) == "cbf43926"
    assert file_checksum(io.BytesIO(b"")) == "00000000"


def test_a_large_file_is_read_to_its_end(tmp_path: Path) -> None:
    content = bytearray(3 * 2**20 + 5)
    before = file_checksum(io.BytesIO(content))
    content[-1] ^= 1
    assert file_checksum(io.BytesIO(content)) != before


def test_a_seal_breaks_with_any_value() -> None:
    text = checked_dumps({"a": 1, "b": [1.5, None, "ü"]})
    assert checked_loads(text) == {"a": 1, "b": [1.5, None, "ü"]}
    with pytest.raises(ValueError, match="checksum differs"):
        checked_loads(text.replace("1.5", "1.25"))
    with pytest.raises(ValueError, match="checksum differs"):
        checked_loads('{"a": 1}')
    with pytest.raises(TypeError, match="no JSON object"):
        checked_loads("[]")


def test_a_seal_holds_for_keys_that_json_turns_into_text() -> None:
    assert checked_loads(checked_dumps({"epochs": {10: "x", 9: (1, 2)}})) == {
        "epochs": {"10": "x", "9": [1, 2]}
    }


def test_not_a_number_is_sealed_only_where_it_is_allowed() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        checked_dumps({"loss": float("nan")})
    assert checked_loads(checked_dumps({"loss": float("nan")}, allow_nan=True))["loss"] != 0
