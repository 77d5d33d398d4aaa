// Completions: text shaded by probability, and what was said of them.

const SHADES = [0.05, 0.2, 0.5, 1, 1.7, 2.5, 3.5, 5, 7];
const natsOf = (level) => (data.levels.indexOf(level) / 12) ** 2;
const shadeOf = (nats) => SHADES.filter((edge) => nats >= edge).length;
const good = (value) => value >= 0.5;

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

function mark(value) {
  if (value === undefined || value === null) return node("span", { class: "mark none" }, "–");
  if (value === 1 || value === 0) {
    const name = value ? "right" : "wrong";
    const sign = value ? "✓" : "✗";
    return node("span", { class: `mark ${value ? "good" : "bad"}`, title: name }, sign);
  }
  return node("span", { class: `mark number ${good(value) ? "good" : "bad"}` }, short(value));
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
  pairs.push(["tokens", rollout.n]);
  pairs.push(["logp", short(rollout.logp)]);
  return pairs.map(([name, value, kind]) =>
    node("span", { class: `fact ${kind || ""}` }, node("i", {}, name), " ", node("b", {}, value)),
  );
}

function sample(rollout, title, votesOf) {
  const head = node("div", { class: "sample-head" }, mark(rollout.value), title, facts(rollout, votesOf));
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
    node("div", { class: "sample-head" }, columns, node("span", { class: "fact" }, node("i", {}, "id"), " ", prompt.id)),
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
];

function inGroup(prompt, group) {
  const values = prompt.rollouts.map((one) => one.value).filter((v) => v !== undefined);
  const right = values.filter(good).length;
  if (group === "mixed") return right > 0 && right < values.length;
  if (group === "right") return values.length > 0 && right === values.length;
  if (group === "wrong") return values.length > 0 && right === 0;
  if (group === "unscored") return values.length < prompt.rollouts.length;
  if (group === "cut") return prompt.rollouts.some((one) => one.stop === "length");
  return true;
}

function groupSummary(prompt) {
  const values = prompt.rollouts.map((one) => one.value);
  const known = values.filter((value) => value !== undefined);
  const dots = values.map((value) =>
    node("i", { class: value === undefined ? "none" : good(value) ? "good" : "bad" }),
  );
  const binary = known.every((value) => value === 0 || value === 1);
  const sum = known.reduce((a, b) => a + b, 0);
  const told = !known.length ? "–" : binary ? `${sum}/${known.length}` : short(sum / known.length);
  const label = binary ? `${sum} of ${known.length} right` : `mean score ${told}`;
  return [
    promptLine(prompt),
    node("span", { class: "dots", "aria-hidden": "true" }, dots),
    node("span", { class: "count", title: label }, told),
  ];
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
  const fill = makeList(mount, 20, "No prompt matches.", (prompt) =>
    fold(
      groupSummary(prompt),
      () =>
        node(
          "div",
          { class: "inside" },
          promptBlock(prompt),
          prompt.rollouts.map((one) => sample(one, node("span", { class: "nth" }, `#${one.i}`), prompt.rollouts.length)),
        ),
      state.get("open") === "all" || state.get("open") === prompt.id,
    ),
  );
  return () => {
    const set = sets.find((one) => one.key === state.get("set", last)) || sets[sets.length - 1];
    const query = state.get("q").toLowerCase();
    const found = set.prompts.filter(
      (prompt) =>
        inGroup(prompt, state.get("show")) &&
        (holdsPrompt(query, prompt) || prompt.rollouts.some((one) => holds(query, one.text, one.answer))),
    );
    const samples = found.reduce((sum, prompt) => sum + prompt.rollouts.length, 0);
    count.textContent = `${found.length} of ${plural(set.prompts.length, "prompt")}, ${plural(samples, "completion")}`;
    fill(found);
  };
}
