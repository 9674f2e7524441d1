"use strict";

// Draws the charts of the page: those in sight first, the others as the browser finds time. They are drawn anew in the
// reader's colours when these change, when a slider moves, and when the reader asks for another axis or for smoothing.
const charts = {}, waiting = []; // by key, and the keys in the order of the page
const config = { displayModeBar: false, responsive: true, doubleClick: "reset" };
const narrow = matchMedia("(max-width: 520px)");
const finger = matchMedia("(pointer: coarse)").matches;
const controls = document.getElementById("controls");
const runs = controls ? JSON.parse(controls.dataset.runs) : [];
const asked = { over: "step", scale: "", smoothing: 0 };
const LEAST = 240, AROUND_MAP = 24; // pixels of a map's height, and that one of full width is higher than wide
const drawn = new Set(), labelled = {}; // and of those that show findings, the labels of their marks

const box = (key) => document.getElementById(`${key}-plot`);
const isOverSteps = (layout) => layout.meta?.over === "steps";

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
    result[name] = { ...result[name], gridcolor: grid, linecolor: grid, tickcolor: grid };
  }
  return result;
}

// Steps as epochs or seconds of their run: between two that the record has, in proportion; beyond, as at the end.
function converted(step, run) {
  const [steps, values] = runs[run][asked.over];
  let at = 1;
  for (let low = 1, high = steps.length - 1; low <= high; ) {
    at = (low + high) >> 1;
    if (steps[at] < step) low = at + 1;
    else high = at - 1;
    at = Math.min(low, steps.length - 1);
  }
  const part = (step - steps[at - 1]) / (steps[at] - steps[at - 1]);
  return values[at - 1] + part * (values[at] - values[at - 1]);
}

const UNITS = [["hours", 3600], ["minutes", 60], ["seconds", 1]];

function timeUnit() {
  const last = Math.max(...runs.map((run) => run.time.at(-1).at(-1)));
  return UNITS.find(([, seconds]) => last > 3 * seconds) ?? UNITS.at(-1);
}

function overAsked(data, layout) {
  if (asked.over === "step" || !isOverSteps(layout)) return [data, layout];
  const [unit, seconds] = asked.over === "time" ? timeUnit() : ["epoch", 1];
  const at = (step, run) => (step === null ? null : converted(step, run) / seconds);
  const moved = data.map((trace) => ({ ...trace, x: trace.x.map((step, k) => at(step, trace.meta?.runs?.[k] ?? trace.meta?.run ?? 0)) }));
  const { range, dtick, ...axis } = layout.xaxis;
  const title = asked.over === "time" ? `${unit} since the start` : unit;
  const result = { ...layout, xaxis: { ...axis, title: { ...axis.title, text: title } } };
  const marks = layout.meta.marks?.map((each) => ({ ...each, x: at(each.x, each.run) }));
  const own = marks?.[0]?.run ?? 0; // lines lead through marks of one run alone
  result.shapes = (layout.shapes ?? []).map((each) => ({ ...each, x0: at(each.x0, own), x1: at(each.x1, own) }));
  result.meta = { ...layout.meta, marks };
  return [moved, result];
}

const isLine = (trace) => trace.type === "scatter" && !trace.stackgroup && !trace.meta?.mark && trace.mode !== "markers";

function scaled(data, layout) {
  if (!asked.scale || !isOverSteps(layout) || !data.some(isLine)) return [data, layout];
  const log = asked.scale === "log";
  const shown = data.map((trace) => {
    const all = trace.meta?.all ?? trace.y;
    return { ...trace, y: log ? all.map((y) => (y > 0 ? y : null)) : all };
  });
  const result = { ...layout };
  for (const name of Object.keys(layout).filter((each) => /^yaxis\d*$/.test(each))) {
    const { range, tickvals, ticktext, ...axis } = layout[name];
    result[name] = { ...axis, type: asked.scale, autorange: true };
  }
  return [shown, result];
}

