// Tables sort by the column whose head is clicked; a network's row and its points light up together. Pages say all without it.
function value(cell) {
  const text = cell.dataset.v ?? cell.textContent.trim();
  const number = parseFloat(text.replace(/,/g, ""));
  return text === "" || text === "–" ? null : Number.isNaN(number) ? text : number;
}
function before(a, b) {
  return typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1;
}
for (const table of document.querySelectorAll("table.sort")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    if (!head.textContent.trim()) return;
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const rows = [...table.tBodies[0].rows].map((row) => [value(row.cells[column]), row]);
      rows.sort(([a], [b]) => a === null || b === null ? (a === null) - (b === null) : (up ? 1 : -1) * before(a, b));
      table.tBodies[0].append(...rows.map(([, row]) => row));
    });
  });
}
for (const part of document.querySelectorAll("[data-row]")) {
  const same = document.querySelectorAll(`[data-row="${CSS.escape(part.dataset.row)}"]`);
  part.addEventListener("mouseenter", () => same.forEach((other) => other.classList.add("lit")));
  part.addEventListener("mouseleave", () => same.forEach((other) => other.classList.remove("lit")));
}
