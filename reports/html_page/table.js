
// The table, and where each of its numbers is from.

function columns() {
  const { gap, selects } = facts.protocols[place()];
  const several = facts.rows.some((row) => row.predictor !== "main");
  const cell = (row, i) => row.results[place()].cells[state.metric][i];
  return [
    { name: "method", title: "Method", text: (row) => row.label, key: (row) => row.label },
    several && {
      name: "predictor", title: "Predictor", text: (row) => row.predictor,
      key: (row) => row.predictor,
    },
    {
      name: "runs", title: "Runs", meaning: "finished of started", numeric: true,
      text: (row) => row.results[place()].runs,
      key: (row) => row.results[place()].finished / row.results[place()].started,
    },
    ...facts.columns
      .map((column, i) => ({
        ...column, numeric: true, text: (row) => cell(row, i)[1], key: (row) => cell(row, i)[0],
      }))
      .filter((column) => column.name !== "gap" || gap),
    selects && {
      name: "out_of", title: "Out of", meaning: "evaluations it was selected from", numeric: true,
      text: (row) => row.results[place()].out_of,
      key: (row) => parseInt(row.results[place()].out_of, 10),
    },
  ].filter(Boolean);
}

/** What the table is sorted by: what was chosen, else the median, the best first. */
function order() {
  const known = columns();
  const chosen = known.find((column) => column.name === state.sort);
  const column = chosen ?? known.find((c) => c.name === "median");
  const best = metric().higher ? "descending" : "ascending";
  return { column, dir: (chosen && state.dir) || (column.numeric ? best : "ascending") };
}

function sorted(rows) {
  const { column, dir } = order();
  const missing = (value) => value == null || Number.isNaN(value);
  const compare = (a, b) => {
    const [x, y] = [column.key(a), column.key(b)];
    if (missing(x) || missing(y)) return missing(x) - missing(y);
    const way = typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y;
    return dir === "ascending" ? way : -way;
  };
  return [...rows].sort(
    (a, b) => compare(a, b) || title(a).localeCompare(title(b), "en", { numeric: true }),
  );
}

function renderTable(parts) {
  const known = columns();
  const { column, dir } = order();
  const head = known.map((c) => {
    const on = c.name === column.name;
    const turn = () =>
      update({ sort: c.name, dir: on && dir === "descending" ? "ascending"
        : on ? "descending" : c.numeric && metric().higher ? "descending" : "ascending" });
    return make("th", { scope: "col", "aria-sort": on && dir, class: c.numeric && "number" },
      make("button", { type: "button", id: `sort-${c.name}`, title: c.meaning, onclick: turn },
        c.title));
  });
  const bodies = parts.map((part) => make("tbody", {},
    make("tr", { class: "setting" },
      make("th", { scope: "rowgroup", colspan: known.length }, make("span", {}, heading(part)))),
    ...part.rows.map((row) => tableRow(row, known))));
  const said = `${metric().label}${state.metric === "dsc" ? " in %" : ""}, `
    + `${metric().higher ? "higher" : "lower"} is better, under protocol ${state.protocol}`;
  find("table").replaceChildren(
    make("caption", {}, said), make("thead", {}, make("tr", {}, ...head)), ...bodies);
  const count = parts.reduce((sum, part) => sum + part.rows.length, 0);
  find("status").textContent = count
    ? `${count} of ${facts.rows.length} rows, by ${column.title.toLowerCase()}, ${dir}`
    : "No row matches: change the filters, or show all.";
}

function heading({ setting: own }) {
  return state.metric === "dsc" || !own.unit ? own.name : `${own.name}; in ${own.unit}`;
}

function tableRow(row, known) {
  const { failed } = row.results[place()];
  const cells = known.slice(1).map((c) => make("td", { class: c.numeric && "number" }, c.text(row),
    c.name === "runs" && failed ? make("span", { class: "failed" }, ` (${failed} failed)`) : null));
  const open = () => {
    if (!String(getSelection())) update({ row: row.key });
  };
  return make("tr", { class: "row", onclick: open },
    make("th", { scope: "row" },
      make("button", { type: "button", id: `row-${row.key}`, "aria-haspopup": "dialog" },
        coloured(make("span", { class: "swatch", "aria-hidden": "true" }), row.colour),
        make("span", { class: "label", title: row.label }, row.label))),
    ...cells);
}

// Details: what a row was made of.

function renderDetails() {
  const dialog = find("details");
  const row = facts.rows.find((r) => r.key === state.row && r.results[place()]);
  if (!row) {
    if (dialog.open) dialog.close();
    return;
  }
  const own = setting(row);
  const close = () => dialog.close();
  find("details-content").replaceChildren(
    make("button", { type: "button", class: "close", onclick: close }, "Close"),
    make("h2", { id: "details-title" }, title(row)),
    make("p", { class: "quiet" }, own.name),
    list([
      ["Protocol", facts.protocols[place()].meaning],
      ["Median run", seed(row.results[place()].median_seed)],
      ["Best run", seed(row.results[place()].best_seed)],
      ["Recipe", row.recipe],
      ["Follows", row.fidelity],
      ["Method version", String(row.version)],
      ["Steps", row.steps.toLocaleString("en")],
      ["Data fingerprint", code(row.fingerprint)],
      ["Hyperparameters", row.hyperparameters.length ? settings(row) : "none"],
    ]),
    make("h3", {}, `Runs: ${row.results[place()].runs} finished`),
    ...row.runs.map((i) => runDetails(facts.runs[i], row)),
  );
  if (!dialog.open) dialog.showModal();
}

const seed = (text) => (/^\d+$/.test(text) ? `seed ${text}, by DSC` : text || NO_VALUE);

function settings(row) {
  return make("ul", { class: "plain" }, ...row.hyperparameters.map(([name, value]) =>
    make("li", {}, code(`${name} = ${value}`), row.changed.includes(name) ? " (changed)" : null)));
}

function runDetails(run, row) {
  const picked = row.results[place()].picked[run.run];
  const head = [`seed ${run.seed}`, run.state];
  if (picked) head.push(`${metric().label} ${shown(picked.values[metricPlace()])}`);
  const values = picked && Object.values(facts.metrics)
    .map((m, i) => `${m.label} ${shown(picked.values[i])}`).join(", ");
  const commit = run.commit
    ? [code(run.commit), run.dirty ? " with uncommitted changes" : null] : ["not recorded"];
  const failed = run.state === "failed";
  return make("details", { class: failed ? "run bad" : "run", open: failed },
    make("summary", {}, head.join(" · ")),
    list([
      ["Run", code(run.run)],
      run.error && ["Error", make("pre", {}, run.error)],
      picked && ["Reported", `${values} (${picked.how})`],
      ["Commit", make("span", {}, ...commit.filter(Boolean))],
      ["Device", run.device || "not recorded"],
      run.resumed_elsewhere && ["Continued", "in another environment than it began in"],
      ["Versions", joined(run.versions) || "not recorded"],
      ["Environment", run.environment.map(joined).filter(Boolean).join(" → ") || "not recorded"],
      run.parameters != null && ["Parameters", run.parameters.toLocaleString("en")],
    ]));
}

const code = (text) => make("code", {}, text);
const joined = (pairs) => pairs.map(([name, value]) => `${name} ${value}`).join(", ");

function list(entries) {
  return make("dl", {}, ...entries.filter(Boolean).map(([name, value]) =>
    make("div", {}, make("dt", {}, name), make("dd", {}, value))));
}
