// Means, intervals and the recommendation of the runs that are shown, as storage/recommendation.py has them of a sweep.
// Tests hold both to the same cells.

/** The mean with Student's 95 % interval; limits of NaN for a single value. */
function meanInterval(values) {
  const middle = mean(values);
  if (values.length < 2) return [middle, NaN, NaN];
  const half = (quantile(values.length) * deviation(values)) / Math.sqrt(values.length);
  return [middle, middle - half, middle + half];
}

function deviation(values) {
  const middle = mean(values);
  return Math.sqrt(values.reduce((sum, value) => sum + (value - middle) ** 2, 0) / (values.length - 1));
}

const quantile = (count) => data.quantiles[Math.min(count, data.quantiles.length + 1) - 2];

/** How many more values would move the interval off zero: 0 for none, null for too many, 2 for a single value. */
function furtherValues(values) {
  if (values.length < 2) return 2;
  const middle = Math.abs(mean(values)),
    spread = deviation(values);
  for (let count = values.length; count <= data.quantiles.length + 1; count++)
    if (middle > (quantile(count) * spread) / Math.sqrt(count)) return count - values.length;
  return null;
}

/** The settings in which these runs differ; the key of whole settings is none. */
const variedNames = (runs) =>
  Object.keys(data.settings).filter(
    (name) =>
      data.settings[name].part !== "whole" &&
      new Set(runs.map((run) => run.settings[name]).filter((text) => text !== NONE)).size > 1,
  );
const ofPart = (names, part) => names.filter((name) => data.settings[name].part === part);

function labelOf(settings, names) {
  return names
    .filter((name) => settings[name] !== NONE)
    .map((name) => valueLabel(name, settings[name]))
    .join(", ");
}

function valueLabel(name, text) {
  if (name === "target") {
    const words = text.replaceAll(",", " and ");
    return /^[\d,]+$/.test(text) ? `class${text.includes(",") ? "es" : ""} ${words}` : words;
  }
  return ["method", "data", "origin", "setting"].includes(name) ? text : `${data.settings[name].title} ${text}`;
}

/** The seed that a run repeats its setting with: that of its base where these have several. */
function replicateOf(runs) {
  const overBases = new Set(known(runs.map((run) => run.seeds[1]))).size > 1;
  return { overBases, replicate: (run) => run.seeds[overBases ? 1 : 0] };
}

const keyOf = (run, names) => JSON.stringify(names.map((name) => run.settings[name]));

function recommendations(shown, lost) {
  const runs = shown.filter((run) => !run.repeats);
  if (!runs.length) return [];
  const names = variedNames(runs),
    task = ofPart(names, "task"),
    wide = task.filter((name) => name !== "target");
  const found = [];
  for (const group of grouped(runs, (run) => keyOf(run, wide)).values()) {
    const given = Object.fromEntries(wide.map((name) => [name, group[0].settings[name]]));
    const away = lost.filter((one) => wide.every((name) => one[name] === given[name]));
    const classes = [...new Set(group.map((run) => run.target))].sort(byClass);
    if (classes.length > 1) found.push(best(given, classes, group, names, away));
    for (const name of classes) {
      const own = task.includes("target") ? { ...given, target: name } : given;
      const gone = away.filter((one) => !task.includes("target") || one.target === name);
      found.push(
        best(
          own,
          [name],
          group.filter((run) => run.target === name),
          names,
          gone,
        ),
      );
    }
  }
  return found;
}

/** Classes as `target_order` in storage/table.py sorts them: numbers by value, others after them. */
function byClass(one, other) {
  const keys = [one, other].map((text) =>
    text.split(",").map((name) => (/^\d+$/.test(name) ? [Number(name), ""] : [1e9, name])),
  );
  for (let at = 0; at < Math.min(keys[0].length, keys[1].length); at++) {
    const [a, b] = [keys[0][at], keys[1][at]];
    if (a[0] !== b[0]) return a[0] - b[0];
    if (a[1] !== b[1]) return a[1] < b[1] ? -1 : 1;
  }
  return keys[0].length - keys[1].length;
}

