"use strict";

// Keeps the page as its server has it: asks what is new, and changes what differs. Nodes that stay are the same ones, so
// that scroll position, focus, what was unfolded and the zoom of a chart stay too.
const EVERY = 1000; // milliseconds; where the server tells for how long it rests, when it has
const OURS = new Set(["open", "value", "hidden", "aria-valuetext"]); // attributes the reader or our scripts set
let version = document.documentElement.dataset.version;

const note = document.createElement("p");
note.id = "live";
note.setAttribute("role", "status");
document.body.append(note);

function tell(text, trouble = false) {
  if (note.textContent !== text) note.textContent = text;
  note.classList.toggle("trouble", trouble);
}

// What a node is known by among its siblings.
const known = (node) => node.id || node.dataset?.row || "";

function attributes(old, fresh) {
  for (const { name, value } of fresh.attributes) {
    if (!OURS.has(name) && old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  for (const { name } of [...old.attributes]) if (!OURS.has(name) && !fresh.hasAttribute(name)) old.removeAttribute(name);
}

function same(old, fresh) {
  return old.nodeType === fresh.nodeType && old.nodeName === fresh.nodeName && known(old) === known(fresh);
}

function change(old, fresh) {
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.nodeValue !== fresh.nodeValue) old.nodeValue = fresh.nodeValue;
    return;
  }
  if (old.classList.contains("plot")) return; // what is drawn in it, and its classes, are Plotly's
  attributes(old, fresh);
  let at = old.firstChild;
  for (const child of [...fresh.childNodes]) {
    let kept = at;
    if (kept && !same(kept, child) && known(child)) {
      while (kept && !same(kept, child)) kept = kept.nextSibling;
    }
    if (kept && same(kept, child)) {
      while (at !== kept) at = drop(at);
      change(at, child);
      at = at.nextSibling;
    } else {
      const node = document.importNode(child, true);
      old.insertBefore(node, at);
          }
  }
  while (at) at = drop(at);
}

function drop(node) {
  const next = node.nextSibling;
  node.remove();
  return next;
}

function take(fresh) {
  if (!controls && fresh.getElementById("controls")) return location.reload(); // the first numbers: from here on it follows
  for (const name of ["header", "nav", "main"]) {
    const old = document.querySelector(`body > ${name}`), now = fresh.querySelector(`body > ${name}`);
    if (old && now) change(old, now);
    else if (now) document.querySelector("main").before(document.importNode(now, true));
  }
  document.title = fresh.title;
  showExports();
  if (controls) runs.splice(0, runs.length, ...JSON.parse(controls.dataset.runs));
  replaceCharts(JSON.parse(fresh.getElementById("charts").textContent));
}

// Charts that are not drawn as they are now: drawing one takes as long as all else that a page has to do to follow, so
// those out of sight wait until they come into it.
const stale = new Set();
const seen = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (!isIntersecting) continue;
    seen.unobserve(target);
    drawStale(target.id.replace(/-plot$/, ""));
  }
}, { rootMargin: "200px" });

function drawStale(key) {
  if (stale.delete(key)) draw(key);
}
document.addEventListener("click", (event) => drawStale(event.target.closest("button")?.dataset.image), { capture: true });

// A slider that stood at the last position follows; one that was moved stays.
function replaceCharts(fresh) {
  for (const key of Object.keys(charts)) {
    if (!(key in fresh)) {
      delete charts[key];
      drawn.delete(key);
      stale.delete(key);
    }
  }
  for (const [key, chart] of Object.entries(fresh)) {
    const old = charts[key], last = chart.frames.length - 1, isDrawn = drawn.has(key) && box(key)._fullLayout;
    chart.shown = old && old.shown < old.frames.length - 1 ? Math.min(old.shown, last) : last;
    if (isDrawn && JSON.stringify(old) === JSON.stringify(chart)) continue;
    charts[key] = chart;
    const slider = document.querySelector(`input[data-chart="${key}"]`);
    if (slider) {
      slider.value = chart.shown;
      slider.parentElement.querySelector("output").textContent = chart.frames[chart.shown].label;
    }
    if (isDrawn) {
      stale.add(key);
      seen.observe(box(key));
    } else {
      drawn.delete(key);
      sight.observe(box(key));
    }
  }
  waiting.splice(0, waiting.length, ...Object.keys(charts));
  later(drawWaiting);
}

// Axes that the reader has zoomed into, by chart. They are drawn as they are, whatever is new beyond them.
const zoomed = {}, followed = new WeakSet();
const react = Plotly.react;

function within(layout, axes = {}) {
  const result = { ...layout };
  for (const [name, range] of Object.entries(axes)) {
    if (result[name]) result[name] = { ...result[name], range, autorange: false };
  }
  return result;
}

function follow(box) {
  if (followed.has(box._ev)) return; // which goes when a chart is drawn from nothing
  followed.add(box._ev);
  box.on("plotly_relayout", (event) => {
    const axes = (zoomed[box.id] ??= {});
    for (const [path, value] of Object.entries(event)) {
      const [, name, end] = path.match(/^([xy]axis\d*)\.range\[([01])\]$/) ?? [];
      if (name) (axes[name] ??= [...box._fullLayout[name].range])[end] = value;
    }
  });
  box.on("plotly_doubleclick", () => setTimeout(() => delete zoomed[box.id]));
}

Plotly.react = (target, data, layout, config) => {
  const box = typeof target === "string" ? document.getElementById(target) : target;
  const done = react(box, data, within(layout, zoomed[box.id]), config);
  follow(box);
  return done;
};

for (const box of document.querySelectorAll(".plot")) if (box._fullLayout) follow(box);
document.getElementById("controls")?.addEventListener("input", () => { // another axis has other numbers
  for (const id of Object.keys(zoomed)) delete zoomed[id];
}, { capture: true });

async function ask() {
  let pause = EVERY;
  try {
    const response = await fetch(`${location.pathname}?since=${version}`, { cache: "no-store" });
    const came = performance.now();
    if (response.status === 200) {
      const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
      take(fresh);
      version = fresh.documentElement.dataset.version;
    }
    const resting = Number(response.headers.get("x-pullback-resting")), took = performance.now() - came;
    if (resting > 0) pause = Math.max(resting - took, took); // of the reader's processor, too, at most half
    if (response.ok) tell("Live");
    else tell(`${await response.text()} What is shown is its last state.`, true);
  } catch (error) {
    tell(error instanceof TypeError ? "The server does not answer. What is shown is the last state." : String(error), true);
  }
  setTimeout(ask, pause);
}

setTimeout(ask, EVERY);
