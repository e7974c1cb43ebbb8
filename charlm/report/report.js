"use strict";
// Values on hover: a line at the nearest x, and what each series has there.
for (const svg of document.querySelectorAll("svg[data-hover]")) {
  const series = JSON.parse(svg.dataset.hover), box = svg.parentElement;
  const cursor = document.createElementNS("http://www.w3.org/2000/svg", "line");
  cursor.setAttribute("class", "cursor");
  cursor.setAttribute("y1", "12");
  cursor.setAttribute("y2", "276");
  const tip = document.createElement("div");
  tip.className = "tip";
  const hide = () => { cursor.remove(); tip.remove(); };
  const nearest = (points, x) => points.reduce((best, point) => (Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best));
  svg.addEventListener("pointermove", (event) => {
    const area = svg.getBoundingClientRect(), x = ((event.clientX - area.left) / area.width) * svg.viewBox.baseVal.width;
    const found = series.map(({ name, points }) => [name, nearest(points, x)]);
    const at = nearest(found.map(([, point]) => point), x);
    cursor.setAttribute("x1", at[0]);
    cursor.setAttribute("x2", at[0]);
    svg.append(cursor);
    tip.replaceChildren();
    for (const [name, point] of found) {
      if (Math.abs(point[0] - at[0]) > 8) continue;
      const line = document.createElement("div");
      line.textContent = `${name} ${point[3]} at ${point[2]}`;
      tip.append(line);
    }
    box.append(tip);
    const left = (at[0] / svg.viewBox.baseVal.width) * area.width;
    tip.style.left = `${Math.max(0, Math.min(left + 10, area.width - tip.offsetWidth))}px`;
  });
  svg.addEventListener("pointerleave", hide);
}
