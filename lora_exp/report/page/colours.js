// What colours and symbols stand for.

// Okabe and Ito's colours, then Tol's "muted": readers who see few colours can distinguish them (jfly.uni-koeln.de/color,
// personal.sron.nl/~pault). Yellow and black of the first are left out, since each is the paper of one scheme.
const CATEGORIES = [
  "#0072b2",
  "#e69f00",
  "#009e73",
  "#cc79a7",
  "#d55e00",
  "#56b4e9",
  "#882255",
  "#999933",
  "#44aa99",
  "#aa4499",
  "#6699cc",
  "#997700",
  "#994455",
  "#117733",
  "#888888",
];
const SYMBOLS = [
  "circle",
  "square",
  "diamond",
  "cross",
  "triangle-up",
  "star",
  "x",
  "triangle-down",
  "pentagon",
  "hexagram",
];
const VIRIDIS = [
  [68, 1, 84],
  [59, 82, 139],
  [33, 145, 140],
  [94, 201, 98],
  [253, 231, 37],
];

function mixed(stops, share) {
  const at = Math.min(Math.max(share, 0), 1) * (stops.length - 1),
    left = Math.min(Math.floor(at), stops.length - 2);
  return stops[left].map((part, i) => Math.round(part + (at - left) * (stops[left + 1][i] - part)));
}
const rgb = (parts) => `rgb(${parts.join(",")})`;
const parts = (text) => {
  const hex = text.match(/^#(..)(..)(..)$/);
  return hex ? hex.slice(1).map((one) => parseInt(one, 16)) : text.match(/\d+/g).slice(0, 3).map(Number);
};

/** Black or white, whichever has more contrast with a colour (WCAG 2.2): at least 4.5 to 1 with any. */
function textOn(colourParts) {
  const linear = colourParts
    .map((part) => part / 255)
    .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.179 ? "#000000" : "#ffffff";
}

const colourNames = () => (filterNames().length ? filterNames() : Object.keys(data.settings));

/** The method where it varies, else the setting with most values, else the class. */
function defaultColour() {
  const names = colourNames();
  if (names.includes("method")) return "method";
  return ofPart(names, "setting")[0] ?? names[0];
}
const colourName = () => (colourNames().includes(look("colour")) ? look("colour") : defaultColour());

/** The colour of each value of a setting: shades for numbers, colours of their own for words. */
function toneOf(name, value) {
  const { values, numeric } = data.settings[name],
    at = values.indexOf(value);
  if (numeric) {
    const [low, high] = dark.matches ? [0.4, 1] : [0, 0.82];
    return rgb(mixed(VIRIDIS, low + (values.length < 2 ? 0.5 : at / (values.length - 1)) * (high - low)));
  }
  return CATEGORIES[at % CATEGORIES.length];
}
const symbolOf = (run) =>
  SYMBOLS[Math.max(0, data.settings.rank?.values.indexOf(run.settings.rank) ?? 0) % SYMBOLS.length];
const hasSymbols = () => (data.settings.rank?.values.length ?? 0) > 1 && colourName() !== "rank";
const groupedByColour = (runs) => {
  const name = colourName(),
    { values } = data.settings[name];
  return [...grouped(runs, (run) => run.settings[name])].sort(([a], [b]) => values.indexOf(a) - values.indexOf(b));
};
const shortened = (text, most = 28) => (text.length <= most ? text : `${text.slice(0, most - 1)}…`);

/** A trace without marks for each rank that is shown, which explains the symbols. */
const symbolTraces = (runs) =>
  !hasSymbols()
    ? []
    : data.settings.rank.values
        .filter((rank) => runs.some((run) => run.settings.rank === rank))
        .slice(0, SYMBOLS.length)
        .map((rank) => ({
          type: "scatter",
          mode: "markers",
          x: [null],
          y: [null],
          name: rank === NONE ? "no rank" : `rank ${rank}`,
          hoverinfo: "skip",
          marker: {
            symbol: SYMBOLS[data.settings.rank.values.indexOf(rank) % SYMBOLS.length],
            color: colour("faint"),
            size: 9,
          },
        }));
