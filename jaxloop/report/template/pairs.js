// What was trained on: pairs, and completions with a label.

function viewPairs(mount) {
  const left = Object.fromEntries(data.sets.map((set) => [set.key, set.prompts.filter((one) => one.left)]));
  const sets = data.pairs.filter((set) => set.pairs.length || (left[set.key] || []).length);
  const last = sets[sets.length - 1].key;
  const kinds = [["", "pairs"]];
  if (Object.values(left).some((some) => some.length)) kinds.push(["left", "prompts that gave none"]);
  const count = node("p", { class: "result", role: "status" });
  mount.append(
    node(
      "div",
      { class: "controls" },
      search("pq", "Prompts, completions, reasons"),
      choice("Show", "pshow", kinds, ""),
      choice("From", "pset", sets.map((set) => [set.key, set.label]), last),
    ),
    count,
  );
  const side = (pair, name) =>
    node("div", { class: `column ${name}` }, node("h4", {}, name), sample(pair[name]));
  const fill = makeList(mount, 8, "Nothing matches.", (item) => (item.chosen ? pairRow(item) : promptRow(item)));
  const pairRow = (pair) =>
    node(
      "article",
      { class: "pair" },
      node(
        "div",
        { class: "pair-head" },
        promptLine(pair),
        fact("gap", short(pair.chosen.value - pair.rejected.value)),
        fact("weight", short(pair.weight)),
        pair.reason && node("span", { class: "reason" }, pair.reason),
      ),
      node("div", { class: "side-by-side" }, side(pair, "chosen"), side(pair, "rejected")),
    );
  return () => {
    const set = sets.find((one) => one.key === state.get("pset", last)) || sets[sets.length - 1];
    const query = state.get("pq").toLowerCase();
    if (kinds.length > 1 && state.get("pshow") === "left") {
      const all = left[set.key] || [];
      const found = all.filter((prompt) => holdsPrompt(query, prompt) || holds(query, prompt.left));
      count.textContent = `${found.length} of ${plural(all.length, "prompt")} in this file that gave none`;
      fill(found);
      return;
    }
    const found = set.pairs.filter(
      (pair) => holdsPrompt(query, pair) || holds(query, pair.reason, pair.chosen.text, pair.rejected.text),
    );
    count.textContent = `${found.length} of ${plural(set.pairs.length, "pair")}`;
    fill(found);
  };
}

const LABELS = [
  ["", "all completions"],
  ["write", "to write"],
  ["avoid", "to avoid"],
];

function viewLabelled(mount) {
  const sets = data.labelled.filter((set) => set.rows.length);
  const last = sets[sets.length - 1].key;
  const count = node("p", { class: "result", role: "status" });
  mount.append(
    node(
      "div",
      { class: "controls" },
      search("lq", "Prompts and completions"),
      choice("Show", "lshow", LABELS, ""),
      choice("From", "lset", sets.map((set) => [set.key, set.label]), last),
    ),
    count,
  );
  const steps = (row) =>
    row.steps &&
    node(
      "span",
      { class: "fact" },
      node("i", {}, "steps "),
      row.steps.map(([label, end]) => node("span", { title: `up to token ${end}` }, mark(label))),
    );
  const fill = makeList(mount, 12, "No completion matches.", (row) =>
    node(
      "article",
      { class: "pair" },
      node("div", { class: "pair-head" }, promptLine(row), fact("weight", short(row.weight)), steps(row)),
      sample(row.out),
    ),
  );
  return () => {
    const set = sets.find((one) => one.key === state.get("lset", last)) || sets[sets.length - 1];
    const query = state.get("lq").toLowerCase();
    const wanted = state.get("lshow");
    const found = set.rows.filter(
      (row) =>
        (!wanted || (wanted === "write") === row.out.value > 0) && (holdsPrompt(query, row) || holds(query, row.out.text)),
    );
    count.textContent = `${found.length} of ${plural(set.rows.length, "completion")}`;
    fill(found);
  };
}
