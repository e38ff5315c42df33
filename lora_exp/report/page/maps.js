// Maps: the means of a measure by two settings, as cells or as contours.

/** The key that all runs share, for maps of one setting alone. */
const ALL = "all";
function addAll() {
  data.settings[ALL] = { title: "all together", values: [ALL], numeric: false, part: "whole" };
  for (const run of data.runs) run.settings[ALL] = ALL;
}

/** The axes of maps: a whole setting, or the setting with most values, across; the class, or what else varies, down. */
function mapAxes() {
  const names = filterNames(),
    settings = ofPart(names, "setting");
  const across = names.includes("setting")
    ? "setting"
    : (settings[0] ?? names.find((name) => name !== "target") ?? "target");
  const down =
    names.includes("target") && across !== "target"
      ? "target"
      : (names.find((name) => name !== across && name !== "setting") ?? ALL);
  const pick = (key, value) => ([...names, ALL].includes(look(key)) ? look(key) : value);
  const chosen = pick("map.x", across),
    other = pick("map.y", down);
  return [chosen, other === chosen ? ALL : other];
}
const isContour = () =>
  look("map.as") === "contour" &&
  mapAxes().every((name) => data.settings[name].numeric) &&
  mapAxes()[0] !== mapAxes()[1];

function buildMapChoices() {
  const [across, down] = mapAxes(),
    names = colourNames();
  const again = (key) => (value) => {
    state.looks[key] = value;
    buildMapChoices();
    update();
  };
  const numeric = mapAxes().every((name) => data.settings[name].numeric) && across !== down;
  byId("map-choices").replaceChildren(
    choice("across", [...names, ALL], across, again("map.x")),
    choice(
      "down",
      [...names, ALL].filter((name) => name !== across),
      down,
      again("map.y"),
    ),
    ...(numeric
      ? [choice("as", ["cells", "contour"], isContour() ? "contour" : "cells", again("map.as"), (name) => name)]
      : []),
  );
}

const STACKED = 8,
  CELL = 40; // columns of maps that stand above each other; pixels that a number needs
const DIVERGING = () => [parts(colour("vermilion")), parts(colour("paper")), parts(colour("blue"))];

function mapOf(name, title, around) {
  return (runs) => {
    const [across, down] = mapAxes(),
      cells = grouped(
        runs.filter((run) => !run.repeats),
        (run) => keyOf(run, [across, down]),
      );
    const used = (key) => data.settings[key].values.filter((value) => runs.some((run) => run.settings[key] === value));
    const [xs, ys] = [used(across), used(down)];
    const membersOf = (x, y) => cells.get(JSON.stringify([x, y])) ?? [];
    const value = (x, y) => {
      const found = known(membersOf(x, y).map((run) => run.numbers[name]));
      return found.length ? mean(found) : null;
    };
    const means = ys.map((y) => xs.map((x) => value(x, y)));
    const all = known(means.flat()),
      most = Math.max(...all.map(Math.abs), 1e-4);
    const [low, high] = around ? [-most, most] : [Math.min(...all), Math.max(...all)];
    const stops = around ? DIVERGING() : VIRIDIS;
    const toneAt = (cell) => mixed(stops, high > low ? (cell - low) / (high - low) : 0.5);
    const text = (cell) => (cell === null ? NONE : writtenNumber(name, cell));
    const flat = ys.flatMap((y, row) => xs.map((x, column) => ({ x, y, cell: means[row][column] })));
    const hover = ({ x, y, cell }) =>
      `${[across, down]
        .map((key, at) => (key === ALL ? "" : plain(valueLabel(key, at ? y : x))))
        .filter(Boolean)
        .join(", ")}<br>${titleOf(name)}: ${text(cell)}` +
      `<br>${membersOf(x, y).length} runs: job ${membersOf(x, y)
        .slice(0, 8)
        .map((run) => run.job)
        .join(", ")}`;
    const scale = stops.map((stop, at) => [at / (stops.length - 1), rgb(stop)]);
    const contour = isContour(),
      numbers = (values) => (contour ? values.map(Number) : values);
    const shared = {
      x: numbers(xs),
      y: numbers(ys),
      z: means.map((row) => row.map((cell) => (cell === null ? null : cell * factorOf(name)))),
      colorscale: scale,
      zmin: low * factorOf(name),
      zmax: high * factorOf(name),
      colorbar: { thickness: 10, outlinewidth: 0 },
      hoverinfo: "text",
      text: ys.map((y, row) => xs.map((x, column) => hover({ x, y, cell: means[row][column] }))),
    };
    byId("maps")
      .querySelector(".charts")
      .classList.toggle("stacked", xs.length > STACKED);
    const written = !contour && byId(`map-${name}`).clientWidth - 160 > CELL * xs.length && ys.length <= 24;
    const traces = [
      { type: contour ? "contour" : "heatmap", ...(contour ? { connectgaps: true } : { xgap: 1, ygap: 1 }), ...shared },
    ];
    // Texts in a trace of their own, since each needs the colour that stands out from its cell.
    if (written)
      traces.push({
        type: "scatter",
        mode: "text",
        x: flat.map((one) => one.x),
        y: flat.map((one) => one.y),
        text: flat.map((one) => text(one.cell)),
        textfont: {
          color: flat.map((one) => (one.cell === null ? colour("ink") : textOn(toneAt(one.cell)))),
          size: xs.length > 8 ? 10 : 12,
        },
        hoverinfo: "skip",
        showlegend: false,
      });
    const axis = (key, values, more) => ({
      ...(contour
        ? settingAxis(key)
        : {
            type: "category",
            title: { text: titleOf(key) },
            categoryorder: "array",
            categoryarray: values,
            ...named(values, key === "setting" ? 40 : 18, 30),
          }),
      showgrid: false,
      ...more,
    });
    return {
      traces,
      rows: [
        [titleOf(across), titleOf(down), titleOf(name), "runs"],
        ...flat.map(({ x, y, cell }) => [x, y, cell === null ? null : cell * factorOf(name), membersOf(x, y).length]),
      ],
      layout: layout({
        title: { text: title, font: { size: 14 } },
        margin: { l: 50, r: 10, t: 40, b: 45 },
        showlegend: false,
        xaxis: axis(across, xs),
        yaxis: axis(down, ys, contour ? {} : { autorange: "reversed" }),
      }),
      pick: (point) =>
        membersOf(String(xs[numbers(xs).indexOf(point.x)]), String(ys[numbers(ys).indexOf(point.y)])).map(
          (run) => run.job,
        ),
    };
  };
}
