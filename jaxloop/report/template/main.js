// The other two tables, and the start of it all.

const FLIPS = [
  ["01", "fixed", "turned right"],
  ["10", "broken", "turned wrong"],
  ["11", "kept", "stayed right"],
  ["00", "missed", "stayed wrong"],
];

function viewCompare(mount) {
  const { labels, verdicts, shown } = data.compare;
  const options = labels.map((label, i) => [String(i), label]);
  const lastIndex = String(labels.length - 1);
  const ends = () => [Number(state.get("from", "0")), Number(state.get("to", lastIndex))];
  const change = (verdict) => ends().map((i) => verdict[i]).join("");
  const bar = node("div", { class: "flip-bar", "aria-hidden": "true" });
  const buttons = FLIPS.map(([, name, text]) => {
    const number = node("b");
    const button = node("button", { type: "button", class: `flip ${name}` }, number, node("span", {}, text));
    button.addEventListener("click", () => state.set("flip", state.get("flip") === name ? "" : name));
    return { button, number };
  });
  const pieces = FLIPS.map(([, name]) => node("i", { class: name }));
  bar.append(...pieces);
  const count = node("p", { class: "result", role: "status" });
  mount.append(
    bar,
    node("div", { class: "flips" }, buttons.map((one) => one.button)),
    node(
      "div",
      { class: "controls" },
      search("cq", "Prompts, completions, answers"),
      choice("From", "from", options, "0"),
      choice("To", "to", options, lastIndex),
    ),
    count,
  );
  const marks = (verdict) =>
    Array.from(verdict, (one, i) => {
      const name = { 1: "good", 0: "bad" }[one] || "none";
      const sign = { 1: "✓", 0: "✗" }[one] || "–";
      return node("span", { class: `mark ${name}`, title: labels[i] }, sign);
    });
  const fill = makeList(mount, 12, "No prompt matches.", (item) =>
    fold(
      [promptLine(item), node("span", { class: "marks" }, marks(verdicts[item.index]))],
      () =>
        node(
          "div",
          { class: "inside" },
          promptBlock(item),
          node(
            "div",
            { class: "side-by-side" },
            item.outs.map((out, i) =>
              node("div", { class: "column" }, node("h4", {}, labels[i]), out ? sample(out) : node("p", { class: "note" }, "not evaluated")),
            ),
          ),
        ),
      state.get("open") === "all" || state.get("open") === item.id,
    ),
  );
  return () => {
    const wanted = FLIPS.find(([, name]) => name === state.get("flip"));
    const changes = verdicts.map(change);
    FLIPS.forEach(([code, name], i) => {
      const many = changes.filter((one) => one === code).length;
      buttons[i].number.textContent = many.toLocaleString("en");
      buttons[i].button.setAttribute("aria-pressed", String(state.get("flip") === name));
      pieces[i].style.flexGrow = many;
    });
    const query = state.get("cq").toLowerCase();
    const found = shown.filter(
      (item) =>
        (!wanted || changes[item.index] === wanted[0]) &&
        (holdsPrompt(query, item) || item.outs.some((out) => out && holds(query, out.text, out.answer))),
    );
    count.textContent = plural(found.length, "prompt");
    fill(found);
  };
}

function viewPairs(mount) {
  const sets = data.pairs.filter((set) => set.pairs.length);
  const last = sets[sets.length - 1].key;
  const count = node("p", { class: "result", role: "status" });
  mount.append(
    node(
      "div",
      { class: "controls" },
      search("pq", "Prompts, completions, reasons"),
      choice("From", "pset", sets.map((set) => [set.key, set.label]), last),
    ),
    count,
  );
  const side = (pair, name) =>
    node("div", { class: `column ${name}` }, node("h4", {}, name), sample(pair[name]));
  const fill = makeList(mount, 8, "No pair matches.", (pair) =>
    node(
      "article",
      { class: "pair" },
      node(
        "div",
        { class: "pair-head" },
        promptLine(pair),
        node("span", { class: "fact" }, node("i", {}, "gap"), " ", node("b", {}, short(pair.chosen.value - pair.rejected.value))),
        node("span", { class: "fact" }, node("i", {}, "weight"), " ", node("b", {}, short(pair.weight))),
        pair.reason && node("span", { class: "reason" }, pair.reason),
      ),
      node("div", { class: "side-by-side" }, side(pair, "chosen"), side(pair, "rejected")),
    ),
  );
  return () => {
    const set = sets.find((one) => one.key === state.get("pset", last)) || sets[sets.length - 1];
    const query = state.get("pq").toLowerCase();
    const found = set.pairs.filter(
      (pair) => holdsPrompt(query, pair) || holds(query, pair.reason, pair.chosen.text, pair.rejected.text),
    );
    count.textContent = `${found.length} of ${plural(set.pairs.length, "pair")}`;
    fill(found);
  };
}

const views = { compare: viewCompare, rollouts: viewRollouts, pairs: viewPairs };
for (const mount of document.querySelectorAll("[data-view]")) {
  state.listeners.push(views[mount.dataset.view](mount));
}
for (const figure of document.querySelectorAll("[data-chart]")) {
  attachChart(figure, data.charts[figure.dataset.chart]);
}
for (const kind of ["pointerover", "pointerdown"]) {
  document.addEventListener(kind, (event) => {
    const token = event.target.closest && event.target.closest("[data-tip]");
    if (!token) {
      if (!event.target.closest || !event.target.closest("svg")) hideTip();
      return;
    }
    const box = token.getClientRects()[0];
    showTip(token.dataset.tip, box.left + box.width / 2, box.top);
  });
}
document.addEventListener("scroll", hideTip, { passive: true });
state.read();
root.dataset.ready = "yes";
