// Completions: text shaded by probability, and what was said of them.

const SHADES = [0.05, 0.2, 0.5, 1, 1.7, 2.5, 3.5, 5, 7];
const natsOf = (level) => (data.levels.indexOf(level) / 12) ** 2;
const shadeOf = (nats) => SHADES.filter((edge) => nats >= edge).length;

// Scores in [0, 1] are right or wrong; others are numbers, good from the middle on.
for (const set of data.sets) {
  for (const prompt of set.prompts) {
    prompt.middle = set.middle;
    for (const one of prompt.rollouts) one.plain = !set.unit;
  }
}
for (const set of data.pairs) {
  if (!set.unit) for (const pair of set.pairs) pair.chosen.plain = pair.rejected.plain = true;
}
for (const set of data.labelled) {
  if (!set.unit) for (const row of set.rows) row.out.plain = true;
}
if (data.compare && !data.compare.unit) {
  for (const item of data.compare.shown) for (const out of item.outs) if (out) out.plain = true;
}

function tokenSpan(level, text, kind = "") {
  const nats = natsOf(level);
  const told = `p ≈ ${percent(Math.exp(-nats))}, ${nats ? "−" : ""}${short(nats)} nats`;
  return node("span", { class: `t k${shadeOf(nats)} ${kind}`, "data-tip": told }, text);
}

/** The text of a completion, token by token where one knows which is which. */
function shadedText(rollout) {
  const block = node("div", { class: "completion", dir: "auto" });
  const levels = Array.from(rollout.q);
  if (rollout.loose) {
    const strip = levels.map((level) => tokenSpan(level, " ", "cell"));
    const label = `${plural(levels.length, "token")}, one cell each:`;
    block.append(rollout.text);
    return [block, node("div", { class: "strip-cells" }, node("small", {}, label), strip)];
  }
  const letters = Array.from(rollout.text);
  let at = 0;
  levels.forEach((level, i) => {
    const length = rollout.len ? rollout.len[i] : 1;
    const piece = letters.slice(at, at + length).join("");
    at += length;
    if (piece) block.append(tokenSpan(level, piece));
    else if (i === levels.length - 1 && rollout.stop === "eos") {
      block.append(tokenSpan(level, "end", "eos"));
    }
  });
  add(block, [letters.slice(at).join("")]);
  if (rollout.cut) {
    block.append(node("span", { class: "cut" }, ` … ${plural(rollout.cut, "character")} more`));
  }
  return [block];
}

function mark(value, plain = false) {
  if (value === undefined || value === null) return node("span", { class: "mark none" }, "–");
  if (plain) return node("span", { class: "mark number" }, short(value));
  if (value === 1 || value === 0) {
    const name = value ? "right" : "wrong";
    const sign = value ? "✓" : "✗";
    return node("span", { class: `mark ${value ? "good" : "bad"}`, title: name }, sign);
  }
  return node("span", { class: `mark number ${value >= 0.5 ? "good" : "bad"}` }, short(value));
}

function facts(rollout, votesOf) {
  const pairs = [];
  if (rollout.status) pairs.push(["status", rollout.status, "warn"]);
  if (rollout.answer !== undefined) pairs.push(["answer", rollout.answer]);
  if (rollout.votes !== undefined && votesOf > 1) pairs.push(["votes", `${rollout.votes}/${votesOf}`]);
  for (const [name, value] of Object.entries(rollout.parts || {})) pairs.push([name, short(value)]);
  if (rollout.adv !== undefined) pairs.push(["advantage", short(rollout.adv)]);
  if (rollout.share) pairs.push([`mean of ${rollout.share[1]}`, short(rollout.share[0])]);
  pairs.push(["stop", rollout.stop, rollout.stop === "length" ? "warn" : ""]);
  if (rollout.extra) pairs.push(["extra", "never chosen"]);
  pairs.push(["tokens", rollout.n]);
  pairs.push(["logp", short(rollout.logp)]);
  return pairs.map(([name, value, kind]) => fact(name, value, kind));
}

function fact(name, value, kind = "") {
  return node("span", { class: `fact ${kind}` }, node("i", {}, name), " ", node("b", {}, value));
}

function sample(rollout, title, votesOf) {
  const head = node("div", { class: "sample-head" }, mark(rollout.value, rollout.plain), title, facts(rollout, votesOf));
  return node("div", { class: "sample" }, head, shadedText(rollout));
}

