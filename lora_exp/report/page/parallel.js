// Parallel coordinates, and the importance of settings.

const MOST_AXES = 9;
/** Drawn as lines over numbered axes: Plotly's own needs WebGL, which needs rights that the page does not give itself. */
function parallel(runs) {
  const measures = ["balanced_accuracy_gained", "forgetting", "target_error"].filter((name) => data.charted[name]);
  const settings = filterNames()
    .filter((name) => data.settings[name].part !== "whole")
    .slice(0, MOST_AXES - measures.length);
  const names = [...settings, ...measures],
    annotations = [];
  const places = names.map((name, column) => {
    const label = (share, text) =>
      annotations.push({
        x: column,
        y: share,
        text: plain(shortened(text, 14)),
        showarrow: false,
        xanchor: "left",
        xshift: 4,
        font: { size: 10 },
        bgcolor: colour("paper"),
        opacity: 0.85,
      });
    if (data.settings[name]) {
      const { values } = data.settings[name],
        step = Math.ceil(values.length / 10);
      values.forEach(
        (value, at) => at % step === 0 && label(values.length < 2 ? 0.5 : at / (values.length - 1), value),
      );
      return (run) => (values.length < 2 ? 0.5 : values.indexOf(run.settings[name]) / (values.length - 1));
    }
    const numbers = known(runs.map((run) => run.numbers[name])),
      low = Math.min(...numbers),
      high = Math.max(...numbers);
    if (numbers.length) for (const share of [0, 0.5, 1]) label(share, writtenNumber(name, low + share * (high - low)));
    return (run) => (run.numbers[name] === null ? null : high > low ? (run.numbers[name] - low) / (high - low) : 0.5);
  });
  const columns = names.map((_, at) => at),
    many = runs.length > 100;
  const traces = groupedByColour(runs).map(([value, own]) => ({
    type: "scatter",
    mode: "lines",
    name: plain(shortened(valueLabel(colourName(), value))),
    opacity: many ? 0.45 : 0.8,
    hovertemplate: "%{text}<extra></extra>",
    line: { color: toneOf(colourName(), value), width: many ? 0.8 : 1.6 },
    x: own.flatMap(() => [...columns, null]),
    y: own.flatMap((run) => [...places.map((place) => place(run)), null]),
    text: own.flatMap((run) => {
      const text = hoverOf(run);
      return [...columns.map(() => text), ""];
    }),
    customdata: own.flatMap((run) => [...columns.map(() => run.job), null]),
  }));
  return {
    traces,
    rows: runRows(runs, names),
    pick: (point) => [point.customdata],
    layout: layout({
      showlegend: true,
      annotations,
      hoverdistance: 30,
      margin: { l: 20, r: 60, t: 10, b: 60 },
      shapes: columns.map((at) => ({
        type: "line",
        x0: at,
        x1: at,
        y0: 0,
        y1: 1,
        line: { color: colour("faint"), width: 1 },
      })),
      xaxis: {
        tickmode: "array",
        tickvals: columns,
        ticktext: names.map((name) => shortened(titleOf(name), 22)),
        showgrid: false,
        zeroline: false,
        range: [-0.1, names.length - 0.5],
      },
      yaxis: { visible: false, range: [-0.05, 1.05] },
    }),
  };
}

function important() {
  const names = Object.keys(data.importance),
    name = names.includes(look("importance")) ? look("importance") : names[0];
  const { explained, keys } = data.importance[name],
    rows = [...keys].reverse();
  byId("explained").textContent =
    `A random forest that knows the settings explains ${Math.round(100 * Math.max(explained, 0))} % of the variance of ` +
    `${data.charted[name].title} of runs that it did not learn from (all runs of the sweep; filters do not act here). A bar is the fall of R² when that setting is ` +
    `shuffled, the whisker its standard deviation over folds and shuffles: near zero, the setting explains nothing.`;
  return {
    traces: [
      {
        type: "bar",
        orientation: "h",
        x: rows.map((row) => row[1]),
        y: rows.map((row) => row[0]),
        marker: { color: colour("blue") },
        hovertemplate: "%{y}: %{x:.2f}<extra></extra>",
        error_x: { type: "data", array: rows.map((row) => row[2]), color: colour("ink"), thickness: 1 },
      },
    ],
    rows: [["setting", "fall of R²", "standard deviation"], ...keys],
    layout: layout({
      xaxis: { title: { text: `fall of R² of ${data.charted[name].title}` } },
      yaxis: { type: "category" },
      showlegend: false,
      bargap: 0.5,
    }),
  };
}
