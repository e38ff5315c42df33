// One run: what it gained, its errors by class, its confusions, and the images that it mended and broke.

const MINUS = "−";

function classesChart(run) {
  const before = data.bases[run.base],
    { counts, names } = before,
    places = names.map((_, place) => place);
  const bars = [
    ["before", before, "blue"],
    ["after", run.after, "orange"],
  ].map(([name, judged, tone]) => {
    const rates = places.map((place) => judged.errors[place] / counts[place]);
    const limits = places.map((place) => data.wilson[`${judged.errors[place]}/${counts[place]}`]);
    return {
      type: "bar",
      name,
      x: names,
      y: rates.map((rate) => 100 * rate),
      marker: { color: colour(tone) },
      text: rates.map(percent),
      textposition: "none",
      hovertemplate: "class %{x} " + name + ": %{text} %<extra></extra>",
      error_y: {
        type: "data",
        symmetric: false,
        color: colour("ink"),
        thickness: 1,
        width: 2,
        array: limits.map((limit, i) => 100 * (limit[1] - rates[i])),
        arrayminus: limits.map((limit, i) => 100 * (rates[i] - limit[0])),
      },
    };
  });
  const ticks = named(names);
  ticks.ticktext = ticks.ticktext.map((text, place) => (run.targets.includes(place) ? `<b>${text}</b>` : text));
  const rates = (judged) => places.map((place) => (100 * judged.errors[place]) / counts[place]);
  return {
    traces: bars,
    rows: [
      ["class", "images", "error before (%)", "error after (%)"],
      ...places.map((place) => [names[place], counts[place], rates(before)[place], rates(run.after)[place]]),
    ],
    layout: layout({
      title: { text: "errors per class (%), Wilson intervals; target bold", font: { size: 14 }, x: 0.02 },
      barmode: "group",
      margin: { l: 50, r: 10, t: 40, b: 45 },
      xaxis: { type: "category", title: { text: "true class" }, ...ticks },
      yaxis: { rangemode: "tozero" },
      legend: { orientation: "h", x: 1, xanchor: "right", y: 1, yanchor: "bottom" }, // names of classes may be long
    }),
  };
}

function confusionChart(run) {
  const { confusion: before, names } = data.bases[run.base],
    size = names.length;
  const shift = names.map((_, t) => names.map((_, p) => run.after.confusion[t * size + p] - before[t * size + p]));
  // The diagonal counts correct predictions. Its changes are sums of the others and would dominate the colours.
  const shown = shift.map((row, t) => row.map((value, p) => (t === p ? null : value)));
  const most = Math.max(...shown.flat().map((value) => Math.abs(value ?? 0)), 1);
  const stops = ["green", "paper", "vermilion"].map((name) => parts(colour(name)));
  const flat = names
    .flatMap((truth, t) => names.map((prediction, p) => ({ truth, prediction, value: shown[t][p] })))
    .filter(({ value }) => value);
  const traces = [
    {
      type: "heatmap",
      x: names,
      y: names,
      z: shown,
      zmin: -most,
      zmax: most,
      colorscale: stops.map((stop, at) => [at / 2, rgb(stop)]),
      xgap: 1,
      ygap: 1,
      hoverongaps: false,
      colorbar: { thickness: 10, outlinewidth: 0 },
      hovertemplate: "a %{y} taken for a %{x}: %{z:+d} images<extra></extra>",
    },
  ];
  if (innerWidth > NARROW && size <= 12)
    traces.push({
      type: "scatter",
      mode: "text",
      x: flat.map((one) => one.prediction),
      y: flat.map((one) => one.truth),
      hoverinfo: "skip",
      showlegend: false,
      text: flat.map(({ value }) => (value > 0 ? `+${value}` : `${MINUS}${-value}`)),
      textfont: { color: flat.map(({ value }) => textOn(mixed(stops, (value / most + 1) / 2))) },
    });
  const axis = { type: "category", categoryorder: "array", categoryarray: names, showgrid: false, ...named(names) };
  return {
    traces,
    rows: [
      ["true class", "prediction", "more mistakes than before"],
      ...flat.map(({ truth, prediction, value }) => [truth, prediction, value]),
    ],
    layout: layout({
      title: { text: "mistakes more (+) or fewer (−) than before", font: { size: 14 } },
      margin: { l: 50, r: 10, t: 40, b: 45 },
      xaxis: { ...axis, title: { text: "prediction" } },
      yaxis: { ...axis, title: { text: "true class" }, autorange: "reversed" },
    }),
  };
}

