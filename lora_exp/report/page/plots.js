// The charts of all shown runs: maps, gain against price, slices, parallel coordinates, importance.

const measureNames = () => Object.keys(data.charted);
const runRows = (runs, names) => [["job", "run", ...names.map(titleOf)],
  ...runs.map((run) => [run.job, run.label, ...names.map((name) => data.settings[name] ? run.settings[name] : shownNumber(name, run.numbers[name]))])];

/** The axes of maps: a whole setting, or the setting with most values, across; the class, or what else varies, down. */
function mapAxes() {
  const names = filterNames(), settings = ofPart(names, "setting");
  const across = names.includes("setting") ? "setting" : settings[0] ?? names.find((name) => name !== "target") ?? "target";
  const down = names.includes("target") ? "target" : names.find((name) => name !== across && name !== "setting") ?? across;
  const pick = (key, value) => (names.includes(look(key)) ? look(key) : value);
  return [pick("map.x", across), pick("map.y", down)];
}
const isContour = () => look("map.as") === "contour" && mapAxes().every((name) => data.settings[name].numeric) && mapAxes()[0] !== mapAxes()[1];

function buildMapChoices() {
  const [across, down] = mapAxes(), names = colourNames();
  const again = (key) => (value) => { state.looks[key] = value; buildMapChoices(); update(); };
  const numeric = mapAxes().every((name) => data.settings[name].numeric) && across !== down;
  byId("map-choices").replaceChildren(choice("across", names, across, again("map.x")), choice("down", names, down, again("map.y")),
    ...(numeric ? [choice("as", ["cells", "contour"], isContour() ? "contour" : "cells", again("map.as"), (name) => name)] : []));
}

const STACKED = 8, CELL = 40; // columns of maps that stand above each other; pixels that a number needs
const DIVERGING = () => [parts(colour("vermilion")), parts(colour("paper")), parts(colour("blue"))];

function mapOf(name, title, around) {
  return (runs) => {
    const [across, down] = mapAxes(), cells = grouped(runs.filter((run) => !run.repeats), (run) => keyOf(run, [across, down]));
    const used = (key) => data.settings[key].values.filter((value) => runs.some((run) => run.settings[key] === value));
    const [xs, ys] = [used(across), used(down)];
    const membersOf = (x, y) => cells.get(JSON.stringify([x, y])) ?? [];
    const value = (x, y) => {
      const found = known(membersOf(x, y).map((run) => run.numbers[name]));
      return found.length ? mean(found) : null;
    };
    const means = ys.map((y) => xs.map((x) => value(x, y)));
    const all = known(means.flat()), most = Math.max(...all.map(Math.abs), 1e-4);
    const [low, high] = around ? [-most, most] : [Math.min(...all), Math.max(...all)];
    const stops = around ? DIVERGING() : VIRIDIS;
    const toneAt = (cell) => mixed(stops, high > low ? (cell - low) / (high - low) : 0.5);
    const text = (cell) => (cell === null ? NONE : writtenNumber(name, cell));
    const flat = ys.flatMap((y, row) => xs.map((x, column) => ({ x, y, cell: means[row][column] })));
    const hover = ({ x, y, cell }) => `${valueLabel(across, x)}, ${valueLabel(down, y)}<br>${titleOf(name)}: ${text(cell)}` +
      `<br>${membersOf(x, y).length} runs: job ${membersOf(x, y).slice(0, 8).map((run) => run.job).join(", ")}`;
    const scale = stops.map((stop, at) => [at / (stops.length - 1), rgb(stop)]);
    const contour = isContour(), numbers = (values) => (contour ? values.map(Number) : values);
    const shared = { x: numbers(xs), y: numbers(ys), z: means.map((row) => row.map((cell) => (cell === null ? null : cell * factorOf(name)))),
      colorscale: scale, zmin: low * factorOf(name), zmax: high * factorOf(name), colorbar: { thickness: 10, outlinewidth: 0 }, hoverinfo: "text",
      text: ys.map((y, row) => xs.map((x, column) => hover({ x, y, cell: means[row][column] }))) };
    byId("maps").querySelector(".charts").classList.toggle("stacked", xs.length > STACKED);
    const written = !contour && byId(`map-${name}`).clientWidth - 160 > CELL * xs.length && ys.length <= 24;
    const traces = [{ type: contour ? "contour" : "heatmap", ...(contour ? { connectgaps: true } : { xgap: 1, ygap: 1 }), ...shared }];
    // Texts in a trace of their own, since each needs the colour that stands out from its cell.
    if (written) traces.push({ type: "scatter", mode: "text", x: flat.map((one) => one.x), y: flat.map((one) => one.y), text: flat.map((one) => text(one.cell)),
      textfont: { color: flat.map((one) => (one.cell === null ? colour("ink") : textOn(toneAt(one.cell)))), size: xs.length > 8 ? 10 : 12 }, hoverinfo: "skip", showlegend: false });
    const axis = (key, values, more) => ({ ...(contour ? settingAxis(key) : { type: "category", title: { text: titleOf(key) }, categoryorder: "array", categoryarray: values, ...named(values, 18, 30) }), showgrid: false, ...more });
    return {
      traces, rows: [[titleOf(across), titleOf(down), titleOf(name), "runs"], ...flat.map(({ x, y, cell }) => [x, y, cell === null ? null : cell * factorOf(name), membersOf(x, y).length])],
      layout: layout({ title: { text: title, font: { size: 14 } }, margin: { l: 50, r: 10, t: 40, b: 45 }, showlegend: false,
        xaxis: axis(across, xs), yaxis: axis(down, ys, contour ? {} : { autorange: "reversed" }) }),
      pick: (point) => membersOf(String(xs[numbers(xs).indexOf(point.x)]), String(ys[numbers(ys).indexOf(point.y)])).map((run) => run.job),
    };
  };
}

