
// Controls, and drawing it all again when something changes.

function choices(name, options) {
  find(name).append(...options.map(({ value, label, mark }) => make("label", {},
    make("input", { type: "radio", name, value, onchange: () => update({ [name]: value }) }),
    make("span", {}, label, mark ? make("em", {}, ` ${mark}`) : null))));
}

function options(name, values) {
  find(name).append(make("option", { value: "" }, "all"),
    ...values.map((value) => make("option", { value: String(value) }, String(value))));
  find(name).closest(".field").hidden = values.length < 2;
  find(name).addEventListener("change", (event) => update({ [name]: event.target.value }));
}

function prepare() {
  choices("protocol", facts.protocols.map((p) => ({
    value: p.expression, label: p.expression, mark: p.oracle && "oracle",
  })));
  choices("metric", Object.entries(facts.metrics).map(([value, m]) => ({
    value, label: `${m.label} ${m.higher ? "↑" : "↓"}`,
  })));
  const values = (name) => [...new Set(facts.settings.map((own) => own[name]))];
  options("dataset", values("dataset").sort());
  options("labelled", values("labelled").sort((a, b) => a - b));
  find("find").addEventListener("input", (event) => update({ find: event.target.value }));
  find("order").addEventListener("change", (event) => update({ order: event.target.value }));
  find("controls").addEventListener("submit", (event) => event.preventDefault());
  find("controls").addEventListener("reset", (event) => {
    event.preventDefault();
    update({ find: "", dataset: "", labelled: "" });
  });
  find("details").addEventListener("close", () => {
    const opener = `row-${state.row}`;
    update({ row: "" });
    find(opener)?.focus();
  });
  find("details").addEventListener("click", (event) => {
    if (event.target === find("details")) find("details").close();
  });
  const states = facts.runs.map((run) => run.state);
  const count = (name) => states.filter((own) => own === name).length;
  const methods = new Set(facts.rows.map((row) => row.label)).size;
  find("lede").textContent = `${counted(methods, "method")} in `
    + `${counted(facts.settings.length, "setting")}: ${counted(states.length, "run")}, `
    + ["finished", "failed", "unfinished"].filter(count).map((s) => `${count(s)} ${s}`).join(", ")
    + ". Every protocol here is derived from the same stored numbers of the same runs.";
}

const counted = (number, word) => `${number} ${word}${number === 1 ? "" : "s"}`;

function update(changes) {
  Object.assign(state, changes);
  writeAddress();
  render();
}

function render() {
  const focused = document.activeElement?.id;
  for (const name of ["protocol", "metric"]) {
    for (const input of find(name).querySelectorAll("input")) {
      input.checked = input.value === state[name];
    }
  }
  if (find("find").value !== state.find) find("find").value = state.find;
  find("dataset").value = state.dataset;
  find("labelled").value = state.labelled;
  const protocol = facts.protocols[place()];
  find("protocol-meaning").textContent = protocol.meaning;
  find("protocol-meaning").classList.toggle("warning", protocol.oracle);
  find("notes").replaceChildren(
    ...[...protocol.notes, ...facts.refused].map((note) => make("li", {}, note)));
  const parts = groups();
  hideTip();
  renderTable(parts);
  renderPairs(parts);
  renderCurves(parts);
  renderCases(parts);
  renderDetails();
  if (focused && document.activeElement?.id !== focused) find(focused)?.focus({ preventScroll: true });
}

function theme() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const button = find("theme");
  const isDark = () => (document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light")) === "dark";
  const tell = () => button.setAttribute("aria-pressed", String(isDark()));
  button.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    tell();
  });
  dark.addEventListener("change", tell);
  tell();
}

prepare();
theme();
readAddress();
render();
addEventListener("hashchange", () => { readAddress(); render(); });
let width = innerWidth;
addEventListener("resize", () => {
  if (innerWidth === width) return;
  width = innerWidth;
  requestAnimationFrame(render);
});