function best(task, classes, runs, names, lost) {
  const { overBases, replicate } = replicateOf(runs),
    own = ofPart(
      Object.keys(data.settings).filter((name) => names.includes(name) || data.fixed.includes(name)),
      "setting",
    );
  const settings = [...grouped(runs, (run) => keyOf(run, own)).values()];
  const meanOf = (group, name) => mean(known(group.map((run) => run.numbers[name])));
  const ranks = settings.map((group) => [
    -lost.filter((one) => own.every((name) => one[name] === group[0].settings[name])).length,
    new Set(group.map((run) => JSON.stringify([replicate(run), run.target]))).size,
    meanOf(group, "chosen_gained"),
    -meanOf(group, "chosen_forgetting"),
  ]);
  let at = 0;
  ranks.forEach((rank, place) => {
    const differs = rank.findIndex((value, part) => value !== ranks[at][part]);
    if (differs >= 0 && rank[differs] > ranks[at][differs]) at = place;
  });
  const group = [...settings[at]].sort((a, b) => byClass(a.target, b.target) || a.job - b.job);
  const over = (name) => {
    const seeds = [...grouped(group, replicate)].sort(([a], [b]) => (a ?? -1) - (b ?? -1));
    return seeds
      .map(([, members]) => known(members.map((run) => run.numbers[name])))
      .filter((values) => values.length)
      .map(mean);
  };
  const others = settings.map((other, place) =>
    place === at ? null : [labelOf(other[0].settings, own), isClose(group, other, replicate)],
  );
  const rivals = others.filter((one) => one !== null);
  const value = (name) => {
    const values = known(group.map((run) => run.numbers[name] ?? null));
    return values.length ? mean(values) : NaN;
  };
  return {
    task,
    classes,
    group,
    overBases,
    value,
    setting: labelOf(group[0].settings, own),
    gained: over("elsewhere_gained"),
    beyond: over("beyond_shift"),
    close:
      rivals.length && rivals.every(([, close]) => close !== null)
        ? rivals.filter(([, close]) => close).map(([name]) => name)
        : null,
  };
}

/** Whether the interval of the paired difference has zero inside; null with fewer than three bases in common. */
function isClose(group, other, replicate) {
  const cells = [group, other].map(
    (runs) =>
      new Map(
        [...grouped(runs, (run) => JSON.stringify([replicate(run), run.target]))].map(([key, own]) => [
          key,
          mean(own.map((run) => run.numbers.elsewhere_gained)),
        ]),
      ),
  );
  const shared = [...cells[0].keys()].filter((key) => cells[1].has(key));
  const bySeed = grouped(shared, (key) => JSON.parse(key)[0]);
  const differences = [...bySeed.values()].map((keys) =>
    mean(keys.map((key) => cells[0].get(key) - cells[1].get(key))),
  );
  if (differences.length < 3) return null;
  const [, low, high] = meanInterval(differences);
  return !(low > 0 || high < 0);
}

// ---------------------------------------------------------------- its words, as report/recommended.py writes them

function howSure(one) {
  const count = one.gained.length;
  if (count < 2) return "1 base: 2 more at least";
  const [, low, high] = meanInterval(one.gained),
    further = furtherValues(one.gained);
  const start = `${count} ${one.overBases ? "bases" : "seeds"}, ${points(low)} to ${points(high)}`;
  return further === 0 ? `${start}: decided` : `${start}: ${further === null ? "over 100" : further} more to decide`;
}

function taskLabel(one) {
  const rest = Object.keys(one.task).filter((name) => name !== "target");
  const who =
    one.classes.length === 1
      ? valueLabel("target", one.classes[0])
      : one.classes.length === 2
        ? "both classes"
        : `all ${one.classes.length} classes`;
  return [who, labelOf(one.task, rest)].filter(Boolean).join(", ");
}

function recommendedCells(one, withClose) {
  const value = one.value,
    chosen = one.setting || (one.group.length > 1 ? "all runs alike" : "the run");
  const isGain = value("elsewhere_gained") > 0;
  const pair = (before, after) => (Number.isNaN(before) ? NONE : `${percent(before)} → ${percent(after)}`);
  const cells = [
    shortened(taskLabel(one), 60),
    isGain ? element("strong", chosen) : `${data.keep} (next: ${chosen})`,
    pair(value("balanced_accuracy_before"), value("balanced_accuracy")),
    points(value("elsewhere_gained")),
    pair(1 - value("target_error_before"), 1 - value("target_error")),
    points(value("elsewhere_forgetting")),
    one.beyond.length ? points(value("beyond_shift")) : NONE,
    Math.round(value("parameters_adapter")).toLocaleString("en"),
    howSure(one),
  ];
  if (!withClose) return cells;
  const more = (one.close?.length ?? 0) - 3;
  const close =
    one.close === null
      ? NONE
      : one.close.length
        ? one.close.slice(0, 3).join("; ") + (more > 0 ? `; ${more} more` : "")
        : "none";
  return [...cells, close];
}
