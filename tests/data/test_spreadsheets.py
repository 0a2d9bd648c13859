"""Tables for spreadsheets: formulas are marked, everything else stays, and it can be undone."""

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd_pipeline.data.spreadsheets import escape_formulas, restore_formulas

TEXTS = st.text(alphabet="=+-@\t\r'a1 ", max_size=5)


@pytest.mark.parametrize(
    "text", ["=cmd|' /C calc'!A0", "+1+1", "-1-1", "@SUM(A1)", "\t=1", "\r=1", "'=1"]
)
def test_formulas_are_marked_in_cells_and_headings(text: str) -> None:
    escaped = escape_formulas(pd.DataFrame({text: ["a", text]}))
    assert escaped.columns.tolist() == [f"'{text}"]
    assert escaped.iloc[:, 0].tolist() == ["a", f"'{text}"]


def test_numbers_dates_and_other_texts_stay() -> None:
    table = pd.DataFrame(
        {"a": [-1.5, 2], "b": [-3, 4], "c": ["x=1", "it's"], "d": [None, "'a"], "e": [True, False]}
    )
    pd.testing.assert_frame_equal(escape_formulas(table), table)
    mixed = pd.DataFrame({"a": pd.Series([-1.5, "=1"], dtype=object)})
    assert escape_formulas(mixed)["a"].tolist() == [-1.5, "'=1"]


@given(cells=st.lists(TEXTS, min_size=1), headings=st.tuples(TEXTS, TEXTS))
def test_it_can_be_undone_and_leaves_no_formula(
    cells: list[str], headings: tuple[str, str]
) -> None:
    """Also where two columns have one heading."""
    table = pd.DataFrame({0: cells, 1: range(len(cells))})
    table.columns = pd.Index(headings, dtype=object)
    escaped = escape_formulas(table)
    shown = [*escaped.columns, *escaped.iloc[:, 0]]
    assert not any(text.startswith(("=", "+", "-", "@", "\t", "\r")) for text in shown)
    restored = restore_formulas(escaped)
    assert restored.columns.tolist() == list(headings)
    assert restored.iloc[:, 0].tolist() == cells
    assert table.iloc[:, 0].tolist() == cells
