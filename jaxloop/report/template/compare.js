// Held-out prompts at each evaluation: what was solved, and what changed.

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
