// What happens when the page opens, and when what is shown changes.

function update() {
  const runs = shownRuns(),
    found = showRecommendation(runs);
  const none = runs.length ? "" : " None has all of these; Reset shows all again.";
  if (byId("shown")) byId("shown").textContent = `${runs.length} of ${data.runs.length} finished runs shown.${none}`;
  byId("main").classList.toggle("empty", runs.length === 0);
  if (state.picked) state.picked = state.picked.filter((job) => runs.some((run) => run.job === job));
  if (!state.picked?.length) state.picked = null;
  state.job = state.picked?.[0] ?? found[0]?.group[0].job ?? null; // the best of those shown
  fillChooser();
  showRows(runs);
  showMeans(runs);
  showRun();
  redraw();
  toAddress();
}

function buildCharts() {
  const again = (key) => (value) => setLook(key, value);
  for (const [name, title, around] of [
    ["target_error", "error on the target class (%)", false],
    ["forgetting", "forgetting (points)", false],
    ["balanced_accuracy_gained", "balanced accuracy gained (points)", true],
  ])
    if (data.charted[name]) addChart(`map-${name}`, mapOf(name, title, around));
    else byId(`map-${name}`)?.remove(); // in results of older versions
  addChart("scatter", scatter, () => {
    const [x, y] = scatterNames();
    return [choice("x", measureNames(), x, again("price.x")), choice("y", measureNames(), y, again("price.y"))];
  });
  addChart("slice", slice, () => {
    const [x, y] = sliceNames();
    return [choice("x", colourNames(), x, again("slice.x")), choice("y", measureNames(), y, again("slice.y"))];
  });
  addChart("parallel", parallel);
  addChart("important", important, () => {
    const names = Object.keys(data.importance);
    return [
      choice("measure", names, names.includes(look("importance")) ? look("importance") : names[0], again("importance")),
    ];
  });
  addChart("losses", losses);
  addChart("classes", () => classesChart(shownRun()));
  addChart("confusion", () => confusionChart(shownRun()));
}

if (data?.runs.length) {
  useSprite(data.sprite);
  addAll();
  fromAddress();
  if (byId("filters")) {
    buildFilters();
    refill();
    buildMapChoices();
  }
  buildTable();
  buildCharts();
  byId("chooser").addEventListener("change", (event) => choose(Number(event.target.value)));
  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  byId("unpick").addEventListener("click", () => {
    state.picked = null;
    update();
  });
  // Hashes hold what is shown, so links within the page scroll without one.
  for (const link of document.querySelectorAll("nav a, .skip"))
    link.addEventListener("click", (event) => {
      event.preventDefault();
      const place = document.querySelector(link.getAttribute("href"));
      place.scrollIntoView();
      place.tabIndex = -1;
      place.focus({ preventScroll: true });
    });
  addEventListener("hashchange", () => {
    Object.assign(state, { values: {}, ranges: {}, looks: {}, picked: null });
    fromAddress();
    if (byId("filters")) {
      refill();
      buildMapChoices();
    }
    update();
  });
  dark.addEventListener("change", update);
  update();
} else document.body.dataset.drawn = "true";
