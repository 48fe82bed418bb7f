// Memory in order, as a grid: one line is what a kernel reads at once, and an arrow shows its walk.
(function (nk) {
  "use strict";

  const SQUARE = 26;
  const MOST_COLUMNS = 24;
  const LINES = 10;
  const ARROW = 22;
  const SVG = "http://www.w3.org/2000/svg";

  function make(name, attributes, text = "") {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.textContent = text;
    return element;
  }

  /** The number of the weight of the element at an offset. */
  nk.weightAt = function (found, offset) {
    const { period, inner, slabs } = found.plan;
    const slab = Math.floor(offset / (found.total / slabs));
    const within = offset % (found.total / slabs);
    return slab * period + (Math.floor(within / inner) % period);
  };

  /** How many elements of a line fit in a box of this width, in pixels. */
  nk.columnsIn = (width) => Math.min(MOST_COLUMNS, Math.max(4, Math.floor((width - ARROW - 18) / SQUARE)));

  /** The grid as an element, and how much of memory it shows: at most `most` elements of a line. */
  nk.memoryGrid = function (found, labels, most) {
    const { view, columns } = found.plan;
    const width = columns ? view[2] * view[3] : view[3];
    const lines = found.total / width;
    const shown = { columns: Math.min(width, most), rows: Math.min(lines, LINES) };
    const svg = make("svg", {
      viewBox: `0 0 ${ARROW + shown.columns * SQUARE + 18} ${ARROW + shown.rows * SQUARE + 14}`,
      class: "nkx-memory",
      role: "img",
      "aria-label": labels.name,
    });
    svg.style.maxWidth = `${ARROW + shown.columns * SQUARE + 18}px`;
    for (let line = 0; line < shown.rows; line += 1) {
      for (let column = 0; column < shown.columns; column += 1) {
        const offset = line * width + column;
        const index = nk.elementAt(found, offset);
        const [x, y] = [ARROW + column * SQUARE, ARROW + line * SQUARE];
        const square = make("g", { "data-cell": nk.cellOf(found.levels, index), "data-offset": offset });
        const [l, c, h] = nk.colourOf(found, index);
        const rect = { x: x + 1, y: y + 1, width: SQUARE - 2, height: SQUARE - 2, rx: 4, fill: nk.css([l, c, h]) };
        square.append(make("rect", rect));
        if (found.region.hasFeatures) {
          const fill = l > 0.6 ? "#111" : "#fff";
          const at = { x: x + SQUARE / 2, y: y + SQUARE / 2 + 4, "text-anchor": "middle", fill, "font-size": 11 };
          square.append(make("text", at, nk.weightAt(found, offset)));
        }
        svg.append(square);
      }
    }
    const right = ARROW + shown.columns * SQUARE;
    const bottom = ARROW + shown.rows * SQUARE;
    if (shown.columns < width) svg.append(make("text", { x: right + 3, y: ARROW + 18, class: "nkx-more" }, "…"));
    if (shown.rows < lines) svg.append(make("text", { x: ARROW + 6, y: bottom + 10, class: "nkx-more" }, "⋮"));
    const [x2, y2] = columns ? [ARROW / 2, bottom - 4] : [right - 4, ARROW / 2];
    const [x1, y1] = columns ? [ARROW / 2, ARROW + 4] : [ARROW + 4, ARROW / 2];
    const head = columns
      ? `M${x2 - 5} ${y2 - 7}L${x2} ${y2}L${x2 + 5} ${y2 - 7}`
      : `M${x2 - 7} ${y2 - 5}L${x2} ${y2}L${x2 - 7} ${y2 + 5}`;
    svg.append(make("path", { d: `M${x1} ${y1}L${x2} ${y2}${head}`, class: "nkx-walk" }));
    return { svg, rows: shown.rows, columns: shown.columns, allRows: lines, allColumns: width };
  };
})((globalThis.normkitExplorer ??= {}));
