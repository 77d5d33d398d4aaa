// Values under the pointer, or under the arrow keys. The drawings themselves are static.

function attachChart(figure, chart) {
  const svg = figure.querySelector("svg");
  const cursor = svg.querySelector(".cursor");
  const line = cursor.querySelector("line");
  const dots = cursor.querySelectorAll("circle");
  const [left, right, top, bottom] = chart.frame;
  const [x0, x1, y0, y1] = chart.domain;
  const px = (x) => left + ((x - x0) / (x1 - x0)) * (right - left);
  const py = (y) => bottom - ((y - y0) / (y1 - y0)) * (bottom - top);
  const xs = [...new Set(chart.series.flatMap((one) => one.x))].sort((a, b) => a - b);
  const text = chart.percent ? percent : short;
  let at = xs.length - 1;

  function nearest(values, x) {
    let best = 0;
    values.forEach((value, i) => {
      if (Math.abs(value - x) < Math.abs(values[best] - x)) best = i;
    });
    return best;
  }

  function show() {
    const x = xs[at];
    const parts = [chart.xLabels[short(x)] || `${chart.xName} ${x.toLocaleString("en")}`];
    line.setAttribute("x1", px(x));
    line.setAttribute("x2", px(x));
    line.setAttribute("y1", top);
    line.setAttribute("y2", bottom);
    let highest = bottom;
    chart.series.forEach((one, i) => {
      const index = nearest(one.x, x);
      const y = one.x[index] === x ? one.y[index] : undefined;
      const drawn = y !== undefined && y !== null;
      dots[i].classList.toggle("off", !drawn);
      if (y === undefined) return;
      const name = chart.series.length > 1 ? `${one.name} ` : "";
      parts.push(name + (drawn ? text(y) : "not finite"));
      if (!drawn) return;
      dots[i].setAttribute("cx", px(x));
      dots[i].setAttribute("cy", py(y));
      highest = Math.min(highest, py(y));
    });
    cursor.classList.add("on");
    const box = svg.getBoundingClientRect();
    const scale = box.width / svg.viewBox.baseVal.width;
    showTip(parts.join(" · "), box.left + px(x) * scale, box.top + highest * scale);
  }

  function hide() {
    cursor.classList.remove("on");
    hideTip();
  }

  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const scale = svg.viewBox.baseVal.width / box.width;
    const x = x0 + (((event.clientX - box.left) * scale - left) / (right - left)) * (x1 - x0);
    at = nearest(xs, x);
    show();
  });
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: xs.length - 1 };
    if (!(event.key in moves)) return;
    event.preventDefault();
    at = Math.min(Math.max(moves[event.key], 0), xs.length - 1);
    show();
  });
}
