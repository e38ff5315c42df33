"use strict";
// The behaviour of the report's page: filters, charts, the choice of a run, sorting, and copying of commands.

const byId = (id) => document.getElementById(id);
const source = byId("data");
const data = source ? JSON.parse(source.textContent) : null;
const percent = (rate) => (100 * rate).toFixed(2);
const points = (difference) => (difference < 0 ? "" : "+") + (100 * difference).toFixed(2);
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const dark = matchMedia("(prefers-color-scheme: dark)");
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const NARROW = 480; // pixels

// ---------------------------------------------------------------- copying

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // without permission for the clipboard, such as in a frame
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  const label = button.textContent;
  button.textContent = "copied";
  setTimeout(() => { button.textContent = label; }, 1500);
}

for (const button of document.querySelectorAll(".listing > .copy"))
  button.addEventListener("click", () => copy(button.nextElementSibling.textContent, button));

// ---------------------------------------------------------------- charts

function layout(more) {
  const axis = { gridcolor: colour("line"), zerolinecolor: colour("line"), automargin: true };
  const base = {
    font: { color: colour("ink"), family: "system-ui, sans-serif", size: 12 },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 50, r: 10, t: 40, b: 45 }, hovermode: "closest", dragmode: false,
    legend: { orientation: "h", y: -0.2 },
  };
  return { ...base, ...more, xaxis: { ...axis, ...more.xaxis }, yaxis: { ...axis, ...more.yaxis } };
}

function draw(id, traces, more) {
  return Plotly.react(byId(id), traces, layout(more), { responsive: true, displaylogo: false, displayModeBar: false });
}

// Viridis, without the end that has too little contrast with the page's background.
const VIRIDIS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
function kindColour(kind) {
  const [low, high] = dark.matches ? [0.35, 1] : [0, 0.85];
  const share = data.kinds.length < 2 ? 0.5 : kind / (data.kinds.length - 1);
  const at = (low + share * (high - low)) * (VIRIDIS.length - 1), left = Math.min(Math.floor(at), VIRIDIS.length - 2);
  const mixed = VIRIDIS[left].map((part, i) => Math.round(part + (at - left) * (VIRIDIS[left + 1][i] - part)));
  return `rgb(${mixed})`;
}

/** Ticks with names of at most so many letters. */
function named(names, most = 18) {
  return { tickmode: "array", tickvals: names, ticktext: names.map((name) =>
    (name.length <= most ? name : `${name.slice(0, most - 1)}…`)) };
}

function grouped(runs, key) {
  const groups = new Map();
  for (const run of runs) {
    const name = key(run);
    if (!groups.has(name)) groups.set(name, []);
    groups.get(name).push(run);
  }
  return groups;
}

function drawHeatMaps(runs) {
  const targets = data.settings.target.values.filter((name) => runs.some((run) => run.settings.target === name));
  const kinds = data.kinds.map((_, kind) => kind).filter((kind) => runs.some((run) => run.kind === kind));
  const cells = grouped(runs, (run) => `${run.settings.target}|${run.kind}`);
  const onlyRanks = data.kinds.every((kind) => kind.startsWith("rank "));
  const labels = kinds.map((kind) => (onlyRanks ? data.kinds[kind].slice(5) : data.kinds[kind]));
  const few = targets.length * kinds.length <= 120;
  // Blue and orange around no change: readers who see few colours tell them apart.
  const around = [[0, colour("vermilion")], [0.5, colour("paper")], [1, colour("blue")]];
  for (const [name, title, write, scale] of [
    ["target_error", "error on the target class (%)", percent, "Viridis"],
    ["forgetting", "forgetting (points)", points, "Viridis"],
    ["balanced_accuracy_gained", "balanced accuracy gained (points)", points, around],
  ]) {
    const value = (target, kind) => { // an older version's results have no balanced accuracy
      const found = (cells.get(`${target}|${kind}`) ?? []).map((run) => run[name]).filter((one) => one !== null);
      return found.length ? mean(found) : null;
    };
    const means = targets.map((target) => kinds.map((kind) => value(target, kind)));
    const texts = means.map((row) => row.map((cell) => (cell === null ? "–" : write(cell))));
    const most = Math.max(...means.flat().map((cell) => 100 * Math.abs(cell ?? 0)), 0.01);
    draw(`heat-${name}`, [{
      type: "heatmap", x: labels, y: targets, z: means.map((row) => row.map((cell) => cell === null ? null : 100 * cell)),
      text: texts, texttemplate: few ? "%{text}" : "", colorscale: scale, xgap: 1, ygap: 1,
      ...(scale === around ? { zmin: -most, zmax: most } : {}),
      hovertemplate: `class %{y}, ${onlyRanks ? "rank " : ""}%{x}: %{text}<extra></extra>`,
      colorbar: { thickness: 10, outlinewidth: 0 },
    }], {
      title: { text: title, font: { size: 14 } },
      xaxis: { type: "category", title: { text: onlyRanks ? "rank" : "method" }, showgrid: false },
      yaxis: {
        type: "category", title: { text: "target class" }, autorange: "reversed", showgrid: false, ...named(targets),
      },
    });
  }
}

