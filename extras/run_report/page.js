"use strict";
const curves = JSON.parse(document.getElementById("curves").textContent);
const plots = [];
const style = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
// A page that refreshes keeps the part that was zoomed into, where the browser lets a file keep something.
const key = "zoom " + curves.key;
let zoom = null;
try { zoom = JSON.parse(sessionStorage.getItem(key)); } catch (error) { zoom = null; }
let isZooming = false;

function markBest(plot) {
  if (curves.best === null) return;
  const x = plot.valToPos(curves.best, "x", true);
  const { left, top, width, height } = plot.bbox;
  if (x < left || x > left + width) return;
  const context = plot.ctx;
  context.save();
  context.strokeStyle = style("--green");
  context.lineWidth = devicePixelRatio;
  context.setLineDash([4 * devicePixelRatio, 4 * devicePixelRatio]);
  context.beginPath();
  context.moveTo(x, top);
  context.lineTo(x, top + height);
  context.stroke();
  context.restore();
}

function zoomAll(plot, name) {
  if (name !== "x" || isZooming) return;
  isZooming = true;
  const { min, max } = plot.scales.x;
  for (const other of plots) if (other !== plot) other.setScale("x", { min, max });
  isZooming = false;
  const all = min <= curves.epochs[0] && max >= curves.epochs[curves.epochs.length - 1];
  try { all ? sessionStorage.removeItem(key) : sessionStorage.setItem(key, JSON.stringify({ min, max })); } catch (error) { return; }
}

function shown(value) { return value === null || value === undefined ? "--" : Number(value.toPrecision(5)).toString(); }

function draw() {
  const room = document.getElementById("plots");
  for (const plot of plots.splice(0)) plot.destroy();
  room.replaceChildren();
  const colours = [style("--orange"), style("--blue")];
  const few = curves.epochs.length <= 50;
  for (const panel of curves.panels) {
    const box = document.createElement("div");
    box.className = "plot";
    const title = document.createElement("h3");
    title.textContent = panel.title;
    box.append(title);
    room.append(box);
    const axis = { stroke: style("--soft"), grid: { stroke: style("--line"), width: 1 }, ticks: { stroke: style("--line"), width: 1 } };
    const lines = panel.lines.map(line => ({
      label: line.name, stroke: colours[line.name.startsWith("val/") || panel.lines.length === 1 ? 1 : 0], width: 2,
      spanGaps: true, points: { show: few, size: 5 }, value: (plot, value) => shown(value),
    }));
    const last = curves.epochs[curves.epochs.length - 1];
    plots.push(new uPlot({
      width: Math.max(box.clientWidth - 20, 200), height: 220,
      scales: { x: { time: false, range: (plot, min, max) => min === max ? [min - 0.5, max + 0.5] : [min, max] } },
      axes: [{ ...axis, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000] },
             { ...axis, size: 64, values: (plot, values) => values.map(shown) }],
      cursor: { sync: { key: "epoch" }, drag: { x: true, y: false } },
      series: [{ label: "epoch" }, ...lines],
      hooks: { draw: [markBest], setScale: [zoomAll] },
    }, [curves.epochs, ...panel.lines.map(line => line.values)], box));
    if (zoom && last !== undefined) plots[plots.length - 1].setScale("x", zoom);
  }
}

if (curves.epochs.length) {
  draw();
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; draw(); } });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
}
