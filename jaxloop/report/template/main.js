// Each mount point gets its view, each drawing its pointer, and the page begins.

const views = {
  compare: viewCompare,
  judgements: viewJudgements,
  labelled: viewLabelled,
  pairs: viewPairs,
  rollouts: viewRollouts,
};
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