function drawTradeOff(runs) {
  const largest = Math.max(...runs.map((run) => run.overhead), 1e-9);
  const traces = [...grouped(runs, (run) => run.kind)].sort(([a], [b]) => a - b).map(([kind, own]) => ({
    type: "scatter", mode: "markers", name: data.kinds[kind], customdata: own.map((run) => run.job),
    x: own.map((run) => 100 * run.target_error), y: own.map((run) => 100 * run.forgetting),
    text: own.map((run) => `job ${run.job}, ${run.what}<br>target ${percent(run.target_error)} %, others ` +
      `${percent(run.other_error)} %, forgetting ${points(run.forgetting)}<br>` + (run.gains === null ? "" :
      `balanced accuracy gained ${points(run.balanced_accuracy_gained)}<br>${run.said}<br>`) +
      `${run.overhead.toFixed(3)} % more parameters`),
    hovertemplate: "%{text}<extra></extra>",
    marker: { color: kindColour(kind), opacity: 0.8, line: { width: 1, color: colour("paper") },
      size: own.map((run) => 7 + 17 * Math.sqrt(run.overhead / largest)) },
  }));
  const front = frontOf(runs);
  traces.push({
    type: "scatter", mode: "lines", name: "Pareto front", line: { color: colour("vermilion"), width: 2, shape: "hv" },
    x: front.map((run) => 100 * run.target_error), y: front.map((run) => 100 * run.forgetting), hoverinfo: "skip",
  });
  draw("trade-off", traces, {
    xaxis: { title: { text: "error on the target class (%)" }, rangemode: "tozero" },
    yaxis: { title: { text: "forgetting (points)" } }, showlegend: data.kinds.length <= 12,
    margin: { l: 50, r: 10, t: 10, b: 45 },
  });
  const chart = byId("trade-off");
  chart.removeAllListeners("plotly_click");
  chart.on("plotly_click", (event) => choose(event.points[0].customdata));
}

/** The runs that no other beats in both, as `pareto_front` in storage/table.py finds them, of the runs shown. */
function frontOf(runs) {
  const front = [];
  for (const run of [...runs].sort((a, b) => a.target_error - b.target_error || a.forgetting - b.forgetting)) {
    const last = front[front.length - 1];
    if (!last || run.forgetting < last.forgetting) front.push(run);
  }
  return front;
}

const MOST_CURVES = 200; // more are indistinguishable, and slow to draw

