"use strict";

// Draws every chart of the page in the reader's colours, again when these change, and when a slider moves.
const charts = JSON.parse(document.getElementById("charts").textContent);
const config = { displayModeBar: false, responsive: true, doubleClick: "reset" };
const finger = matchMedia("(pointer: coarse)").matches;

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function themed(layout) {
  const grid = colour("--grid");
  const result = { ...layout, dragmode: finger ? false : "zoom" };
  result.font = { ...layout.font, color: colour("--quiet") };
  result.hoverlabel = {
    ...layout.hoverlabel,
    bgcolor: colour("--card"),
    bordercolor: colour("--line"),
    font: { color: colour("--ink") },
  };
  for (const name of Object.keys(layout).filter((each) => /^[xy]axis\d*$/.test(each))) {
    result[name] = { ...layout[name], gridcolor: grid, linecolor: grid, tickcolor: grid };
  }
  return result;
}

function draw(key) {
  const chart = charts[key];
  const frame = chart.frames[chart.shown];
  const data = frame ? chart.data.map((trace, place) => ({ ...trace, visible: frame.visible[place] })) : chart.data;
  const layout = frame ? { ...chart.layout, ...frame.layout } : chart.layout;
  return Plotly.react(`${key}-plot`, data, themed(layout), config);
}

for (const key of Object.keys(charts)) {
  charts[key].shown = charts[key].frames.length - 1;
  draw(key);
}

for (const slider of document.querySelectorAll("input[data-chart]")) {
  slider.addEventListener("input", () => {
    const chart = charts[slider.dataset.chart];
    chart.shown = Number(slider.value);
    const label = chart.frames[chart.shown].label;
    slider.setAttribute("aria-valuetext", label);
    slider.parentElement.querySelector("output").textContent = label;
    draw(slider.dataset.chart);
  });
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => Object.keys(charts).forEach(draw));