/** The runs of a class that no other of it beats in both measures, in the order of the first. */
function frontOf(runs, x, y) {
  const sign = (name) => -data.charted[name].better, front = [];
  const value = (run, name) => sign(name) * run.numbers[name];
  for (const run of [...runs].sort((a, b) => value(a, x) - value(b, x) || value(a, y) - value(b, y)))
    if (!front.length || value(run, y) < value(front.at(-1), y)) front.push(run);
  return front;
}

function markTraces(runs, xOf, yOf) {
  return [...groupedByColour(runs).map(([value, own]) => ({
    type: "scatter", mode: "markers", name: shortened(valueLabel(colourName(), value)), customdata: own.map((run) => run.job),
    x: own.map(xOf), y: own.map(yOf), text: own.map(hoverOf), hovertemplate: "%{text}<extra></extra>",
    marker: { color: toneOf(colourName(), value), symbol: own.map(symbolOf), size: runs.length > 300 ? 7 : 10, opacity: 0.85, line: { width: 1, color: colour("paper") } },
  })), ...symbolTraces(runs)];
}
const listed = (traces) => traces.filter((trace) => trace.showlegend !== false).length <= MOST_LISTED;

const scatterNames = () => [look("price.x", "forgetting"), look("price.y", "target_error")]
  .map((name) => (data.charted[name] ? name : "forgetting"));

function scatter(all) {
  const [x, y] = scatterNames(), runs = all.filter((run) => known([run.numbers[x] ?? null, run.numbers[y] ?? null]).length === 2);
  const traces = markTraces(runs, (run) => shownNumber(x, run.numbers[x]), (run) => shownNumber(y, run.numbers[y]));
  const task = ofPart(filterNames(), "task"), tasks = [...grouped(runs.filter((run) => !run.repeats), (run) => keyOf(run, task))];
  if (x !== y && data.charted[x].better && data.charted[y].better) tasks.forEach(([, own], at) => {
    const front = frontOf(own, x, y);
    traces.push({ type: "scatter", mode: "lines", name: tasks.length > 1 ? "fronts" : "front", legendgroup: "front", showlegend: at === 0, hoverinfo: "skip",
      line: { color: colour("faint"), width: 1.5, dash: "dot" },
      x: front.map((run) => shownNumber(x, run.numbers[x])), y: front.map((run) => shownNumber(y, run.numbers[y])) });
  });
  return { traces, rows: runRows(runs, [...colourNames(), x, y]), pick: (point) => [point.customdata],
    layout: layout({ showlegend: listed(traces), xaxis: { title: { text: titleOf(x) } }, yaxis: { title: { text: titleOf(y) } } }) };
}

function slice(all) {
  const [x, y] = sliceNames(), { numeric, values } = data.settings[x];
  const runs = all.filter((run) => run.numbers[y] !== null && (!numeric || run.settings[x] !== NONE));
  const at = (run) => (numeric ? Number(run.settings[x]) : run.settings[x]);
  const traces = markTraces(runs, at, (run) => shownNumber(y, run.numbers[y]));
  for (const [value, own] of colourName() === x ? [["", runs]] : groupedByColour(runs)) {
    const cells = grouped(own.filter((run) => !run.repeats), (run) => run.settings[x]), used = values.filter((one) => cells.has(one));
    traces.push({ type: "scatter", mode: "lines", showlegend: false, hoverinfo: "skip", x: used.map((one) => (numeric ? Number(one) : one)),
      y: used.map((one) => mean(cells.get(one).map((run) => shownNumber(y, run.numbers[y])))),
      line: { width: 2, color: value === "" ? colour("faint") : toneOf(colourName(), value) } });
  }
  return { traces, rows: runRows(runs, [x, ...colourNames().filter((name) => name !== x), y]), pick: (point) => (point.customdata === undefined ? [] : [point.customdata]),
    layout: layout({ showlegend: listed(traces), xaxis: settingAxis(x), yaxis: { title: { text: titleOf(y) } } }) };
}
function sliceNames() {
  const names = colourNames(), settings = ofPart(names, "setting");
  const x = names.includes(look("slice.x")) ? look("slice.x") : settings.find((name) => data.settings[name].numeric) ?? settings[0] ?? names[0];
  return [x, data.charted[look("slice.y")] ? look("slice.y") : data.charted.balanced_accuracy_gained ? "balanced_accuracy_gained" : "target_error"];
}

