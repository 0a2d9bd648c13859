"""docs/faults.md: every row has the form that is counted, and names a test that exists."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "faults.md"


def test_every_row_names_an_outcome_and_a_test_that_exists() -> None:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line[:2] == "| "][1:]
    assert len(rows) >= 15
    for row in rows:
        found = re.fullmatch(r"\|.*\| (survived|refused) \|.*\| `([\w/.]+)::(\w+)` \|", row)
        assert found, row
        functions = ast.walk(ast.parse((TESTS / found[2]).read_text(encoding="utf-8")))
        assert found[3] in {f.name for f in functions if isinstance(f, ast.FunctionDef)}, row
