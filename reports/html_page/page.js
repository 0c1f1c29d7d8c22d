"use strict";

// What the page knows, and what is chosen. Names come from users: they become text, never markup.

const facts = JSON.parse(document.getElementById("facts").textContent);
const NO_VALUE = "–";
const find = (id) => document.getElementById(id);
const SVG = document.querySelector("svg").namespaceURI;

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

function make(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

function draw(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function coloured(element, colour) {
  element.style.setProperty("--own", colour);
  return element;
}

// The state lives in the address, so that a link leads to what is on the screen.

const DEFAULTS = {
  protocol: facts.asked, metric: "dsc", sort: "", dir: "", find: "", dataset: "", labelled: "",
  order: "", row: "",
};
const state = { ...DEFAULTS };

function readAddress() {
  const text = location.hash.slice(1);
  if (text && !text.includes("=")) return; // an anchor of the page
  const given = new URLSearchParams(text);
  for (const name of Object.keys(DEFAULTS)) state[name] = given.get(name) ?? DEFAULTS[name];
  if (!facts.protocols.some((p) => p.expression === state.protocol)) state.protocol = facts.asked;
  if (!Object.hasOwn(facts.metrics, state.metric)) state.metric = "dsc";
  if (!["ascending", "descending"].includes(state.dir)) state.dir = "";
}

function writeAddress() {
  const chosen = Object.entries(state).filter(([name, value]) => value !== DEFAULTS[name]);
  const hash = new URLSearchParams(chosen).toString();
  history.replaceState(null, "", `#${hash}`);
}

// What the state means.

const place = () => facts.protocols.findIndex((p) => p.expression === state.protocol);
const metric = () => facts.metrics[state.metric];
const metricPlace = () => Object.keys(facts.metrics).indexOf(state.metric);
const setting = (row) => facts.settings[row.setting];
const unit = (own) => (state.metric === "dsc" ? "%" : own.unit);
const title = (row) =>
  row.predictor === "main" ? row.label : `${row.label}, predictor ${row.predictor}`;
const shown = (value) => (value == null ? NO_VALUE : value.toFixed(2));

function visibleRows() {
  const wanted = state.find.trim().toLowerCase();
  return facts.rows.filter((row) => {
    const { dataset, labelled } = setting(row);
    return row.results[place()] && title(row).toLowerCase().includes(wanted)
      && (!state.dataset || dataset === state.dataset)
      && (!state.labelled || String(labelled) === state.labelled);
  });
}

/** Rows of each setting that has any, sorted; rows of one setting stay together. */
function groups() {
  const rows = sorted(visibleRows());
  return facts.settings
    .map((own, i) => ({ setting: own, rows: rows.filter((row) => row.setting === i) }))
    .filter((group) => group.rows.length);
}
