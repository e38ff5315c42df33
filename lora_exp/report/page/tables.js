// Tables of the shown runs: the recommendation, means by any setting, and the runs, with sorting and one tab stop.

const rows = new Map(); // job -> its row in the table of runs

function showRecommendation(runs) {
  const found = recommendations(runs, shownLost()),
    filtered = runs.length < data.runs.length;
  const note = byId("of-shown");
  if (!byId("recommended")) return found;
  document.querySelector(".headline").hidden = filtered;
  note.hidden = !filtered;
  note.textContent = `Of the ${runs.length} runs that are shown, of ${data.runs.length}:`;
  const withClose = found.some((one) => one.close !== null);
  const [task, recommended, ...others] = [...byId("recommended").tHead.rows[0].cells].map((cell) => cell.textContent);
  const headings = [task, recommended, ...others.slice(0, 7), ...(withClose ? ["no difference shown from"] : [])];
  fillTable(
    byId("recommended"),
    headings,
    found.map((one) => recommendedCells(one, withClose)),
    2,
  );
  return found;
}

const MEAN_OF = ["balanced_accuracy_gained", "forgetting", "beyond_shift", "target_error", "other_error"];

function showMeans(runs) {
  if (!byId("means-table")) return;
  const names = colourNames(),
    name = names.includes(look("means")) ? look("means") : defaultMeans(names);
  byId("mean-choices").replaceChildren(choice("by", names, name, (value) => setLook("means", value)));
  const measures = MEAN_OF.filter((one) => data.charted[one]),
    { values } = data.settings[name];
  const groups = grouped(
      runs.filter((run) => !run.repeats),
      (run) => run.settings[name],
    ),
    { replicate } = replicateOf(runs);
  const headings = [
    titleOf(name),
    "runs",
    "bases or seeds",
    ...measures.flatMap((one) => [titleOf(one), "95 % interval"]),
    "parameters",
  ];
  fillTable(
    byId("means-table"),
    headings,
    values
      .filter((value) => groups.has(value))
      .map((value) => {
        const own = groups.get(value),
          seeds = [...grouped(own, replicate).values()];
        return [
          value,
          String(own.length),
          String(seeds.length),
          ...measures.flatMap((one) => {
            const perSeed = seeds
              .map((members) => known(members.map((run) => run.numbers[one])))
              .filter((found) => found.length)
              .map(mean);
            if (!perSeed.length) return [NONE, NONE];
            const [middle, low, high] = meanInterval(perSeed);
            return [
              writtenNumber(one, middle),
              Number.isNaN(low) ? NONE : `${writtenNumber(one, low)} to ${writtenNumber(one, high)}`,
            ];
          }),
          Math.round(mean(own.map((run) => run.numbers.parameters_adapter))).toLocaleString("en"),
        ];
      }),
  );
}
const defaultMeans = (names) => (names.includes("setting") ? "setting" : (ofPart(names, "setting")[0] ?? names[0]));

// ---------------------------------------------------------------- the table of runs

function showRows(runs) {
  const jobs = new Set(runs.map((run) => run.job)),
    text = state.text.toLowerCase();
  for (const [job, row] of rows) row.hidden = !jobs.has(job) || !row.dataset.text.includes(text);
  setTabStop(gridCells()[0]?.[0]);
}

/** The sort key of a cell: its number, or else its text; cells without a value come last. */
function sortKey(text) {
  if (text === NONE) return [2, 0, ""];
  const number = Number(/^[+-]?\d{1,3}(,\d{3})+$/.test(text) ? text.replaceAll(",", "") : text);
  return Number.isNaN(number) ? [1, 0, text] : [0, number, ""];
}

function sortBy(column, header) {
  const down = header.getAttribute("aria-sort") === "ascending";
  for (const other of header.parentNode.children) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", down ? "descending" : "ascending");
  const compare = new Intl.Collator("en", { numeric: true }).compare;
  const keyed = [...rows.values()].map((row) => [sortKey(row.cells[column].textContent), row]);
  keyed.sort(([a], [b]) => (down && a[0] === b[0] ? -1 : 1) * (a[0] - b[0] || a[1] - b[1] || compare(a[2], b[2])));
  byId("runs-table").tBodies[0].append(...keyed.map(([, row]) => row));
}

function buildTable() {
  const made = byId("runs-table"),
    runs = new Map(data.runs.map((run) => [run.job, run]));
  made.setAttribute("role", "grid");
  for (const row of made.tBodies[0].rows) {
    const job = Number(row.cells[0].textContent),
      { command, label } = runs.get(job);
    rows.set(job, row);
    row.title = command;
    row.dataset.text = `${row.textContent} job ${job}: ${label} ${command}`.toLowerCase();
  }
  made.addEventListener("click", (event) => {
    const button = event.target.closest("button"),
      row = event.target.closest("tbody tr");
    if (!button) return;
    setTabStop(button);
    if (!row) return sortBy(button.closest("th").cellIndex, button.closest("th"));
    const job = Number(row.cells[0].textContent);
    if (button.className === "copy") return copy(runs.get(job).command, button);
    pick([job]);
    byId("one").scrollIntoView();
  });
  made.addEventListener("keydown", moveInGrid);
  byId("find").addEventListener("input", (event) => {
    state.text = event.target.value;
    showRows(shownRuns());
  });
}

/** The cells that hold the focus: a heading's button, a row's buttons, and cells of text. */
const gridCells = () =>
  [...byId("runs-table").rows]
    .filter((row) => !row.hidden)
    .map((row) => [...row.cells].map((cell) => cell.querySelector("button") ?? cell));

function setTabStop(stop) {
  for (const other of byId("runs-table").querySelectorAll("[tabindex='0']")) other.tabIndex = -1;
  if (stop) stop.tabIndex = 0;
}

/** Arrow keys, Home and End move through the table, as WAI-ARIA's pattern of a grid has it. */
function moveInGrid(event) {
  const moves = {
    ArrowRight: [0, 1],
    ArrowLeft: [0, -1],
    ArrowDown: [1, 0],
    ArrowUp: [-1, 0],
    Home: [0, -Infinity],
    End: [0, Infinity],
    PageDown: [20, 0],
    PageUp: [-20, 0],
  };
  const move = moves[event.key];
  if (!move) return;
  const cells = gridCells(),
    own = event.target.closest("button") ?? event.target.closest("td, th");
  const row = cells.findIndex((line) => line.includes(own)),
    column = cells[row]?.indexOf(own) ?? -1;
  if (row < 0) return;
  const clamp = (at, count) => Math.min(Math.max(at, 0), count - 1);
  const next = cells[clamp(row + move[0], cells.length)][clamp(column + move[1], cells[0].length)];
  event.preventDefault();
  setTabStop(next);
  next.focus();
}
