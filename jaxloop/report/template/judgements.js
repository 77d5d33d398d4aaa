// What judges wrote: beside each answer, and all of it with the most disputed first.

const INTERESTS = {
  orders: "the two orders disagree",
  invalid: "a judgement cannot be read",
  wrong: "against the truth",
  spread: "its judgements differ",
};

const has = {
  orders: (one) => one.agree === false,
  invalid: (one) => one.invalid > 0,
  wrong: (one) => Boolean(one.wrong),
  spread: (one) => one.spread > 0,
};

const TOO_LONG = "longer than the judge can read, so it was not asked";

/** What one judgement said: its numbers, or that it cannot be read. */
function verdict(values) {
  if (values === null) return node("span", { class: "verdict warn", title: "left out, never 0" }, "invalid");
  return node("span", { class: "verdict", title: values.length > 1 ? "in the order shown" : null }, values.map(short).join(" : "));
}

/** All verdicts of a request, one chip for each judgement. */
function verdicts(order) {
  if (!order.told.length) return [node("span", { class: "verdict warn", title: TOO_LONG }, "not asked")];
  return order.told.flatMap((one) => one.k.map(() => verdict(one.values)));
}

const nameOf = (one) => (i) => (one.about === undefined ? `#${i}` : `judgement ${i + 1}`);
const judgedNames = (one) => one.orders[0].of.map(nameOf(one)).join(" against ");

/** Which of those shown got the most, or that it is a tie. */
function winner(one, order) {
  if (!order.mean) return order.told.length ? "nothing that can be read" : "not asked";
  const most = Math.max(...order.mean);
  const best = order.of.filter((_, n) => order.mean[n] === most);
  return best.length > 1 ? "a tie" : `${nameOf(one)(best[0])} wins`;
}

/** What each order says, once where both say the same. */
const winners = (one) => [...new Set(one.orders.map((order) => winner(one, order)))].join(", then ");

/** A request with its judgements; what the judge read comes on demand. */
function requestBlock(one, order) {
  const shown = order.of.length > 1 && [
    node("b", {}, winner(one, order)),
    ` · shown ${order.of.map(nameOf(one)).join(", then ")}`,
  ];
  const told = order.told.map((each) => {
    const facts = [
      node("span", { class: "nth" }, `${each.k.length > 1 ? "samples" : "sample"} ${each.k.map((k) => k + 1).join(", ")}`),
      verdict(each.values),
      each.meta !== undefined && fact("meta-judge", short(each.meta)),
      each.stop === "length" && fact("stop", "length", "warn"),
    ];
    const head = node("div", { class: "sample-head" }, facts);
    if (each.text === undefined) return node("div", { class: "told-one" }, head);
    return node("div", { class: `told-one ${each.values === null ? "invalid" : ""}` }, head, shadedText(each));
  });
  return node(
    "div",
    { class: "request" },
    shown && node("p", { class: "shown" }, shown),
    told.length ? told : node("p", { class: "note" }, `Not asked: ${TOO_LONG}.`),
    order.request !== undefined &&
      fold(node("span", { class: "what" }, "What the judge read"), () =>
        node("div", { class: "completion request-text", dir: "auto" }, order.request),
      ),
    order.request === undefined && node("p", { class: "note" }, "The texts are not in this file."),
  );
}

function caseBlock(one) {
  return node("div", { class: "side-by-side" }, one.orders.map((order) => requestBlock(one, order)));
}

/** What is wrong with a case, in words. That judgements differ, the verdicts of a single
 * answer show themselves. */
function flags(one) {
  const wrong = ["orders", "invalid", "wrong"].filter((kind) => has[kind](one));
  if (!wrong.length && one.spread && one.orders[0].of.length > 1) wrong.push("spread");
  return wrong.map((kind) => node("span", { class: `flag ${kind}` }, INTERESTS[kind]));
}

/** In short: of several who won, of one its verdicts. */
function said(one) {
  if (one.orders[0].of.length > 1) return node("span", { class: "winners" }, winners(one));
  return node("span", { class: "verdicts" }, one.orders.flatMap(verdicts).slice(0, 12));
}

/** Under an answer: the judgements that it was in. */
function judgedBlock(prompt, i) {
  const index = prompt.rollouts[i].i;
  const about = (prompt.judged || []).filter((one) => one.about === undefined && one.orders[0].of.includes(index));
  const same = prompt.rollouts.find((one) => one.text === prompt.rollouts[i].text);
  if (!about.length) {
    const note = prompt.judged && same.i !== index && `Judged as #${same.i}, which reads the same.`;
    return note && node("p", { class: "judged-same" }, note);
  }
  return node(
    "div",
    { class: "judged" },
    about.map((one) => {
      const others = one.orders[0].of.filter((other) => other !== index).map((other) => `#${other}`);
      const against = others.length ? ` against ${others.join(", ")}` : "";
      return fold([node("span", { class: "judge-name" }, one.judge, against), said(one), flags(one)], () => caseBlock(one));
    }),
  );
}