function promptBlock(prompt) {
  const columns = Object.entries(prompt.columns).map(([name, value]) =>
    node("span", { class: "fact" }, node("i", {}, name), " ", node("b", { dir: "auto" }, value)),
  );
  // The row above shows a short prompt whole.
  const long = prompt.text.length > 70 || prompt.text.includes("\n");
  return node(
    "div",
    { class: "prompt" },
    long && node("div", { class: "prompt-full", dir: "auto" }, prompt.text),
    node("div", { class: "sample-head" }, columns, fact("id", prompt.id)),
  );
}

function promptLine(prompt) {
  return node("span", { class: "prompt-line", dir: "auto" }, prompt.text.slice(0, 300));
}

const holds = (query, ...texts) =>
  !query || texts.some((text) => String(text ?? "").toLowerCase().includes(query));
const holdsPrompt = (query, prompt) =>
  holds(query, prompt.text, prompt.id, ...Object.values(prompt.columns));

const GROUPS = [
  ["", "all prompts"],
  ["mixed", "some right, some wrong"],
  ["right", "all right"],
  ["wrong", "none right"],
  ["unscored", "something unscored"],
  ["cut", "something cut at the limit"],
  ["left", "left out of training"],
];

function inGroup(prompt, group) {
  const values = prompt.rollouts.map((one) => one.value).filter((v) => v !== undefined);
  const right = values.filter((value) => value >= prompt.middle).length;
  if (group === "mixed") return right > 0 && right < values.length;
  if (group === "right") return values.length > 0 && right === values.length;
  if (group === "wrong") return values.length > 0 && right === 0;
  if (group === "unscored") return values.length < prompt.rollouts.length;
  if (group === "cut") return prompt.rollouts.some((one) => one.stop === "length");
  if (group === "left") return prompt.left !== undefined;
  return true;
}

function groupSummary(prompt) {
  const values = prompt.rollouts.map((one) => one.value);
  const known = values.filter((value) => value !== undefined);
  const dots = values.map((value) =>
    node("i", { class: value === undefined ? "none" : value >= prompt.middle ? "good" : "bad" }),
  );
  const binary = !prompt.rollouts.some((one) => one.plain) && known.every((value) => value === 0 || value === 1);
  const sum = known.reduce((a, b) => a + b, 0);
  const told = !known.length ? "–" : binary ? `${sum}/${known.length}` : short(sum / known.length);
  const label = binary ? `${sum} of ${known.length} right` : `mean score ${told}`;
  return [
    promptLine(prompt),
    prompt.left && node("span", { class: "flag left" }, prompt.left),
    node("span", { class: "dots", "aria-hidden": "true" }, dots),
    node("span", { class: "count", title: label }, told),
  ];
}

/** A prompt that opens: its completions, and beside each what the judges said. */
function promptRow(prompt) {
  const title = (one) => node("span", { class: "nth" }, `#${one.i}`);
  return fold(
    groupSummary(prompt),
    () =>
      node(
        "div",
        { class: "inside" },
        promptBlock(prompt),
        prompt.rollouts.map((one, i) => [sample(one, title(one), prompt.rollouts.length), judgedBlock(prompt, i)]),
      ),
    state.get("open") === "all" || state.get("open") === prompt.id,
  );
}

function viewRollouts(mount) {
  const sets = data.sets.filter((set) => set.prompts.length);
  const last = sets[sets.length - 1].key;
  const shade = node("input", { type: "checkbox", name: "shade", checked: true });
  shade.addEventListener("change", () => root.classList.toggle("unshaded", !shade.checked));
  const ramp = Array.from({ length: 10 }, (_, i) => node("i", { class: `t k${i}` }, " "));
  const count = node("p", { class: "result", role: "status" });
  mount.append(
    node(
      "div",
      { class: "controls" },
      search("q", "Prompts, completions, answers"),
      choice("From", "set", sets.map((set) => [set.key, set.label]), last),
      choice("Show", "show", GROUPS, ""),
      node("label", { class: "check" }, shade, "Shade", node("span", { class: "ramp" }, "likely ", ramp, " unlikely")),
    ),
    count,
  );
  const fill = makeList(mount, 20, "No prompt matches.", promptRow);
  return () => {
    const set = sets.find((one) => one.key === state.get("set", last)) || sets[sets.length - 1];
    const query = state.get("q").toLowerCase();
    const found = set.prompts.filter(
      (prompt) =>
        inGroup(prompt, state.get("show")) &&
        (holdsPrompt(query, prompt) || holds(query, prompt.left) || prompt.rollouts.some((one) => holds(query, one.text, one.answer))),
    );
    const samples = found.reduce((sum, prompt) => sum + prompt.rollouts.length, 0);
    count.textContent = `${found.length} of ${plural(set.prompts.length, "prompt")}, ${plural(samples, "completion")}`;
    fill(found);
  };
}
