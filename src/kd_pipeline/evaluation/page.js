"use strict";
// Every heading of a table becomes a button that sorts its rows: numbers by their first number,
// such as 95.37 of "95.37 ± 0.35"; 20261130-101355-3b33 is a name.

const NUMBER = /^[<>≤≥~]?\s*([+-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?)(?![^\s%])/i;

function valueOf(text) {
  const found = NUMBER.exec(text);
  return found ? Number(found[1].replaceAll(",", "")) : null;
}

function textOf(row, column) {
  const text = (row.cells[column]?.textContent ?? "").trim();
  return text === "-" ? "" : text;
}

function sortBy(table, head) {
  const column = head.cellIndex;
  const sign = head.ariaSort === "ascending" ? -1 : 1;
  const rows = [...table.tBodies[0].rows].map((row) => {
    const text = textOf(row, column);
    return { row, text, value: valueOf(text) };
  });
  const isNumeric = rows.every(({ text, value }) => text === "" || value !== null);
  rows.sort((a, b) => {
    if (a.text === "" || b.text === "") return (a.text === "") - (b.text === "");  // Last.
    return sign * (isNumeric ? a.value - b.value : a.text.localeCompare(b.text));
  });
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.ariaSort = sign === 1 ? "ascending" : "descending";
  table.tBodies[0].append(...rows.map(({ row }) => row));
}

for (const table of document.querySelectorAll("table")) {
  if (!table.tBodies.length) continue;
  for (const head of table.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => sortBy(table, head));
  }
}