function drawLosses(all) {
  const step = Math.max(1, all.length / MOST_CURVES), many = all.length > 12;
  const runs = Array.from({ length: Math.min(all.length, MOST_CURVES) }, (_, at) => all[Math.floor(at * step)]);
  byId("losses-note").textContent = runs.length < all.length ? `${runs.length} of ${all.length} runs, evenly selected.` : "";
  const traces = [...grouped(runs, (run) => run.kind)].sort(([a], [b]) => a - b).map(([kind, own]) => ({
    type: "scatter", mode: "lines", name: data.kinds[kind],
    x: own.flatMap((run) => [...run.losses[0], null]), y: own.flatMap((run) => [...run.losses[1], null]),
    line: { color: kindColour(kind), width: many ? 0.8 : 2 }, opacity: many ? 0.6 : 1,
    hovertemplate: "step %{x:.0f}: %{y:.3g} nats<extra>%{fullData.name}</extra>",
  })).filter((trace) => trace.x.length > 1);
  draw("losses", traces, {
    xaxis: { title: { text: "fine-tuning step" } },
    yaxis: { type: "log", title: { text: "cross-entropy (nats)" }, exponentformat: "power", dtick: 1 },
    showlegend: data.kinds.length <= 12, margin: { l: 50, r: 10, t: 10, b: 45 },
  });
}

// ---------------------------------------------------------------- one run

const MINUS = "−";

function drawClasses(run) {
  const before = data.bases[run.base], { counts, names } = before, places = names.map((_, place) => place);
  const bars = [["before", before, "blue"], ["after", run.after, "orange"]].map(([name, judged, tone]) => {
    const rates = places.map((place) => judged.errors[place] / counts[place]);
    const limits = places.map((place) => data.wilson[`${judged.errors[place]}/${counts[place]}`]);
    return {
      type: "bar", name, x: names,
      y: rates.map((rate) => 100 * rate), marker: { color: colour(tone) }, text: rates.map(percent),
      textposition: "none", hovertemplate: "class %{x} " + name + ": %{text} %<extra></extra>",
      error_y: { type: "data", symmetric: false, color: colour("ink"), thickness: 1, width: 2,
        array: limits.map((limit, i) => 100 * (limit[1] - rates[i])),
        arrayminus: limits.map((limit, i) => 100 * (rates[i] - limit[0])) },
    };
  });
  const ticks = named(names);
  ticks.ticktext = ticks.ticktext.map((text, place) => run.targets.includes(place) ? `<b>${text}</b>` : text);
  draw("classes", bars, {
    title: { text: "errors per class (%), Wilson intervals; target bold", font: { size: 14 }, x: 0.02 }, barmode: "group",
    xaxis: { type: "category", title: { text: "true class" }, ...ticks }, yaxis: { rangemode: "tozero" },
    legend: { orientation: "h", x: 1, xanchor: "right", y: 1, yanchor: "bottom" }, // names of classes may be long
  });
}

function drawConfusion(run) {
  const { confusion: before, names } = data.bases[run.base], size = names.length;
  const shift = names.map((_, t) => names.map((_, p) => run.after.confusion[t * size + p] - before[t * size + p]));
  // The diagonal counts correct predictions. Its changes are sums of the others and would dominate the colours.
  const shown = shift.map((row, t) => row.map((value, p) => (t === p ? null : value)));
  const most = Math.max(...shown.flat().map((value) => Math.abs(value ?? 0)), 1);
  const scale = [[0, colour("green")], [0.5, colour("paper")], [1, colour("vermilion")]];
  draw("confusion", [{
    type: "heatmap", x: names, y: names, z: shown, zmin: -most, zmax: most, colorscale: scale, xgap: 1, ygap: 1,
    text: shown.map((row) => row.map((v) => (v === null || v === 0 ? "" : v > 0 ? `+${v}` : `${MINUS}${-v}`))),
    texttemplate: innerWidth > NARROW && size <= 12 ? "%{text}" : "", hoverongaps: false, colorbar: { thickness: 10, outlinewidth: 0 },
    hovertemplate: "a %{y} taken for a %{x}: %{z:+d} images<extra></extra>",
  }], {
    title: { text: "mistakes more (+) or fewer (−) than before", font: { size: 14 } },
    xaxis: { type: "category", title: { text: "prediction" }, showgrid: false, ...named(names) },
    yaxis: {
      type: "category", title: { text: "true class" }, autorange: "reversed", showgrid: false, ...named(names),
    },
  });
}

/** Use one picture of all images under a short address; a data URL in a style would take the browser half a second. */
function useSprite(encoded) {
  const bytes = Uint8Array.from(atob(encoded), (letter) => letter.charCodeAt(0));
  const address = URL.createObjectURL(new Blob([bytes], { type: "image/png" }));
  document.head.append(element("style", `.picture { background-image: url(${address}); }`));
}