// An average that forgets, begun without a bias; the numbers themselves stay behind it, faint.
function smoothed(data, layout) {
  if (!asked.smoothing || !isOverSteps(layout)) return data;
  return data.flatMap((trace) => {
    if (!isLine(trace) || trace.y.length < 3) return [trace];
    let sum = 0, weight = 0;
    const y = trace.y.map((value) => {
      if (value === null) return null;
      sum = asked.smoothing * sum + value;
      weight = asked.smoothing * weight + 1;
      return sum / weight;
    });
    const behind = { ...trace, opacity: 0.3 * (trace.opacity ?? 1), showlegend: false, hoverinfo: "skip", mode: "lines" };
    return [behind, { ...trace, y, mode: "lines" }];
  });
}

function figure(key) {
  const chart = charts[key];
  const frame = chart.frames[chart.shown];
  const framed = frame ? { ...chart.layout, ...frame.layout } : chart.layout;
  const given = frame ? chart.data.map((trace, at) => ({ ...trace, visible: frame.visible[at] })) : chart.data;
  const [data, layout] = scaled(...overAsked(given, framed));
  const named = layout.showlegend ? data.filter((trace) => trace.showlegend !== false).length : 0;
  const room = narrow.matches ? 19 * Math.max(0, named - 1) : 0; // where the names stand above each other
  const annotations = layout.meta?.marks ? labelled[key] : [];
  const square = layout.yaxis?.scaleanchor && narrow.matches ? Math.max(LEAST, box(key).clientWidth + AROUND_MAP) : Infinity;
  const height = Math.min(layout.height, square) + room; // a map that is no wider need not be higher
  return [smoothed(data, layout), { ...themed(layout), annotations, height }];
}

// Numbers of findings above their marks; of marks closer to each other than their labels are wide, one label for all.
const LETTER = 6.6, AROUND = 9; // pixels of a label's width

function numbers(group) {
  const parts = [];
  for (const number of group.map((mark) => mark.number).sort((a, b) => a - b)) {
    const last = parts.at(-1);
    if (last && number === last[1] + 1) last[1] = number;
    else parts.push([number, number]);
  }
  const told = parts.flatMap(([a, b]) => (b > a + 1 ? [`${a}–${b}`] : b > a ? [a, b] : [a]));
  return told.length > 4 ? `${group.length} findings` : told.join(", ");
}

function labels(marks, at, length) {
  const placed = (group) => {
    const text = numbers(group), width = text.length * LETTER + AROUND;
    return { group, text, start: Math.max(0, Math.min(at(group[0].x), length - width)), width };
  };
  const seen = marks.filter((mark) => at(mark.x) > -1 && at(mark.x) < length + 1);
  const found = seen.sort((a, b) => a.x - b.x || a.number - b.number).map((mark) => placed([mark]));
  for (let k = 1; k < found.length; ) {
    if (found[k].start >= found[k - 1].start + found[k - 1].width) k += 1;
    else {
      found.splice(k - 1, 2, placed([...found[k - 1].group, ...found[k].group]));
      k = Math.max(1, k - 1);
    }
  }
  return found.map(({ group, text, start }) => {
    const worst = group.reduce((one, other) => (other.grave > one.grave ? other : one));
    const alone = group.every((mark) => mark.run === worst.run);
    return {
      x: start / length, xref: "paper", xanchor: "left", y: 1, yref: "paper", yanchor: "bottom", yshift: 2, text,
      showarrow: false, borderpad: 2, borderwidth: 1, bordercolor: alone ? worst.colour : colour("--quiet"),
      bgcolor: colour("--card"), font: { size: 11, color: colour("--ink") }, name: "finding",
      hovertext: group.slice(0, 12).map((mark) => mark.said).join("<br>"),
    };
  });
}

// Anew whenever the axis changes: drawn, zoomed, or wider.
function label(key) {
  const axis = box(key)._fullLayout?.xaxis, marks = box(key).layout?.meta?.marks;
  if (!axis || !marks) return;
  const now = labels(marks, (x) => axis.d2p(x), axis._length);
  if (JSON.stringify(now) === JSON.stringify(labelled[key])) return;
  labelled[key] = now;
  Plotly.relayout(box(key), { annotations: now });
}

