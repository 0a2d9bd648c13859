"""Tables in CSV files that people open: no text in them runs as a spreadsheet's formula."""

import re
from collections.abc import Callable

import pandas as pd

_FORMULA = re.compile(r"'*[=+\-@\t\r]")
"""How the text of a formula begins, after any number of the marks that `escape_formulas` sets."""


def escape_formulas(table: pd.DataFrame) -> pd.DataFrame:
    """Put ' before every text, headings too, that a spreadsheet would take for a formula.

    Class and file names come with the images, from elsewhere. Numbers stay as they are.
    See "CSV injection", https://owasp.org/www-community/attacks/CSV_Injection.
    """
    return _change(table, lambda text: f"'{text}")


def restore_formulas(table: pd.DataFrame) -> pd.DataFrame:
    """The table from which `escape_formulas` made this one."""
    return _change(table, lambda text: text.removeprefix("'"))


def _change(table: pd.DataFrame, change: Callable[[str], str]) -> pd.DataFrame:
    changed = table.rename(columns=lambda name: change(name) if _is_formula(name) else name)
    for position in range(table.shape[1]):
        column = table.iloc[:, position]
        if any(formulas := [_is_formula(cell) for cell in column]):
            pairs = zip(column, formulas, strict=True)
            cells = [change(cell) if is_formula else cell for cell, is_formula in pairs]
            changed.isetitem(position, pd.Series(cells, column.index, dtype=object))
    return changed


def _is_formula(cell: object) -> bool:
    return isinstance(cell, str) and _FORMULA.match(cell) is not None