function showGallery(run) {
  const box = byId("gallery"), { why_not: whyNot } = run.gallery;
  box.replaceChildren();
  if (whyNot) box.append(element("p", whyNot));
  else for (const [part, title] of [["mended", "wrong before, right after"], ["broken", "right before, wrong after"]]) {
    const images = run.gallery[part], count = run.gallery[`${part}_count`];
    const section = element("div", null, { className: part });
    const shown = count > images.length ? `, ${images.length} of them` : "";
    section.append(element("h3", `${part === "mended" ? "Mended" : "Broken"}: ${count} images, ${title}${shown}`));
    const list = element("ul", null, { className: "pictures" });
    for (const [image, before, after, sure, surer] of images) {
      const [place, label] = data.images[image];
      const item = element("li"), picture = element("div", null, { className: "picture" });
      picture.style.backgroundPosition = `${-78 * (place % 100)}px ${-78 * Math.floor(place / 100)}px`;
      picture.setAttribute("role", "img");
      picture.setAttribute("aria-label", `test image ${image}, a ${label}`);
      const lines = [["before", before, sure], ["after", after, surer]].map(([when, name, confidence]) =>
        element("div", `${when} ${name} (${Math.round(100 * confidence)} %)`));
      item.append(picture, element("div", `a ${label}`), ...lines);
      list.append(item);
    }
    section.append(list);
    box.append(section);
  }
}

/** The measures of a run before and after, what a moved threshold would have done, and McNemar's tests. */
function showGains(run) {
  const box = byId("gains"), { measures, shift, tests, note, none } = data.gains, own = run.gains;
  if (own === null) { box.replaceChildren(element("p", none)); return; }
  const titled = ([headings, titles], cells) => [headings, titles.map((title, at) => [title, ...cells[at]])];
  box.replaceChildren(
    element("p", `${run.said} ${note}`), table("Measures before and after", ...titled(measures, own.measures)),
    ...(own.shift ? [table("The moved threshold", shift, [own.shift])] : []),
    table("Images that became right or wrong", ...titled(tests, own.tests)));
}

/** A table whose first column holds words. */
function table(label, headings, rows) {
  const scroll = element("div", null, { className: "scroll", tabIndex: 0 }), made = element("table");
  scroll.setAttribute("role", "region");
  scroll.setAttribute("aria-label", label);
  const row = (tag, texts) => {
    const line = element("tr");
    line.append(...texts.map((text, at) => element(tag, text, { className: at ? "" : "word" })));
    return line;
  };
  const head = element("thead"), body = element("tbody");
  head.append(row("th", headings));
  body.append(...rows.map((texts) => row("td", texts)));
  made.append(head, body);
  scroll.append(made);
  return scroll;
}

function element(tag, text, properties) {
  const made = Object.assign(document.createElement(tag), properties);
  if (text) made.textContent = text;
  return made;
}

function showRun() {
  const run = data.runs.find((one) => one.job === state.job);
  if (!run) return;
  const cell = (name) => run.measured[data.measures.indexOf(name)];
  byId("run-summary").textContent = `Job ${run.job}, ${run.what}: error on the target ${cell("target_error_before")} % → ` +
    `${cell("target_error")} %, on the other classes ${cell("other_error_before")} % → ${cell("other_error")} % ` +
    `(forgetting ${cell("forgetting")} points), ${cell("parameters_adapter")} parameters.`;
  showGains(run);
  drawClasses(run);
  drawConfusion(run);
  showGallery(run);
  byId("chooser").value = run.job;
  for (const [job, row] of state.rows) row.classList.toggle("chosen", job === run.job);
}

// ---------------------------------------------------------------- filters, chooser, table

const state = { filters: {}, text: "", job: null, rows: new Map() };

const shownRuns = () => data.runs.filter((run) =>
  Object.entries(state.filters).every(([name, value]) => !value || run.settings[name] === value));