function draw(key) {
  if (!drawn.has(key)) box(key).replaceChildren(); // a still picture, seen until now
  const [data, { height, ...layout }] = figure(key);
  box(key).style.minHeight = `${height}px`; // and as high as what stands beside it: the chart fills its box
  const done = Plotly.react(box(key), data, layout, config);
  label(key);
  if (!drawn.has(key)) {
    drawn.add(key);
    if (isOverSteps(charts[key].layout)) {
      shareHover(key);
      box(key).on("plotly_relayout", () => label(key));
    }
  }
  return done;
}

// What is pointed at in one chart of a section is shown in all of them that are over steps.
let sharing = false;

function shareHover(key) {
  const section = box(key).closest("section");
  const others = () => (section ? [...section.querySelectorAll(".plot")] : []).filter((each) => {
    const chart = charts[each.id.replace(/-plot$/, "")];
    return each !== box(key) && each._fullLayout && isOverSteps(chart.layout) && chart.data.some(isLine);
  });
  const everywhere = (act) => {
    if (sharing) return;
    sharing = true;
    for (const each of others()) act(each);
    sharing = false;
  };
  box(key).on("plotly_hover", (event) => {
    const at = event.xvals?.[0] ?? event.points[0].x;
    everywhere((each) => Plotly.Fx.hover(each, { xval: at }, Object.keys(each._fullLayout._plots)));
  });
  box(key).on("plotly_unhover", () => everywhere((each) => Plotly.Fx.unhover(each)));
}

const later = window.requestIdleCallback ?? ((act) => setTimeout(act, 20));

function drawWaiting() {
  const next = waiting.findIndex((key) => !drawn.has(key));
  if (next < 0) {
    document.documentElement.dataset.ready = "all";
    return;
  }
  draw(waiting[next]);
  later(drawWaiting);
}

function drawAll() {
  for (const key of waiting) if (!drawn.has(key)) draw(key);
}

function redraw() {
  for (const key of drawn) draw(key);
}

// From nothing: Plotly keeps the margins it once made room with.
function drawAnew() {
  for (const key of [...drawn]) {
    Plotly.purge(box(key));
    drawn.delete(key);
    draw(key);
  }
}

const sight = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const key = entry.target.id.replace(/-plot$/, "");
    if (entry.isIntersecting && !drawn.has(key)) draw(key);
  }
}, { rootMargin: "200px" });

// Charts and the library that draws them lie packed in a file; of a page that is served they have come before this script.
async function unpacked(id) {
  const packed = Uint8Array.from(atob(document.getElementById(id).textContent), (each) => each.charCodeAt(0));
  return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"))).text();
}

async function unpack() {
  const figures = JSON.parse(await unpacked("charts"));
  if (!Object.keys(figures).length) return figures;
  const library = document.createElement("script");
  library.textContent = await unpacked("plotly");
  document.head.append(library); // and has run
  return figures;
}

function begin(figures) {
  Object.assign(charts, figures);
  waiting.push(...Object.keys(charts));
  for (const key of waiting) {
    charts[key].shown = charts[key].frames.length - 1;
    sight.observe(box(key));
  }
  later(drawWaiting);
}

function tooOld() {
  const note = document.createElement("p");
  note.className = "absent";
  note.textContent = "The charts need a browser of 2023 or later; their numbers stand in the table below each one.";
  document.getElementById("content").prepend(note);
}

if (window.Plotly) begin(JSON.parse(document.getElementById("charts").textContent));
else unpack().then(begin, tooOld);

// Paper is narrower than most screens, two charts should stand on a page of it, and nothing there unfolds or makes room.
const PAPER = 640, LOWER = 0.8, unfolded = [];
addEventListener("beforeprint", () => {
  drawAll();
  for (const each of document.querySelectorAll("#findings details:not([open])")) {
    each.open = true;
    unfolded.push(each);
  }
  document.documentElement.classList.add("paper"); // whose colours are those of a light screen
  for (const key of drawn) {
    const [data, layout] = figure(key), height = LOWER * layout.height;
    box(key).style.minHeight = `${height}px`;
    Plotly.purge(box(key));
    Plotly.newPlot(box(key), data, { ...layout, autosize: false, width: PAPER, height }, config);
    label(key);
  }
});
addEventListener("afterprint", () => {
  document.documentElement.classList.remove("paper");
  for (const each of unfolded.splice(0)) each.open = false;
  drawAnew();
});

