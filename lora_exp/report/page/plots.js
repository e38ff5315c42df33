// Charts with a mark a run: gain against price, and slices.

const measureNames = () => Object.keys(data.charted);
const runRows = (runs, names) => [
  ["job", "run", ...names.map(titleOf)],
  ...runs.map((run) => [
    run.job,
    run.label,
    ...names.map((name) => (data.settings[name] ? run.settings[name] : shownNumber(name, run.numbers[name]))),
  ]),
];

/** The runs of a class that no other of it beats in both measures, in the order of the first. */
function frontOf(runs, x, y) {
  const sign = (name) => -data.charted[name].better,
    front = [];
  const value = (run, name) => sign(name) * run.numbers[name];
  for (const run of [...runs].sort((a, b) => value(a, x) - value(b, x) || value(a, y) - value(b, y)))
    if (!front.length || value(run, y) < value(front.at(-1), y)) front.push(run);
  return front;
}

function markTraces(runs, xOf, yOf) {
  return [
    ...groupedByColour(runs).map(([value, own]) => ({
      type: "scatter",
      mode: "markers",
      name: plain(shortened(valueLabel(colourName(), value))),
      customdata: own.map((run) => run.job),
      x: own.map(xOf),
      y: own.map(yOf),
      text: own.map(hoverOf),
      hovertemplate: "%{text}<extra></extra>",
      marker: {
        color: toneOf(colourName(), value),
        symbol: own.map(symbolOf),
        size: runs.length > 300 ? 7 : 10,
        opacity: 0.85,
        line: { width: 1, color: colour("paper") },
      },
    })),
    ...symbolTraces(runs),
  ];
}

const scatterNames = () =>
  [look("price.x", "forgetting"), look("price.y", "target_error")].map((name) =>
    data.charted[name] ? name : "forgetting",
  );

function scatter(all) {
  const [x, y] = scatterNames(),
    runs = all.filter((run) => known([run.numbers[x] ?? null, run.numbers[y] ?? null]).length === 2);
  const traces = markTraces(
    runs,
    (run) => shownNumber(x, run.numbers[x]),
    (run) => shownNumber(y, run.numbers[y]),
  );
  const task = ofPart(filterNames(), "task"),
    tasks = [
      ...grouped(
        runs.filter((run) => !run.repeats),
        (run) => keyOf(run, task),
      ),
    ];
  if (x !== y && data.charted[x].better && data.charted[y].better)
    tasks.forEach(([, own], at) => {
      const front = frontOf(own, x, y);
      traces.push({
        type: "scatter",
        mode: "lines",
        name: tasks.length > 1 ? "fronts" : "front",
        legendgroup: "front",
        showlegend: at === 0,
        hoverinfo: "skip",
        line: { color: colour("faint"), width: 1.5, dash: "dot" },
        x: front.map((run) => shownNumber(x, run.numbers[x])),
        y: front.map((run) => shownNumber(y, run.numbers[y])),
      });
    });
  return {
    traces,
    rows: runRows(runs, [...colourNames(), x, y]),
    pick: (point) => [point.customdata],
    layout: layout({
      showlegend: true,
      xaxis: { title: { text: titleOf(x) } },
      yaxis: { title: { text: titleOf(y) } },
    }),
  };
}

function slice(all) {
  const [x, y] = sliceNames(),
    { numeric, values } = data.settings[x];
  const runs = all.filter((run) => run.numbers[y] !== null && (!numeric || run.settings[x] !== NONE));
  const at = (run) => (numeric ? Number(run.settings[x]) : run.settings[x]);
  const traces = markTraces(runs, at, (run) => shownNumber(y, run.numbers[y]));
  for (const [value, own] of colourName() === x ? [["", runs]] : groupedByColour(runs)) {
    const cells = grouped(
        own.filter((run) => !run.repeats),
        (run) => run.settings[x],
      ),
      used = values.filter((one) => cells.has(one)),
      tone = value === "" ? colour("faint") : toneOf(colourName(), value);
    traces.push({
      type: "scatter",
      mode: numeric ? "lines" : "markers", // words have no order that a line could follow
      showlegend: false,
      hoverinfo: "skip",
      marker: { symbol: "line-ew-open", size: 22, color: tone, line: { width: 3, color: tone } },
      x: used.map((one) => (numeric ? Number(one) : one)),
      y: used.map((one) => mean(cells.get(one).map((run) => shownNumber(y, run.numbers[y])))),
      line: { width: 2, color: tone },
    });
  }
  return {
    traces,
    rows: runRows(runs, [x, ...colourNames().filter((name) => name !== x), y]),
    pick: (point) => (point.customdata === undefined ? [] : [point.customdata]),
    layout: layout({ showlegend: true, xaxis: settingAxis(x), yaxis: { title: { text: titleOf(y) } } }),
  };
}
function sliceNames() {
  const names = colourNames(),
    settings = ofPart(names, "setting");
  const x = names.includes(look("slice.x"))
    ? look("slice.x")
    : (settings.find((name) => data.settings[name].numeric && !data.settings[name].values.includes(NONE)) ??
      (names.includes("setting") ? "setting" : (settings[0] ?? names[0])));
  return [
    x,
    data.charted[look("slice.y")]
      ? look("slice.y")
      : data.charted.balanced_accuracy_gained
        ? "balanced_accuracy_gained"
        : "target_error",
  ];
}
