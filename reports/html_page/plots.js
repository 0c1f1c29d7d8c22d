
// Plots and cases. Every number in them was made elsewhere; here they find their places.

const ROW = 13;
const FIRST_CASES = 20;

function ticks(low, high, count) {
  const rough = (high - low || 1) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => power * factor >= rough);
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i += 1) {
    found.push([i * step, (i * step).toFixed(digits)]);
  }
  return found;
}

function scale(values, from, to) {
  let [low, high] = [Math.min(...values), Math.max(...values)];
  const margin = (high - low || 1) * 0.03;
  [low, high] = [low - margin, high + margin];
  const place = (value) => from + ((value - low) / (high - low)) * (to - from);
  return { low, high, place };
}

const widthOf = (id) => {
  const room = find(id).clientWidth || 640;
  const columns = getComputedStyle(find(id)).gridTemplateColumns.split(" ").length;
  return Math.max(260, Math.floor((room - (columns - 1) * 24) / columns));
};

function panel(name, picture, table) {
  return make("figure", {}, make("figcaption", {}, name), picture,
    make("details", { class: "screen" }, make("summary", {}, "The same as a table"),
      make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": name }, table)));
}

function plainTable(head, rows) {
  const cells = (row) => row.map((text, i) =>
    (i ? make("td", { class: "number" }, text) : make("th", { scope: "row" }, text)));
  return make("table", {},
    make("thead", {}, make("tr", {}, ...head.map((h, i) =>
      make("th", { scope: "col", class: i && "number" }, h)))),
    make("tbody", {}, ...rows.map((row) => make("tr", {}, ...cells(row)))));
}

/** A picture whose marks can be pointed at, and walked with the arrow keys. */
function explorable(picture, marks) {
  let at = -1;
  const cursor = draw("circle", { class: "cursor", r: 9, visibility: "hidden" });
  picture.append(cursor);
  const show = (i) => {
    at = i;
    const mark = marks[i];
    cursor.setAttribute("visibility", mark ? "visible" : "hidden");
    if (!mark) return hideTip();
    cursor.setAttribute("cx", mark.x);
    cursor.setAttribute("cy", mark.y);
    showTip(picture, mark);
  };
  picture.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    let [nearest, reach] = [-1, 24];
    marks.forEach((mark, i) => {
      const distance = Math.hypot(mark.x - x, mark.y - y);
      if (distance < reach) [nearest, reach] = [i, distance];
    });
    show(nearest);
  });
  picture.addEventListener("pointerleave", () => show(-1));
  picture.addEventListener("blur", () => show(-1));
  picture.addEventListener("keydown", (event) => {
    const move = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") show(-1);
    if (!move || !marks.length) return;
    event.preventDefault();
    show((at + move + marks.length + (at < 0 && move < 0 ? 1 : 0)) % marks.length);
  });
  return picture;
}