function showFrame(slider) {
  const chart = charts[slider.dataset.chart];
  chart.shown = Number(slider.value);
  const label = chart.frames[chart.shown].label;
  slider.setAttribute("aria-valuetext", label);
  slider.parentElement.querySelector("output").textContent = label;
  draw(slider.dataset.chart);
}
document.addEventListener("input", (event) => { if (event.target.matches("input[data-chart]")) showFrame(event.target); });

if (controls) {
  controls.hidden = false;
  for (const name of Object.keys(asked)) {
    const control = document.getElementById(name);
    control.addEventListener("input", () => {
      asked[name] = name === "smoothing" ? Number(control.value) : control.value;
      if (name === "smoothing") control.setAttribute("aria-valuetext", Number(control.value) ? control.value : "none");
      redraw();
    });
  }
}

// Files of figures and tables, made here.
function save(href, name) {
  const link = document.createElement("a");
  link.href = href;
  link.download = name;
  link.click();
}

async function saveImage(key, format) {
  if (!drawn.has(key)) draw(key);
  const [data, layout] = figure(key);
  const width = 900, height = layout.height + 40;
  const title = document.getElementById(`${key}-title`).textContent;
  const looks = { paper_bgcolor: colour("--card"), plot_bgcolor: colour("--card"), height, autosize: false, width };
  const heading = { text: title.replace(/&/g, "&amp;").replace(/</g, "&lt;"), x: 0.02, y: 0.985, yanchor: "top" };
  const margin = { ...layout.margin, t: layout.margin.t + 56 };
  const axis = box(key)._fullLayout.xaxis, scale = (width - margin.l - margin.r) / axis._length;
  const annotations = labels(layout.meta?.marks ?? [], (x) => scale * axis.d2p(x), scale * axis._length);
  const image = { data, layout: { ...layout, ...looks, annotations, margin, title: heading } };
  save(await Plotly.toImage(image, { format, width, height, scale: 2 }), `${key}.${format}`);
}

function tableOf(key, place) {
  const table = charts[key].tables[place];
  if (table.rows) return [table.header, ...table.rows];
  const lines = charts[key].data.filter((trace) => !trace.meta?.mark && trace.x[0] !== null);
  const columns = lines.map((trace) => new Map(trace.x.map((x, at) => [x, (trace.meta?.all ?? trace.y)[at]])));
  const steps = [...new Set(lines.flatMap((trace) => trace.x))].sort((a, b) => a - b);
  return [table.header, ...steps.map((step) => [step, ...columns.map((column) => column.get(step) ?? "")])];
}

function csvCell(value) {
  if (typeof value === "number") return String(value);
  const text = String(value ?? "");
  const safe = /^[=+\-@\t\r]/.test(text) ? `'${text}` : text; // else a spreadsheet would run it
  return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

function saveTable(rows, name) {
  const lines = rows.map((row) => row.map(csvCell).join(","));
  save(`data:text/csv;charset=utf-8,${encodeURIComponent(lines.join("\r\n"))}`, `${name}.csv`);
}

function showExports() {
  for (const each of document.querySelectorAll(".exports")) each.hidden = false;
}
showExports();

function rowsShown(id) {
  const rows = [...document.querySelectorAll(`[aria-labelledby="${id}"] tr`)];
  return rows.map((row) => [...row.cells].map((cell) => cell.dataset.value ?? cell.textContent.trim()));
}

document.addEventListener("click", (event) => {
  const { image, kind, table, place, dom } = event.target.closest("button")?.dataset ?? {};
  if (image) saveImage(image, kind);
  if (table) saveTable(tableOf(table, Number(place)), Number(place) ? `${table}-${Number(place) + 1}` : table);
  if (dom) saveTable(rowsShown(dom), dom);
});

// A link to what is folded away unfolds it.
function unfold() {
  const target = document.getElementById(location.hash.slice(1));
  for (let each = target; each; each = each.parentElement) if (each.tagName === "DETAILS") each.open = true;
  target?.scrollIntoView();
}
addEventListener("hashchange", unfold);

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

// Names move above each other or beside each other.
narrow.addEventListener("change", drawAnew);
