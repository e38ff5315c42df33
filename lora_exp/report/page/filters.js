// Which runs are shown: filters of several values and of ranges, the choices of the charts, and the address that holds them.

const state = {
  values: {}, // setting -> the values that are shown; none for all
  ranges: {}, // setting or measure -> [from, to]
  looks: {}, // choice of a chart -> its value
  text: "",
  job: null,
  picked: null,
};
const RANGED = ["balanced_accuracy_gained", "forgetting", "target_error"];
const LISTED = 12; // values of a number that are listed; more get a range alone

const filterNames = () => Object.keys(data.settings).filter((name) => data.settings[name].values.length > 1);
const filterable = () => filterNames().filter((name) => data.settings[name].part !== "whole");

function isShown(run) {
  for (const [name, values] of Object.entries(state.values)) if (!values.includes(run.settings[name])) return false;
  for (const [name, [from, to]] of Object.entries(state.ranges)) {
    const value = data.settings[name] ? Number(run.settings[name]) : shownNumber(name, run.numbers[name]);
    if (value === null || Number.isNaN(value) || value < from || value > to) return false;
  }
  return true;
}

const shownRuns = () => data.runs.filter(isShown);
/** The jobs without errors to compare whose settings are shown. */
const shownLost = () =>
  data.lost.filter((one) => Object.entries(state.values).every(([name, values]) => values.includes(one[name])));

function summary(name) {
  const values = state.values[name],
    range = state.ranges[name];
  const parts = values
    ? [values.length > 2 ? `${values.length} of ${data.settings[name].values.length}` : values.join(", ")]
    : [];
  if (range) parts.push(`${range[0] === -Infinity ? "" : range[0]} to ${range[1] === Infinity ? "" : range[1]}`);
  return parts.join("; ") || "all";
}

function buildFilters() {
  const boxes = filterable().map((name) => filterBox(name, titleOf(name)));
  const measures = RANGED.filter((name) => data.charted[name]).map((name) => filterBox(name, titleOf(name)));
  const more = element("details", null, { className: "filter" });
  const inner = element("div", null, { className: "drop" });
  more.append(element("summary", "measures"), inner);
  inner.append(...measures);
  const reset = element("button", "Reset", { type: "button", id: "reset" });
  reset.addEventListener("click", () => {
    Object.assign(state, { values: {}, ranges: {}, picked: null });
    refill();
    update();
  });
  byId("choices").append(
    ...boxes,
    more,
    choice("colour", colourNames(), look("colour", defaultColour()), (name) => setLook("colour", name)),
    reset,
  );
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  document.addEventListener("click", (event) => {
    // a click elsewhere closes an open list
    for (const open of document.querySelectorAll("#choices > .filter[open]"))
      if (!open.contains(event.target)) open.open = false;
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape")
      for (const open of document.querySelectorAll("#choices > .filter[open]")) {
        open.open = false;
        open.firstChild.focus();
      }
  });
}

/** A list that opens: a box a value, and for numbers and measures the ends of a range. */
function filterBox(name, title) {
  const box = element("details", null, { className: "filter" }),
    drop = element("div", null, { className: "drop" });
  box.dataset.filter = name;
  box.append(element("summary", `${title}: ${summary(name)}`), drop);
  const setting = data.settings[name],
    numeric = !setting || setting.numeric;
  if (setting && (!numeric || setting.values.length <= LISTED))
    for (const value of setting.values) {
      const label = element("label", null, { className: "box" }),
        input = element("input", null, { type: "checkbox", value });
      input.addEventListener("change", () =>
        setValues(
          name,
          [...drop.querySelectorAll("input[type=checkbox]:checked")].map((one) => one.value),
        ),
      );
      label.append(input, value.length > 60 ? `${value.slice(0, 59)}…` : value);
      label.title = value;
      drop.append(label);
    }
  if (numeric)
    for (const [end, place] of [
      ["from", 0],
      ["to", 1],
    ]) {
      const label = element("label", end),
        input = element("input", null, { type: "number", step: "any" });
      input.dataset.end = end;
      input.addEventListener("change", () => {
        const range = state.ranges[name] ?? [-Infinity, Infinity];
        range[place] = input.value === "" ? [-Infinity, Infinity][place] : Number(input.value);
        setRange(name, range);
      });
      label.append(input);
      drop.append(label);
    }
  return box;
}

function setValues(name, values) {
  if (values.length && values.length < data.settings[name].values.length) state.values[name] = values;
  else delete state.values[name];
  state.picked = null;
  refill();
  update();
}

function setRange(name, range) {
  if (range[0] === -Infinity && range[1] === Infinity) delete state.ranges[name];
  else state.ranges[name] = range;
  state.picked = null;
  refill();
  update();
}

/** Show in the boxes what the state is. */
function refill() {
  for (const box of document.querySelectorAll("[data-filter]")) {
    const name = box.dataset.filter,
      values = state.values[name],
      range = state.ranges[name];
    box.firstChild.textContent = `${titleOf(name)}: ${summary(name)}`;
    box.classList.toggle("active", Boolean(values || range));
    for (const input of box.querySelectorAll("input[type=checkbox]"))
      input.checked = Boolean(values?.includes(input.value));
    for (const input of box.querySelectorAll("input[type=number]")) {
      const limit = range?.[input.dataset.end === "from" ? 0 : 1];
      input.value = limit === undefined || !Number.isFinite(limit) ? "" : String(limit);
    }
  }
}

// ---------------------------------------------------------------- the address

const look = (name, value) => state.looks[name] ?? value;
function setLook(name, value) {
  state.looks[name] = value;
  update();
}

function toAddress() {
  const parts = new URLSearchParams();
  for (const [name, values] of Object.entries(state.values)) for (const value of values) parts.append(name, value);
  for (const [name, [from, to]] of Object.entries(state.ranges))
    parts.set(`${name}.range`, [from, to].map((end) => (Number.isFinite(end) ? end : "")).join(","));
  for (const [name, value] of Object.entries(state.looks)) parts.set(`look.${name}`, value);
  if (state.picked?.length === 1) parts.set("job", state.picked[0]);
  const text = parts.toString();
  history.replaceState(null, "", text ? `#${text}` : location.pathname + location.search);
}

/** Read the state from the address; what it does not know it leaves out. */
function fromAddress() {
  if (!location.hash.includes("=")) return;
  for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
    const ranged = name.replace(/\.range$/, "");
    if (data.settings[name]?.values.includes(value)) (state.values[name] ??= []).push(value);
    else if (ranged !== name && (data.settings[ranged]?.numeric || data.charted[ranged])) {
      const range = value.split(",").map((end, at) => (end === "" ? [-Infinity, Infinity][at] : Number(end)));
      if (range.length === 2 && !range.some(Number.isNaN)) state.ranges[ranged] = range;
    } else if (name.startsWith("look.")) {
      const known = [...Object.keys(data.settings), ...Object.keys(data.charted), "cells", "contour", "none"];
      if (known.includes(value)) state.looks[name.slice(5)] = value;
    } else if (name === "job" && data.runs.some((run) => run.job === Number(value))) state.picked = [Number(value)];
  }
}