function buildFilters() {
  for (const [name, { title, values }] of Object.entries(data.settings)) {
    if (values.length < 2) continue;
    const select = element("select");
    select.dataset.setting = name;
    select.append(element("option", "all", { value: "" }), ...values.map((value) => element("option", value, { value })));
    select.addEventListener("change", () => { state.filters[name] = select.value; update(); });
    const label = element("label", title);
    label.append(select);
    byId("filters").append(label);
  }
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
}

function update() {
  const runs = shownRuns();
  byId("shown").textContent = `${runs.length} of ${data.runs.length} finished runs shown.`;
  byId("chooser").replaceChildren(...runs.map((run) =>
    element("option", `job ${run.job}: ${run.what}`, { value: run.job })));
  if (!runs.some((run) => run.job === state.job) && runs.length) state.job = runs[0].job;
  showRows(runs);
  inTurn([() => drawHeatMaps(runs), () => drawTradeOff(runs), () => drawLosses(runs), showRun]);
}

/** Run the steps one after another and let the browser render and handle events in between; the latest call wins. */
let turn = 0;
function inTurn(steps) {
  const mine = ++turn;
  const next = () => {
    if (mine !== turn) return;
    const step = steps.shift();
    if (!step) { document.body.dataset.drawn = "true"; return; }
    step();
    setTimeout(next);
  };
  document.body.dataset.drawn = "false";
  setTimeout(next);
}

function showRows(runs) {
  const jobs = new Set(runs.map((run) => run.job)), text = state.text.toLowerCase();
  for (const [job, row] of state.rows)
    row.hidden = !jobs.has(job) || !(row.textContent + row.title).toLowerCase().includes(text);
}

/** The sort key of a cell: its number, or else its text; cells without a value come last. */
function sortKey(text) {
  if (text === "–") return [2, 0, ""];
  const number = Number(/^[+-]?\d{1,3}(,\d{3})+$/.test(text) ? text.replaceAll(",", "") : text);
  return Number.isNaN(number) ? [1, 0, text] : [0, number, ""];
}

function sortBy(column, header) {
  const down = header.getAttribute("aria-sort") === "ascending";
  for (const other of header.parentNode.children) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", down ? "descending" : "ascending");
  const compare = new Intl.Collator("en", { numeric: true }).compare;
  const keyed = [...state.rows.values()].map((row) => [sortKey(row.cells[column].textContent), row]);
  keyed.sort(([a], [b]) => (down && a[0] === b[0] ? -1 : 1) * (a[0] - b[0] || a[1] - b[1] || compare(a[2], b[2])));
  byId("runs-table").tBodies[0].append(...keyed.map(([, row]) => row));
}

function choose(job) {
  state.job = job;
  showRun();
}

function step(by) {
  const runs = shownRuns(), at = runs.findIndex((run) => run.job === state.job);
  if (runs.length) choose(runs[(at + by + runs.length) % runs.length].job);
}

function buildTable() {
  const table = byId("runs-table"), commands = new Map(data.runs.map((run) => [run.job, run.command]));
  for (const row of table.tBodies[0].rows) {
    const job = Number(row.cells[0].textContent);
    state.rows.set(job, row);
    row.title = commands.get(job);
    const show = element("button", row.cells[0].textContent, { type: "button", className: "show" });
    show.setAttribute("aria-label", `Show job ${job} above`);
    show.addEventListener("click", () => { choose(job); byId("one").scrollIntoView(); });
    row.cells[0].replaceChildren(show);
    const button = row.querySelector(".copy");
    button.addEventListener("click", () => copy(commands.get(job), button));
  }
  for (const [column, header] of [...table.tHead.rows[0].cells].entries())
    header.querySelector(".sort")?.addEventListener("click", () => sortBy(column, header));
  byId("find").addEventListener("input", (event) => { state.text = event.target.value; showRows(shownRuns()); });
}

if (data) {
  useSprite(data.sprite);
  state.job = data.chosen;
  buildFilters();
  buildTable();
  byId("chooser").addEventListener("change", (event) => choose(Number(event.target.value)));
  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  dark.addEventListener("change", update);
  update();
} else document.body.dataset.drawn = "true";
