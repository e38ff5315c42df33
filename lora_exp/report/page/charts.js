// What all charts share: axes, buttons, a table of what is drawn, and drawing only what is in sight.

/** What the hover says of a run: its job, all that varies, its gain and its price. */
const hoverOf = (run) =>
  [
    `job ${run.job}: ${plain(shortened(run.label, 120))}`,
    ...["balanced_accuracy_gained", "forgetting", "target_error"]
      .filter((name) => data.charted[name])
      .map((name) => `${titleOf(name)}: ${writtenNumber(name, run.numbers[name])}`),
    run.said,
  ]
    .filter(Boolean)
    .join("<br>");

/** Ticks with names of at most so many letters, thinned where there are many. */
function named(names, most = 18, count = 40) {
  const every = Math.ceil(names.length / count),
    shown = names.filter((_, at) => at % every === 0);
  return { tickmode: "array", tickvals: shown, ticktext: shown.map((name) => plain(shortened(name, most))) };
}

function layout(more) {
  const axis = { gridcolor: colour("line"), zerolinecolor: colour("line"), automargin: true };
  const narrow = innerWidth <= NARROW;
  const base = {
    font: { color: colour("ink"), family: "system-ui, sans-serif", size: 12 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 50, r: 10, t: 10, b: 45 },
    hovermode: "closest",
    dragmode: false,
    legend: narrow ? { orientation: "h", y: -0.25, maxheight: 0.3 } : { x: 1.01, y: 1, font: { size: 11 } },
  };
  return { ...base, ...more, xaxis: { ...axis, ...more.xaxis }, yaxis: { ...axis, ...more.yaxis } };
}

/** Axis of a setting: categories, or numbers, on a log scale where they span a factor of eight. */
function settingAxis(name, more = {}) {
  const { numeric, values } = data.settings[name],
    title = { text: titleOf(name) };
  if (!numeric)
    return { type: "category", title, categoryorder: "array", categoryarray: values, ...named(values), ...more };
  const numbers = values.filter((text) => text !== NONE).map(Number),
    low = Math.min(...numbers);
  const ticks = numbers.length <= 12 ? { tickmode: "array", tickvals: numbers, ticktext: numbers.map(String) } : {};
  return { type: low > 0 && Math.max(...numbers) / low >= 8 ? "log" : "linear", title, ...ticks, ...more };
}

// ---------------------------------------------------------------- one chart and its buttons

const charts = new Map(); // id -> how it is drawn, and whether what it shows is out of date

/** A chart: `make(runs)` returns its traces, layout, CSV rows and, for a click, the jobs of a point. */
function addChart(id, make, controls = null) {
  const place = byId(id);
  if (!place) return;
  const frame = element("div", null, { className: "frame" }),
    bar = element("div", null, { className: "controls buttons" });
  place.replaceWith(frame);
  const label = place.getAttribute("aria-label"),
    held = { make, place, stale: true, visible: false, drawn: null, controls, bar };
  const button = (text, name, act) => {
    const made = element("button", text, { type: "button" });
    made.setAttribute("aria-label", `${name}: ${label}`);
    made.addEventListener("click", act);
    return made;
  };
  const zoom = button("zoom", "Zoom by dragging", () => {
    const on = zoom.getAttribute("aria-pressed") !== "true";
    zoom.setAttribute("aria-pressed", String(on));
    Plotly.relayout(place, { dragmode: on ? "zoom" : false });
  });
  zoom.setAttribute("aria-pressed", "false");
  const tools = element("span", null, { className: "tools" });
  tools.append(
    zoom,
    button("reset", "Reset the zoom", () =>
      Plotly.relayout(place, {
        "xaxis.autorange": true,
        "yaxis.autorange": held.drawn.layout.yaxis?.autorange ?? true,
      }),
    ),
    button("PNG", "Save as PNG", () => Plotly.downloadImage(place, { format: "png", filename: id, scale: 2 })),
    button("CSV", "Save the data as CSV", () => download(`${id}.csv`, csv(held.drawn.rows), "text/csv")),
  );
  bar.append(tools);
  const folded = element("details", null, { className: "data" });
  folded.append(element("summary", "as a table"));
  folded.firstChild.setAttribute("aria-label", `as a table: ${label}`);
  folded.addEventListener("toggle", () => showData(held, folded, label));
  frame.append(bar, place, folded);
  charts.set(id, held);
  new IntersectionObserver(
    (entries) => {
      held.visible = entries.at(-1).isIntersecting;
      if (held.visible && held.stale) drawInTurn();
    },
    { rootMargin: "200px" },
  ).observe(frame);
  held.folded = folded;
  held.label = label;
}

const TABLE_ROWS = 1000;
function showData(held, folded, label) {
  folded.querySelector(".scroll")?.remove();
  if (!folded.open || !held.drawn) return;
  const [headings, ...rows] = held.drawn.rows.map((row) => row.map((value) => (value === null ? NONE : String(value))));
  folded.append(table(label, headings, rows.slice(0, TABLE_ROWS), 0));
}

function drawChart(held) {
  setStale(held, false);
  const made = held.make(shownRuns());
  held.drawn = made;
  if (held.controls) {
    held.bar.querySelectorAll("label").forEach((one) => one.remove());
    held.bar.prepend(...held.controls());
  }
  const dragmode = held.bar.querySelector("[aria-pressed=true]") ? "zoom" : false;
  Plotly.react(held.place, made.traces, { ...made.layout, dragmode }, { responsive: true, displayModeBar: false });
  if (made.pick) {
    held.place.removeAllListeners("plotly_click");
    held.place.on("plotly_click", (event) => pick(made.pick(event.points[0])));
  }
  showData(held, held.folded, held.label);
}

/** Draw the charts in sight that are out of date, one after another, so that the browser can render in between. */
let turn = 0;
function drawInTurn() {
  const mine = ++turn;
  document.body.dataset.drawn = "false";
  const next = () => {
    if (mine !== turn) return;
    const held = [...charts.values()].find((one) => one.stale && one.visible);
    if (!held) {
      document.body.dataset.drawn = "true";
      return;
    }
    drawChart(held);
    setTimeout(next);
  };
  setTimeout(next);
}

function setStale(held, stale) {
  held.stale = stale;
  held.place.dataset.drawn = String(!stale);
}

function redraw() {
  for (const held of charts.values()) setStale(held, true);
  drawInTurn();
}

/** All charts, for the printer. */
addEventListener("beforeprint", () => {
  for (const held of charts.values()) if (held.stale) drawChart(held);
});