function showTip(picture, mark) {
  const tip = find("tip");
  tip.textContent = mark.text;
  tip.hidden = false;
  const box = picture.getBoundingClientRect();
  const left = Math.min(box.left + mark.x + 12, document.documentElement.clientWidth - tip.offsetWidth - 8);
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${Math.max(8, box.top + mark.y - tip.offsetHeight - 10)}px`;
}

function hideTip() {
  find("tip").hidden = true;
}

function frame(width, height, label) {
  return draw("svg", {
    width, height, viewBox: `0 0 ${width} ${height}`, role: "img", tabindex: "0",
    "aria-label": `${label}. Arrow keys go from mark to mark.`,
  });
}

function renderPairs(parts) {
  const [last, best] = ["last", "best"].map((name) =>
    facts.protocols.findIndex((p) => p.expression === name));
  const width = widthOf("pairs");
  find("pairs").replaceChildren(...parts.map(({ setting: own, rows }) => {
    const blocks = rows.filter((row) => row.predictor === "main").map((row) => ({
      row,
      pairs: row.runs.map((i) => facts.runs[i]).flatMap((run) => {
        const ends = [last, best].map((p) => row.results[p].picked[run.run]);
        const values = ends.map((end) => end?.values[metricPlace()]);
        const failed = run.state === "failed";
        return failed || values.every((value) => value != null) ? [{ run, ends, values, failed }] : [];
      }),
    })).filter((block) => block.pairs.some((pair) => !pair.failed));
    if (!blocks.length) return make("p", {}, `${own.name}: no run has finished yet.`);
    return pairsPanel(own, blocks, width);
  }));
}

function pairsPanel(own, blocks, width) {
  const { place: x, low, high } = scale(
    blocks.flatMap((b) => b.pairs.flatMap((pair) => pair.values)).filter((value) => value != null), 44, width - 14);
  const height = blocks.reduce((sum, b) => sum + 26 + ROW * b.pairs.length, 34);
  const picture = frame(width, height, `Best against last of every run, ${own.name}`);
  const marks = [];
  axisBelow(picture, ticks(low, high, width / 70), x, height, `${metric().label} [${unit(own)}]`);
  let y = 4;
  for (const { row, pairs } of blocks) {
    y += 14;
    const name = coloured(draw("text", { x: 0, y, class: "name" }, clipped(row.label, width)), row.colour);
    name.append(draw("title", {}, row.label));
    picture.append(name);
    y += 6;
    for (const { run, ends, values, failed } of pairs) {
      const middle = y + ROW / 2;
      y += ROW;
      picture.append(draw("text", { x: 38, y: middle + 3, class: "tick end" }, `s${run.seed}`));
      if (failed) {
        picture.append(draw("text", { x: 46, y: middle + 3, class: "failed" }, "failed"));
        continue;
      }
      const [a, b] = values.map(x);
      picture.append(
        ...[
          draw("line", { class: "pair", x1: a, x2: b, y1: middle, y2: middle }),
          draw("circle", { class: "best", cx: b, cy: middle, r: 5 }),
          draw("circle", { class: "last", cx: a, cy: middle, r: 3.2 }),
        ].map((mark) => coloured(mark, row.colour)));
      const text = `${row.label}, seed ${run.seed}: last ${shown(values[0])} (step ${ends[0].step}), `
        + `best on test ${shown(values[1])} (step ${ends[1].step})`;
      marks.push({ x: a, y: middle, text }, { x: b, y: middle, text });
    }
    y += 6;
  }
  const rows = blocks.flatMap(({ row, pairs }) => pairs.map(({ run, values, failed }) =>
    [row.label, String(run.seed), ...values.map((value) => (failed ? "failed" : shown(value)))]));
  return panel(own.name, explorable(picture, marks),
    plainTable(["Method", "Seed", "Last", "Best on test"], rows));
}

function clipped(text, width) {
  const room = Math.floor(width / 8);
  return text.length > room ? `${text.slice(0, room - 1)}…` : text;
}

function axisBelow(picture, marks, x, height, label, top = 0) {
  const foot = height - 30;
  for (const [value, text] of marks) {
    picture.append(
      draw("line", { class: "grid", x1: x(value), x2: x(value), y1: top, y2: foot }),
      draw("text", { class: "tick middle", x: x(value), y: foot + 12 }, text));
  }
  picture.append(draw("text", { class: "tick end", x: picture.getAttribute("width"), y: height - 3 }, label));
}

function renderCurves(parts) {
  const width = widthOf("curves");
  const drawn = new Map();
  find("curves").replaceChildren(...parts.map(({ setting: own, rows }) => {
    const lines = rows.filter((row) => row.middle);
    if (!lines.length) return make("p", {}, `${own.name}: no run has finished yet.`);
    lines.forEach((row) => drawn.set(row.label, row.colour));
    return curvesPanel(own, lines, width);
  }));
  const front = find("curves").dataset.front;
  find("legend").replaceChildren(...[...drawn].map(([label, colour]) => {
    const pressed = label === front;
    return make("button", {
      type: "button", id: `legend-${label}`, "aria-pressed": String(pressed),
      onclick: () => {
        if (pressed) delete find("curves").dataset.front;
        else find("curves").dataset.front = label;
        render();
      },
    }, coloured(make("span", { class: "swatch", "aria-hidden": "true" }), colour),
    make("span", { class: "label", title: label }, label));
  }));
}

function curvesPanel(own, rows, width) {
  const height = 280;
  const values = (curve) => curve[state.metric].filter((value) => value != null);
  const curves = rows.flatMap((row) => row.runs.map((i) => facts.runs[i].curve).filter(Boolean));
  const all = curves.flatMap(values);
  if (!all.length) return make("p", {}, `${own.name}: no case counts under this policy.`);
  const y = scale(all, height - 40, 20);
  const x = scale(curves.flatMap((curve) => curve.step), 44, width - 10);
  const picture = frame(width, height, `${metric().label} at every evaluation, ${own.name}`);
  axisBelow(picture, ticks(x.low, x.high, width / 90), x.place, height, "step", 18);
  for (const [value, text] of ticks(y.low, y.high, 5)) {
    picture.append(
      draw("line", { class: "grid", x1: 44, x2: width, y1: y.place(value), y2: y.place(value) }),
      draw("text", { class: "tick end", x: 38, y: y.place(value) + 3 }, text));
  }
  picture.append(draw("text", { class: "tick", x: 0, y: 11 },
    `${metric().label} [${unit(own)}]`));
  const { front } = find("curves").dataset;
  const path = (curve) => {
    let pen = "M";
    return curve.step.map((step, i) => {
      const value = curve[state.metric][i];
      if (value == null) { pen = "M"; return ""; }
      const point = `${pen}${x.place(step).toFixed(1)} ${y.place(value).toFixed(1)}`;
      pen = "L";
      return point;
    }).join("");
  };
  const marks = [];
  // The best row last: it lies on top; what was brought to the front lies above all.
  for (const row of [...rows].reverse().sort((a, b) => (a.label === front) - (b.label === front))) {
    const group = coloured(draw("g", { class: front && front !== row.label ? "behind" : "curve" }), row.colour);
    for (const run of row.runs.map((i) => facts.runs[i])) {
      if (!run.curve) continue;
      group.append(draw("path", { class: "thin", d: path(run.curve) }));
      const picked = row.results[place()].picked[run.run];
      const value = picked?.values[metricPlace()];
      if (value == null || picked.step == null) continue;
      const at = { x: x.place(picked.step), y: y.place(value) };
      group.append(draw("circle", { class: "last", cx: at.x, cy: at.y, r: 2.5 }));
      marks.push({ ...at, text: `${row.label}, seed ${run.seed}, reported: ${shown(value)} (step ${picked.step})` });
    }
    group.append(draw("path", { class: "thick", d: path(row.middle) }));
    row.middle.step.forEach((step, i) => {
      const value = row.middle[state.metric][i];
      if (value == null) return;
      marks.push({ x: x.place(step), y: y.place(value), text: `${row.label}, median at step ${step}: ${shown(value)}` });
    });
    picture.append(group);
  }
  const steps = [...new Set(rows.flatMap((row) => row.middle.step))].sort((a, b) => a - b);
  const table = plainTable(["Median at step", ...steps.map(String)], rows.map((row) =>
    [row.label, ...steps.map((step) => shown(row.middle[state.metric][row.middle.step.indexOf(step)]))]));
  return panel(own.name, explorable(picture, marks), table);
}

function renderCases(parts) {
  const labels = [...new Set(facts.rows.filter((row) => row.middle).map((row) => row.label))];
  find("order").replaceChildren(
    make("option", { value: "" }, "all methods (mean)"),
    ...labels.map((label) => make("option", { value: label }, label)));
  find("order").value = labels.includes(state.order) ? state.order : "";
  find("cases").replaceChildren(...parts.map(({ setting: own, rows }, i) =>
    casesPanel(own, rows.filter((row) => row.cases[place()]), i)));
}

function casesPanel(own, rows, part) {
  if (!own.means[place()] || !rows.length || !own.cases.length) {
    return make("p", {}, own.means[place()]
      ? `${own.name}: no run has finished yet.`
      : `${own.name}: protocol ${state.protocol} reports no single checkpoint.`);
  }
  const values = rows.map((row) => row.cases[place()][state.metric]);
  const mean = own.means[place()][state.metric];
  const chosen = rows.findIndex((row) => row.label === state.order);
  const key = chosen < 0 ? mean : values[chosen];
  const present = values.flat().filter((value) => value != null);
  const [low, high] = [Math.min(...present), Math.max(...present)];
  const badness = (value) => (metric().higher ? high - value : value - low) / (high - low || 1);
  const order = own.cases.map((_, i) => i).sort((a, b) =>
    (key[a] == null) - (key[b] == null) || badness(key[b]) - badness(key[a])
    || own.cases[a].localeCompare(own.cases[b], "en", { numeric: true }));
  const limit = find("cases").dataset.all ? order.length : FIRST_CASES;
  const cell = (value) => {
    const found = make("td", { class: "number heat" }, shown(value));
    if (value != null) found.style.setProperty("--bad", `${Math.round(70 * badness(value))}%`);
    return found;
  };
  const table = make("table", {},
    make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "Case"),
      ...rows.map((row) => make("th", {
        scope: "col", class: "number", "aria-sort": row.label === state.order && (metric().higher ? "ascending" : "descending"),
      }, make("span", { class: "clip", title: row.label }, row.label))),
      make("th", { scope: "col", class: "number" }, "all (mean)"))),
    make("tbody", {}, ...order.slice(0, limit).map((i) => make("tr", {},
      make("th", { scope: "row" }, own.cases[i]),
      ...values.map((v) => cell(v[i])), make("td", { class: "number" }, shown(mean[i]))))));
  const more = order.length > limit && make("button", {
    type: "button", id: `more-${part}`,
    onclick: () => { find("cases").dataset.all = "yes"; render(); },
  }, `Show all ${order.length} cases`);
  const name = `${own.name}: ${metric().label} [${unit(own)}]`;
  return make("figure", {}, make("figcaption", {}, name),
    make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": name }, table),
    more || null);
}
