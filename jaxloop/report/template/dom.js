"use strict";

// What every view needs: elements, the data, and the state kept in the address.

const root = document.documentElement;
window.addEventListener("error", (event) => {
  root.dataset.error = event.message;
});

const data = JSON.parse(document.getElementById("data").textContent);

/** An element. Strings only ever become text nodes, so no text can become markup. */
function node(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === undefined || value === null || value === false) continue;
    element.setAttribute(name, value === true ? "" : value);
  }
  add(element, children);
  return element;
}

function add(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child === undefined || child === null || child === false) continue;
    element.append(child instanceof Node ? child : String(child));
  }
}

/** At most three significant digits. */
function short(value) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e4 || size < 1e-3) return value.toExponential(2).replace("e+", "e");
  return String(Number(value.toPrecision(3)));
}

function percent(value) {
  return `${Number((100 * value).toPrecision(3))}%`;
}

function plural(count, noun) {
  return `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
}

/** `#q=text&set=round_001`: what is shown can be linked to. `#pairs` is an anchor. */
const state = {
  values: new URLSearchParams(),
  listeners: [],
  get(name, otherwise = "") {
    return this.values.get(name) ?? otherwise;
  },
  set(name, value) {
    if (value) this.values.set(name, value);
    else this.values.delete(name);
    const words = this.values.toString();
    history.replaceState(null, "", words ? `#${words}` : "#");
    this.tell();
  },
  read() {
    const words = location.hash.slice(1);
    if (words.includes("=")) this.values = new URLSearchParams(words);
    this.tell();
  },
  tell() {
    for (const listener of this.listeners) listener();
  },
};
window.addEventListener("hashchange", () => state.read());

/** A labelled select bound to the state. `options`: [value, text] pairs. */
function choice(label, name, options, otherwise) {
  const select = node("select", { name });
  for (const [value, text] of options) select.append(node("option", { value }, text));
  select.addEventListener("change", () => state.set(name, select.value));
  const update = () => {
    select.value = state.get(name, otherwise);
    if (select.selectedIndex < 0) select.value = otherwise;
  };
  state.listeners.push(update);
  return node("label", { class: "field" }, node("span", {}, label), select);
}

function search(name, placeholder) {
  const input = node("input", { type: "search", name, placeholder, "aria-label": placeholder });
  let waiting = 0;
  input.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => state.set(name, input.value), 120);
  });
  state.listeners.push(() => {
    if (document.activeElement !== input) input.value = state.get(name);
  });
  return node("label", { class: "field wide" }, node("span", {}, "Search"), input);
}

/** A list that shows `page` rows and then asks; returns a function that fills it. */
function makeList(mount, page, empty, row) {
  const rows = node("div", { class: "rows" });
  const more = node("button", { type: "button", class: "more" });
  mount.append(rows, more);
  let items = [];
  let shown = 0;
  function show() {
    const next = items.slice(shown, shown + page);
    rows.append(...next.map(row));
    shown += next.length;
    more.hidden = shown >= items.length;
    more.textContent = `Show ${Math.min(page, items.length - shown)} more of ${items.length - shown}`;
  }
  more.addEventListener("click", show);
  return (filtered) => {
    items = filtered;
    shown = 0;
    rows.replaceChildren();
    show();
    if (!items.length) rows.append(node("p", { class: "note" }, empty));
  };
}

/** A row that opens; its inside is made when it is first opened. */
function fold(summary, inside, open) {
  const details = node("details", { class: "row" }, node("summary", {}, summary));
  const fill = () => {
    if (details.open && details.children.length === 1) details.append(inside());
  };
  details.addEventListener("toggle", fill);
  if (open) {
    details.open = true;
    fill();
  }
  return details;
}

/** The small label that follows the pointer. */
const tip = document.getElementById("tip");
function showTip(text, x, y) {
  tip.textContent = text;
  tip.hidden = false;
  const width = tip.offsetWidth;
  const left = Math.min(Math.max(x - width / 2, 8), root.clientWidth - width - 8);
  tip.style.left = `${left}px`;
  tip.style.top = `${Math.max(y - tip.offsetHeight - 14, 8)}px`;
}
function hideTip() {
  tip.hidden = true;
}
