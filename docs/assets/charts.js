"use strict";

// Draws the charts of a gallery page in the colours of the site, again when these change, and when a slider moves.
(() => {
  const config = { displayModeBar: false, responsive: true };

  function themed(layout) {
    const colour = (name) => getComputedStyle(document.body).getPropertyValue(name).trim();
    const ink = colour("--md-default-fg-color--light");
    const grid = colour("--chart-grid");
    const result = { ...layout, font: { ...layout.font, color: ink } };
    for (const name of Object.keys(layout).filter((each) => /^[xy]axis\d*$/.test(each))) {
      result[name] = { ...layout[name], gridcolor: grid, linecolor: grid, tickcolor: grid };
    }
    return result;
  }

  const charts = [...document.querySelectorAll(".chart")].map((box) => {
    const chart = JSON.parse(box.querySelector("script").textContent);
    const plot = box.appendChild(document.createElement("div"));
    const frames = chart.frames;
    let shown = frames.length - 1;

    function draw() {
      const frame = frames[shown];
      const data = frame ? chart.data.map((trace, place) => ({ ...trace, visible: frame.visible[place] })) : chart.data;
      Plotly.react(plot, data, themed(frame ? { ...chart.layout, ...frame.layout } : chart.layout), config);
    }

    if (frames.length) {
      const label = box.appendChild(document.createElement("label"));
      const text = label.appendChild(document.createElement("output"));
      const slider = label.appendChild(Object.assign(document.createElement("input"), {
        type: "range", min: 0, max: frames.length - 1, value: shown,
      }));
      text.textContent = frames[shown].label;
      slider.addEventListener("input", () => {
        shown = Number(slider.value);
        text.textContent = frames[shown].label;
        draw();
      });
    }
    draw();
    return draw;
  });

  new MutationObserver(() => charts.forEach((draw) => draw())).observe(document.body, {
    attributeFilter: ["data-md-color-scheme"],
  });
})();