/** Use one picture of all images under a short address; a data URL in a style would take the browser half a second. */
function useSprite(encoded) {
  const bytes = Uint8Array.from(atob(encoded), (letter) => letter.charCodeAt(0));
  const address = URL.createObjectURL(new Blob([bytes], { type: "image/png" }));
  document.head.append(element("style", `.picture { background-image: url(${address}); }`));
}

function showGallery(run) {
  const box = byId("gallery"),
    { why_not: whyNot } = run.gallery;
  box.replaceChildren();
  if (whyNot) box.append(element("p", whyNot));
  else
    for (const [part, title] of [
      ["mended", "wrong before, right after"],
      ["broken", "right before, wrong after"],
    ]) {
      const images = run.gallery[part],
        count = run.gallery[`${part}_count`];
      const section = element("div", null, { className: part });
      const shown = count > images.length ? `, ${images.length} of them` : "";
      section.append(element("h3", `${part === "mended" ? "Mended" : "Broken"}: ${count} images, ${title}${shown}`));
      const list = element("ul", null, { className: "pictures" });
      for (const [image, before, after, sure, surer] of images) {
        const [place, label] = data.images[image];
        const item = element("li"),
          picture = element("div", null, { className: "picture" });
        picture.style.backgroundPosition = `${-78 * (place % 100)}px ${-78 * Math.floor(place / 100)}px`;
        picture.setAttribute("role", "img");
        picture.setAttribute("aria-label", `test image ${image}, a ${label}`);
        const lines = [
          ["before", before, sure],
          ["after", after, surer],
        ].map(([when, name, confidence]) =>
          element("div", `${when} ${shortened(name, 30)} (${Math.round(100 * confidence)} %)`),
        );
        item.append(picture, element("div", `a ${shortened(label, 30)}`), ...lines);
        list.append(item);
      }
      section.append(list);
      box.append(section);
    }
}

/** The measures of a run before and after, what a moved threshold would have done, and McNemar's tests. */
function showGains(run) {
  const box = byId("gains"),
    { measures, shift, tests, note, none } = data.gains,
    own = run.gains;
  if (own === null) {
    box.replaceChildren(element("p", none));
    return;
  }
  const titled = ([headings, titles], cells) => [headings, titles.map((title, at) => [title, ...cells[at]])];
  box.replaceChildren(
    element("p", `${run.said} ${note}`),
    table("Measures before and after", ...titled(measures, own.measures)),
    ...(own.shift ? [table("The moved threshold", shift, [own.shift])] : []),
    table("Images that became right or wrong", ...titled(tests, own.tests)),
  );
}

function showRun() {
  const run = data.runs.find((one) => one.job === state.job);
  if (!run) return;
  const cell = (name) => run.measured[data.measures.indexOf(name)];
  byId("run-summary").textContent =
    `Job ${run.job}, ${run.label}: error on the target ${cell("target_error_before")} % → ` +
    `${cell("target_error")} %, on the other classes ${cell("other_error_before")} % → ${cell("other_error")} % ` +
    `(forgetting ${cell("forgetting")} points), ${cell("parameters_adapter")} parameters.`;
  showGains(run);
  showGallery(run);
  byId("chooser").value = run.job;
  for (const [job, row] of rows)
    row.classList.toggle("chosen", job === run.job || Boolean(state.picked?.includes(job)));
  for (const id of ["classes", "confusion"]) setStale(charts.get(id), true);
  drawInTurn();
}

const shownRun = () => data.runs.find((one) => one.job === state.job);

/** Choose runs, as a click on a mark or a cell does: the first is shown, and the chooser has them alone. */
function pick(jobs) {
  if (!jobs.length) return;
  state.picked = jobs;
  state.job = jobs[0];
  fillChooser();
  showRun();
  toAddress();
}

function fillChooser() {
  const runs = shownRuns().filter((run) => !state.picked || state.picked.length < 2 || state.picked.includes(run.job));
  byId("chooser").replaceChildren(
    ...runs.map((run) => element("option", `job ${run.job}: ${shortened(run.label, 90)}`, { value: run.job })),
  );
  byId("unpick").hidden = !(state.picked?.length > 1);
  return runs;
}

function step(by) {
  const jobs = [...byId("chooser").options].map((option) => Number(option.value)),
    at = jobs.indexOf(state.job);
  if (jobs.length) choose(jobs[(at + by + jobs.length) % jobs.length]);
}

/** Show one run of those in the chooser. */
function choose(job) {
  state.job = job;
  if (!(state.picked?.length > 1)) state.picked = [job];
  showRun();
  toAddress();
}
