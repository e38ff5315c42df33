// Loss curves: the smoothed mean of each colour with its band, or single runs where they are few.

const FEW_CURVES = 8; // runs that are drawn one by one
const LEAST_LOSS = 1e-4; // a log scale has no zero
const MOST_LOSS = 1e4; // beyond it a run has diverged in all but name, and one such run would set the scale

/** Means over neighbouring points, as many as a tenth of the curve. */
function smoothed(values) {
  const half = Math.floor(values.length / 20);
  return values.map((_, at) => mean(values.slice(Math.max(0, at - half), at + half + 1)));
}

function losses(all) {
  const runs = all.filter((run) => run.losses[0].length),
    traces = [];
  const rows = [["setting", "step", "mean loss (nats)", "low", "high", "runs"]];
  let apart = 0;
  for (const [value, own] of groupedByColour(runs)) {
    // Curves of other lengths have other steps, and no mean with the rest.
    const lengths = [...grouped(own, (run) => run.losses[0].join()).values()].sort(
      (one, other) => other.length - one.length,
    );
    lengths.forEach((members, place) => {
      apart += place ? members.length : 0;
      addCurves(traces, rows, value, members, place === 0, runs.length <= FEW_CURVES);
    });
  }
  byId("losses-note").textContent =
    "Lines are geometric means over the runs of a colour, smoothed over a tenth of the steps; bands are one standard " +
    `deviation of the logarithm.${apart ? ` ${apart} runs of other lengths have lines of their own.` : ""}`;
  const decades = Math.log10(Math.max(...rows.slice(1).map((row) => row[4])) / LEAST_LOSS);
  return {
    traces,
    rows,
    pick: (point) => point.customdata ?? [],
    layout: layout({
      showlegend: data.runs.length > 1,
      xaxis: { title: { text: "fine-tuning step" } },
      yaxis: {
        type: "log",
        title: { text: "cross-entropy (nats)" },
        exponentformat: "power",
        dtick: Math.ceil(decades / 10),
      },
    }),
  };
}

/** The mean of runs of one colour and length, its band, and, where they are few, the runs themselves. */
function addCurves(traces, rows, value, members, isFirst, isFew) {
  const label = valueLabel(colourName(), value),
    name = plain(shortened(label)),
    tone = toneOf(colourName(), value),
    steps = members[0].losses[0];
  const logs = steps.map((_, at) =>
    members.map((run) => Math.log(Math.min(Math.max(run.losses[1][at], LEAST_LOSS), MOST_LOSS))),
  );
  const middle = smoothed(logs.map(mean)),
    spread = smoothed(logs.map((values) => (values.length < 2 ? 0 : deviation(values))));
  const [line, low, high] = [0, -1, 1].map((sign) => middle.map((one, at) => Math.exp(one + sign * spread[at])));
  const shared = { type: "scatter", mode: "lines", legendgroup: name };
  const [red, green, blue] = parts(tone);
  if (members.length > 1)
    traces.push({
      ...shared,
      x: [...steps, ...[...steps].reverse()],
      y: [...high, ...[...low].reverse()],
      fill: "toself",
      fillcolor: `rgba(${red},${green},${blue},0.18)`,
      line: { width: 0 },
      hoverinfo: "skip",
      showlegend: false,
    });
  traces.push({
    ...shared,
    x: steps,
    y: line,
    name,
    showlegend: isFirst,
    line: { color: tone, width: 2 },
    customdata: steps.map(() => members.map((run) => run.job)),
    hovertemplate: `${name}, step %{x:.0f}: %{y:.3g} nats, ${members.length} runs<extra></extra>`,
  });
  if (isFew && members.length > 1)
    for (const run of members)
      traces.push({
        ...shared,
        x: steps,
        y: run.losses[1],
        showlegend: false,
        opacity: 0.7,
        line: { color: tone, width: 0.7 },
        customdata: steps.map(() => [run.job]),
        text: steps.map(() => hoverOf(run)),
        hovertemplate: "%{text}<extra></extra>",
      });
  steps.forEach((step, at) => rows.push([label, step, line[at], low[at], high[at], members.length]));
}
