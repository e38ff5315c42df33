"use strict";
// The data of the page, what it is written with, and what copies and downloads.

const byId = (id) => document.getElementById(id);
const source = byId("data");
const data = source ? JSON.parse(source.textContent) : null;
const percent = (rate) => (100 * rate).toFixed(2);
const points = (difference) => {
  const text = (100 * difference).toFixed(2);
  return Number(text) < 0 ? text : `+${text.replace("-", "")}`;
};
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const known = (values) => values.filter((value) => value !== null && value !== undefined);
const dark = matchMedia("(prefers-color-scheme: dark)");
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const NARROW = 480; // pixels
const NONE = "–";
/** A text in which Plotly sees no markup. */
const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");

/** The values of a measure as charts show them: rates in percent, differences in points. */
const shownNumber = (name, value) => (value === null || value === undefined ? null : value * factorOf(name));
const factorOf = (name) => (["%", "points"].includes(data.charted[name].unit) ? 100 : 1);
const titleOf = (name) => {
  if (data.settings[name]) return data.settings[name].title;
  const { title, unit } = data.charted[name];
  return unit ? `${title} (${unit})` : title;
};
function writtenNumber(name, value) {
  if (value === null || value === undefined || Number.isNaN(value)) return NONE;
  const { unit } = data.charted[name];
  if (unit === "%") return percent(value);
  if (unit === "points") return points(value);
  return unit === "" ? Math.round(value).toLocaleString("en") : Number(value.toPrecision(3)).toString();
}

function element(tag, text, properties) {
  const made = Object.assign(document.createElement(tag), properties);
  if (text !== null && text !== undefined && text !== "") made.textContent = text;
  return made;
}

/** A table's rows of text; the first `words` columns hold words. */
function fillTable(made, headings, rows, words = 1) {
  const row = (tag, texts) => {
    const line = element("tr");
    line.append(
      ...texts.map((text, at) => {
        const cell = element(tag, typeof text === "string" ? text : null, { className: at < words ? "word" : "" });
        if (typeof text !== "string") cell.append(text);
        if (tag === "th") cell.scope = "col";
        return cell;
      }),
    );
    return line;
  };
  const head = element("thead"),
    body = element("tbody");
  head.append(row("th", headings));
  body.append(...rows.map((texts) => row("td", texts)));
  made.replaceChildren(head, body);
  return made;
}

/** A table that scrolls in a region of its own, which is its one tab stop. */
function table(label, headings, rows, words = 1) {
  const scroll = element("div", null, { className: "scroll", tabIndex: 0 });
  scroll.setAttribute("role", "region");
  scroll.setAttribute("aria-label", label);
  scroll.append(fillTable(element("table"), headings, rows, words));
  return scroll;
}

function grouped(items, key) {
  const groups = new Map();
  for (const item of items) {
    const name = key(item);
    if (!groups.has(name)) groups.set(name, []);
    groups.get(name).push(item);
  }
  return groups;
}

/** A labelled choice among names; calls `changed` with the chosen one. */
function choice(label, names, value, changed, titles = titleOf) {
  const select = element("select");
  select.append(...names.map((name) => element("option", titles(name), { value: name })));
  select.value = value;
  select.dataset.choice = label;
  select.addEventListener("change", () => changed(select.value));
  const made = element("label", label);
  made.append(select);
  return made;
}

// ---------------------------------------------------------------- copying and downloading

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // without permission for the clipboard, such as in a frame
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  const label = button.textContent;
  button.textContent = "copied";
  setTimeout(() => {
    button.textContent = label;
  }, 1500);
}

for (const button of document.querySelectorAll(".listing > .copy"))
  button.addEventListener("click", () => copy(button.nextElementSibling.textContent, button));

function download(name, content, type) {
  const address = URL.createObjectURL(new Blob([content], { type }));
  element("a", null, { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}

/** Rows as CSV (RFC 4180). A text that a spreadsheet would take for a formula gets a quote before it. */
function csv(rows) {
  const cell = (value) => {
    const text =
      value === null
        ? ""
        : typeof value === "string" && /^[=+@-]/.test(value) && Number.isNaN(Number(value))
          ? `'${value}`
          : String(value);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return rows.map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}