function caseRow({ prompt, one }) {
  const summary = [
    promptLine(prompt),
    node("span", { class: "of" }, judgedNames(one)),
    said(one),
    node("span", { class: "flags" }, flags(one)),
  ];
  const answers = () =>
    one.about === undefined
      ? one.orders[0].of.map((i) => {
          const rollout = prompt.rollouts.find((each) => each.i === i);
          return node("div", { class: "column" }, rollout && sample(rollout, node("span", { class: "nth" }, `#${i}`)));
        })
      : (one.shown || []).map((text, n) =>
          node("div", { class: "column" }, node("h4", {}, nameOf(one)(one.orders[0].of[n])), node("div", { class: "completion", dir: "auto" }, text)),
        );
  return fold(
    summary,
    () =>
      node(
        "div",
        { class: "inside" },
        promptBlock(prompt),
        one.about !== undefined && node("p", { class: "note" }, `Two judgements of #${one.about}, as the meta-judge saw them.`),
        node("div", { class: "side-by-side" }, answers()),
        node("h4", { class: "said" }, `What ${one.judge} said`),
        caseBlock(one),
      ),
    state.get("open") === "all",
  );
}

/** Of each kind in turn the most disputed, then what nobody disputes. */
function disputedFirst(cases) {
  const kinds = Object.fromEntries([...Object.keys(INTERESTS), "plain"].map((kind) => [kind, []]));
  for (const item of [...cases].sort((a, b) => b.one.spread - a.one.spread)) kinds[item.one.interest].push(item);
  const { plain, ...disputed } = kinds;
  const longest = Math.max(...Object.values(disputed).map((items) => items.length));
  const turns = Array.from({ length: longest }, (_, n) => Object.values(disputed).map((items) => items[n]));
  return [...turns.flat().filter(Boolean), ...plain];
}

function viewJudgements(mount) {
  const sets = data.sets.filter((set) => set.cases);
  const last = sets[sets.length - 1].key;
  const casesOf = new Map(
    sets.map((set) => [
      set.key,
      disputedFirst(set.prompts.flatMap((prompt) => (prompt.judged || []).map((one) => ({ prompt, one })))),
    ]),
  );
  const count = node("p", { class: "result", role: "status" });
  const bar = node("div", { class: "flips kinds" });
  const all = [...casesOf.values()].flat();
  // No count of what cannot happen: with one order shown, or no truth known.
  const possible = { ...has, orders: (one) => one.agree !== undefined };
  const kinds = Object.entries(INTERESTS).filter(([kind]) => kind === "invalid" || all.some(({ one }) => possible[kind](one)));
  const judges = [...new Set(all.map(({ one }) => one.judge))];
  const buttons = kinds.map(([kind, words]) => {
    const number = node("b");
    const button = node("button", { type: "button", class: `flip ${kind}` }, number, node("span", {}, words));
    button.addEventListener("click", () => state.set("jshow", state.get("jshow") === kind ? "" : kind));
    return { kind, button, number };
  });
  bar.append(...buttons.map((each) => each.button));
  mount.append(
    bar,
    node(
      "div",
      { class: "controls" },
      search("jq", "Prompts, answers, judgements"),
      choice("Show", "jshow", [["", "all, disputed first"], ...kinds], ""),
      judges.length > 1 && choice("Judge", "judge", [["", "all judges"], ...judges.map((name) => [name, name])], ""),
      choice("From", "jset", sets.map((set) => [set.key, set.label]), last),
    ),
    count,
  );
  const fill = makeList(mount, 12, "No case matches.", caseRow);
  return () => {
    const of = casesOf.get(state.get("jset", last)) || casesOf.get(last);
    const judge = state.get("judge");
    const mine = of.filter(({ one }) => !judge || one.judge === judge);
    for (const { kind, button, number } of buttons) {
      number.textContent = mine.filter(({ one }) => has[kind](one)).length.toLocaleString("en");
      button.setAttribute("aria-pressed", String(state.get("jshow") === kind));
    }
    const kind = has[state.get("jshow")];
    const query = state.get("jq").toLowerCase();
    const texts = ({ one }) => [...one.orders.flatMap((order) => order.told.map((each) => each.text)), ...(one.shown || [])];
    const found = mine.filter(
      (item) => (!kind || kind(item.one)) && (holdsPrompt(query, item.prompt) || holds(query, ...texts(item))),
    );
    count.textContent = `${found.length.toLocaleString("en")} of ${plural(mine.length, "case")}`;
    fill(found);
  };
}