const MOST_AXES = 9;
/** Drawn as lines over numbered axes: Plotly's own needs WebGL, which needs rights that the page does not give itself. */
function parallel(runs) {
  const measures = ["balanced_accuracy_gained", "forgetting", "target_error"].filter((name) => data.charted[name]);
  const settings = filterNames().filter((name) => data.settings[name].part !== "whole").slice(0, MOST_AXES - measures.length);
  const names = [...settings, ...measures], annotations = [];
  const places = names.map((name, column) => {
    const label = (share, text) => annotations.push({ x: column, y: share, text: shortened(text, 14), showarrow: false, xanchor: "left", xshift: 4, font: { size: 10 }, bgcolor: colour("paper"), opacity: 0.85 });
    if (data.settings[name]) {
      const { values } = data.settings[name], step = Math.ceil(values.length / 10);
      values.forEach((value, at) => at % step === 0 && label(values.length < 2 ? 0.5 : at / (values.length - 1), value));
      return (run) => (values.length < 2 ? 0.5 : values.indexOf(run.settings[name]) / (values.length - 1));
    }
    const numbers = known(runs.map((run) => run.numbers[name])), low = Math.min(...numbers), high = Math.max(...numbers);
    if (numbers.length) for (const share of [0, 0.5, 1]) label(share, writtenNumber(name, low + share * (high - low)));
    return (run) => (run.numbers[name] === null ? null : high > low ? (run.numbers[name] - low) / (high - low) : 0.5);
  });
  const columns = names.map((_, at) => at), many = runs.length > 100;
  const traces = groupedByColour(runs).map(([value, own]) => ({
    type: "scatter", mode: "lines", name: shortened(valueLabel(colourName(), value)), opacity: many ? 0.45 : 0.8, hovertemplate: "%{text}<extra></extra>",
    line: { color: toneOf(colourName(), value), width: many ? 0.8 : 1.6 },
    x: own.flatMap(() => [...columns, null]), y: own.flatMap((run) => [...places.map((place) => place(run)), null]),
    text: own.flatMap((run) => { const text = hoverOf(run); return [...columns.map(() => text), ""]; }), customdata: own.flatMap((run) => [...columns.map(() => run.job), null]),
  }));
  return { traces, rows: runRows(runs, names), pick: (point) => [point.customdata],
    layout: layout({ showlegend: listed(traces), annotations, hoverdistance: 30, margin: { l: 20, r: 60, t: 10, b: 60 },
      shapes: columns.map((at) => ({ type: "line", x0: at, x1: at, y0: 0, y1: 1, line: { color: colour("faint"), width: 1 } })),
      xaxis: { tickmode: "array", tickvals: columns, ticktext: names.map((name) => shortened(titleOf(name), 22)), showgrid: false, zeroline: false, range: [-0.1, names.length - 0.5] },
      yaxis: { visible: false, range: [-0.05, 1.05] } }) };
}

function important() {
  const names = Object.keys(data.importance), name = names.includes(look("importance")) ? look("importance") : names[0];
  const { explained, keys } = data.importance[name], rows = [...keys].reverse();
  byId("explained").textContent = `A random forest that knows the settings explains ${Math.round(100 * Math.max(explained, 0))} % of the variance of ` +
    `${data.charted[name].title} of runs that it did not learn from (all runs of the sweep; filters do not act here). A bar is the fall of R² when that setting is ` +
    `shuffled, the whisker its standard deviation over folds and shuffles: near zero, the setting explains nothing.`;
  return {
    traces: [{ type: "bar", orientation: "h", x: rows.map((row) => row[1]), y: rows.map((row) => row[0]), marker: { color: colour("blue") }, hovertemplate: "%{y}: %{x:.2f}<extra></extra>",
      error_x: { type: "data", array: rows.map((row) => row[2]), color: colour("ink"), thickness: 1 } }],
    rows: [["setting", "fall of R²", "standard deviation"], ...keys],
    layout: layout({ xaxis: { title: { text: `fall of R² of ${data.charted[name].title}` } }, yaxis: { type: "category" }, showlegend: false, bargap: 0.5 }),
  };
}
