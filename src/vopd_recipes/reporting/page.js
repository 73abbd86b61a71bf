// Without this script everything is still there: tokens keep their native titles, charts their axes.
(() => {
  const tip = document.createElement("div");
  tip.id = "tip";
  tip.hidden = true;
  document.body.append(tip);

  const show = (text, x, y) => {
    tip.textContent = text;
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const width = document.documentElement.clientWidth;
    tip.style.left = Math.max(8, Math.min(x + 14, width - box.width - 8)) + "px";
    tip.style.top = (y + 18 + box.height < innerHeight ? y + 18 : Math.max(8, y - box.height - 12)) + "px";
  };

  for (const token of document.querySelectorAll(".t[title]")) {
    token.dataset.tip = token.title;
    token.removeAttribute("title");
  }

  const number = (value, percent) =>
    percent ? (100 * value).toFixed(1) + " %" : value.toPrecision(3).replace("-", "−");

  // The values at the step under the pointer, read back from the drawn points.
  const read = (chart, clientX) => {
    const [first, last, low, high, left, right, top, bottom] = chart.dataset.frame.split(" ").map(Number);
    const at = new DOMPoint(clientX, 0).matrixTransform(chart.getScreenCTM().inverse()).x;
    if (at < left - 6 || at > right + 6) return null;
    const found = [];
    for (const line of chart.querySelectorAll("[data-label]")) {
      const points = Array.from(line.points);
      const near = points.reduce((best, p) => (Math.abs(p.x - at) < Math.abs(best.x - at) ? p : best));
      found.push({ label: line.dataset.label, x: near.x, value: low + ((bottom - near.y) / (bottom - top)) * (high - low) });
    }
    if (!found.length) return null;
    const nearest = found.reduce((best, one) => (Math.abs(one.x - at) < Math.abs(best.x - at) ? one : best)).x;
    const step = Math.round(first + ((nearest - left) / (right - left)) * (last - first));
    const rows = found.filter((one) => Math.abs(one.x - nearest) < 0.6);
    const text = rows.map((one) => one.label + "  " + number(one.value, chart.dataset.percent)).join("\n");
    return { x: nearest, top, bottom, text: "step " + step + "\n" + text };
  };

  let cursor = null;
  const clear = () => {
    tip.hidden = true;
    cursor?.remove();
    cursor = null;
  };

  const point = (event) => {
    const token = event.target.closest?.("[data-tip]");
    if (token) {
      clear();
      return show(token.dataset.tip, event.clientX, event.clientY);
    }
    const chart = event.target.closest?.("svg.chart");
    clear();
    const found = chart && read(chart, event.clientX);
    if (!found) return;
    cursor = document.createElementNS("http://www.w3.org/2000/svg", "line");
    cursor.setAttribute("class", "cursor");
    cursor.setAttribute("x1", found.x);
    cursor.setAttribute("x2", found.x);
    cursor.setAttribute("y1", found.top);
    cursor.setAttribute("y2", found.bottom);
    chart.append(cursor);
    show(found.text, event.clientX, event.clientY);
  };

  document.addEventListener("pointermove", point);
  document.addEventListener("pointerdown", point);
  document.addEventListener("scroll", clear, { passive: true });
})();
