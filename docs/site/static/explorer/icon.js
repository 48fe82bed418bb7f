// A region as a small cube, for buttons: its three visible faces, coloured as the large cube is.
(function (nk) {
  "use strict";

  const SVG = "http://www.w3.org/2000/svg";
  const SIZES = { batch: 3, channels: [4], positions: [3], groups: 2, layout: "contiguous" };
  const RISE = 0.5;
  const RUN = Math.sqrt(1 - RISE ** 2);
  const SHADES = [0.05, -0.02, -0.12];

  nk.icon = function (pattern) {
    const found = nk.describe({ ...SIZES, pattern });
    const [n, c, p] = ["samples", "channels", "positions"].map((side) => found.sides[side].places.length);
    const faces = [
      [n, c, (i, j) => [i, j, 0]],
      [c, p, (j, k) => [0, j, k]],
      [n, p, (i, k) => [i, 0, k]],
    ];
    const svg = document.createElementNS(SVG, "svg");
    const [left, width, top] = [-c * RUN, (n + c) * RUN, -(n + c) * RISE];
    svg.setAttribute("viewBox", `${left} ${top} ${width} ${p - top}`);
    svg.setAttribute("aria-hidden", "true");
    svg.setAttribute("class", "nkx-icon");
    faces.forEach(([across, down, at], face) => {
      for (let i = 0; i < across; i += 1) {
        for (let j = 0; j < down; j += 1) {
          const points = [[0, 0], [1, 0], [1, 1], [0, 1]].map(([a, b]) => {
            const [x, y, z] = at(i + a, j + b);
            return `${(x - y) * RUN} ${z - (x + y) * RISE}`;
          });
          const [lightness, chroma, hue] = nk.colourOf(found, nk.indexOf(found, at(i, j)));
          const path = document.createElementNS(SVG, "path");
          path.setAttribute("d", `M${points.join("L")}Z`);
          path.setAttribute("fill", nk.css([lightness + SHADES[face], chroma, hue]));
          svg.append(path);
        }
      }
    });
    return svg;
  };
})((globalThis.normkitExplorer ??= {}));
