"use strict";
// Draws the figures in the colours of the page, and again when these change; sorts the table of candidates.
const figures = JSON.parse(document.getElementById("figures").textContent);

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function axis(given) {
  const title = { ...(given.title || {}), standoff: 8 };
  return {
    gridcolor: colour("--grid"), zerolinecolor: colour("--line"), linecolor: colour("--line"),
    automargin: true, ...given, title,
  };
}

function layout(given, element) {
  const narrow = element.clientWidth < 560;
  const drawn = {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: colour("--ink"), family: "system-ui, sans-serif", size: narrow ? 11 : 13 },
    margin: { l: 56, r: 12, t: 12, b: 48 }, hovermode: "closest", autosize: true,
    hoverlabel: { bgcolor: colour("--card"), bordercolor: colour("--line"), align: "left",
                  font: { color: colour("--ink"), size: 12 } },
    showlegend: !element.classList.contains("bare"),
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
    ...given,
  };
  for (const name of ["xaxis", "xaxis2", "yaxis", "yaxis2"]) {
    if (given[name]) drawn[name] = axis(given[name]);
  }
  drawn.annotations = (given.annotations || []).map((note) => ({ ...note, bgcolor: colour("--card"), opacity: 0.9 }));
  return drawn;
}

function draw() {
  for (const [name, figure] of Object.entries(figures)) {
    const element = document.getElementById(name);
    const options = { responsive: true, displayModeBar: false };
    Plotly.react(element, figure.data, layout(figure.layout, element), options);
  }
}

function sort(table, column, down) {
  const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
  const rows = [...table.tBodies[0].rows];
  rows.sort((one, other) => {
    const [a, b] = [value(one), value(other)];
    if (a === "" || b === "") return (a === "") - (b === "");
    const order = a - b || a.localeCompare(b);
    return down ? -order : order;
  });
  table.tBodies[0].append(...rows);
}

for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      sort(table, column, down);
    });
  });
}

draw();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
addEventListener("beforeprint", draw);
addEventListener("afterprint", draw);
