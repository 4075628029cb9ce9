"use strict";
// A heading's button sorts its table: by number where the column has numbers, else by text; what is missing stays last.
const byText = new Intl.Collator("en", { numeric: true }).compare;

function compared(one, other, numeric) {
  return numeric ? Number(one) - Number(other) : byText(one, other);
}

function sort(heading) {
  const direction = heading.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
  for (const other of heading.parentElement.children) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", direction);
  const column = heading.cellIndex;
  const numeric = heading.classList.contains("number");
  const sign = direction === "ascending" ? 1 : -1;
  const body = heading.closest("table").tBodies[0];
  const rows = [...body.rows].map((row) => {
    const cell = row.cells[column];
    const key = numeric ? cell.dataset.key : cell.textContent.trim();
    return { row, key, missing: key === undefined || cell.classList.contains("missing") };
  });
  rows.sort((a, b) => a.missing - b.missing || (a.missing ? 0 : sign * compared(a.key, b.key, numeric)));
  body.append(...rows.map((entry) => entry.row));
}

for (const heading of document.querySelectorAll("thead th")) {
  heading.querySelector("button").addEventListener("click", () => sort(heading));
}
