"use strict";
const curves = JSON.parse(document.getElementById("curves").textContent);
const plots = [];
const style = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function compare(a, b) {
  const [x, y] = [Number(a), Number(b)];
  return a !== "" && b !== "" && !isNaN(x) && !isNaN(y) ? x - y : a.localeCompare(b);
}

function sortBy(place, head) {
  const body = document.querySelector("#runs tbody");
  const sign = head.getAttribute("aria-sort") === "descending" ? 1 : -1;
  for (const other of document.querySelectorAll("#runs th")) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
  const value = row => row.children[place].dataset.value;
  const rows = [...body.rows];
  // A run without a value stays below those that have one.
  rows.sort((a, b) => (value(a) === "") - (value(b) === "") || sign * compare(value(a), value(b)));
  body.append(...rows);
}

document.querySelectorAll("#runs th").forEach((head, place) => head.addEventListener("click", () => sortBy(place, head)));

function shown(value) { return value === null || value === undefined ? "--" : Number(value.toPrecision(5)).toString(); }

function draw() {
  const room = document.getElementById("plots");
  for (const plot of plots.splice(0)) plot.destroy();
  room.replaceChildren();
  for (const panel of curves.panels) {
    const box = document.createElement("div");
    box.className = "plot";
    const title = document.createElement("h3");
    title.textContent = panel.title;
    box.append(title);
    room.append(box);
    const axis = { stroke: style("--soft"), grid: { stroke: style("--line"), width: 1 }, ticks: { stroke: style("--line"), width: 1 } };
    const lines = panel.lines.map(line => ({
      label: line.name, stroke: style("--c" + line.colour), width: 2, spanGaps: true,
      points: { show: curves.epochs.length <= 50, size: 5 }, value: (plot, value) => shown(value),
    }));
    plots.push(new uPlot({
      width: Math.max(box.clientWidth - 20, 200), height: 260,
      scales: { x: { time: false, range: (plot, min, max) => min === max ? [min - 0.5, max + 0.5] : [min, max] } },
      axes: [{ ...axis, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000] },
             { ...axis, size: 64, values: (plot, values) => values.map(shown) }],
      cursor: { sync: { key: "epoch" }, drag: { x: true, y: false } },
      series: [{ label: "epoch" }, ...lines],
    }, [curves.epochs, ...panel.lines.map(line => line.values)], box));
  }
}

if (curves.epochs.length) {
  draw();
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; draw(); } });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
}
