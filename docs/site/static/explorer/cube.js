// The cube of samples, channels and positions on a canvas: cells are pulled apart, and the cube can be turned.
(function (nk) {
  "use strict";

  const HOME = { yaw: 45, pitch: 30 };
  const SIDES = ["samples", "channels", "positions"];
  const DURATION = 420;
  // What is added to the lightness of the faces across samples, channels and positions.
  const SHADES = [-0.02, -0.1, 0.06];

  /** Places along one side of the cube, with a gap where a kept index changes. */
  function marksOf(found, side) {
    const { own, places } = found.sides[side];
    const gaps = places.map((index, place) => {
      if (place === 0 || !found.coloured) return 0;
      const before = places[place - 1];
      return own.some((level, k) => !found.levels[level].reduced && index[k] !== before[k]) ? 1 : 0;
    });
    const total = gaps.reduce((a, b) => a + b, 0);
    return { gaps, total };
  }

  nk.Cube = class {
    /** `on` has: hover(places or null), pick(places or null). */
    constructor(canvas, on) {
      this.canvas = canvas;
      this.context = canvas.getContext("2d");
      this.on = on;
      this.view = { ...HOME };
      this.apart = 0.6;
      this.lit = null;
      this.progress = 1;
      this.polygons = [];
      this.still = matchMedia("(prefers-reduced-motion: reduce)");
      this.listen();
      new ResizeObserver(() => this.draw()).observe(canvas);
    }

    /** Show another tensor or region; the old picture changes into the new one where both have the same sizes. */
    show(found) {
      const before = this.cube;
      const counts = SIDES.map((side) => found.sides[side].places.length);
      const marks = SIDES.map((side) => marksOf(found, side));
      const cells = [];
      const colours = [];
      for (let n = 0; n < counts[0]; n += 1) {
        for (let c = 0; c < counts[1]; c += 1) {
          for (let p = 0; p < counts[2]; p += 1) {
            const index = nk.indexOf(found, [n, c, p]);
            cells.push(found.coloured ? nk.cellOf(found.levels, index) : -1);
            colours.push(found.coloured ? nk.colourOf(found, index) : null);
          }
        }
      }
      this.cube = { found, counts, marks, cells, colours };
      this.lit = null;
      this.element = null;
      this.fills = [];
      const same = before && before.counts.every((count, i) => count === counts[i]);
      this.before = same && !this.still.matches ? before : null;
      if (this.before) this.animate();
      else this.draw();
    }

    animate() {
      const start = performance.now();
      const run = (this.run = {});
      const step = (now) => {
        if (this.run !== run) return;
        const part = Math.min(1, Math.max(0, (now - start) / DURATION));
        this.progress = 1 - (1 - part) ** 3;
        if (part === 1) {
          this.before = null;
          this.fills = [];
        }
        this.paint();
        if (part < 1) requestAnimationFrame(step);
      };
      this.progress = 0;
      requestAnimationFrame(step);
    }

    /** The cell whose elements stay bright; null for all. */
    light(cell, element = null) {
      this.lit = cell;
      this.element = element;
      this.draw();
    }

    turn(yaw, pitch) {
      this.view.yaw = (this.view.yaw + yaw) % 360;
      this.view.pitch = Math.min(85, Math.max(-85, this.view.pitch + pitch));
      this.draw();
    }

    home() {
      this.view = { ...HOME };
      this.draw();
    }

    pull(apart) {
      this.apart = Math.min(1.5, Math.max(0, apart));
      this.draw();
    }

    draw() {
      if (this.waiting) return;
      this.waiting = true;
      requestAnimationFrame(() => {
        this.waiting = false;
        this.paint();
      });
    }

    /** Where each place of a side begins: between the old and the new picture while one changes into the other. */
    starts(axis) {
      const at = (cube) => {
        let place = 0;
        // Many gaps are smaller, so that the cube stays a cube.
        const { gaps, total } = cube.marks[axis];
        const gap = this.apart * Math.min(1, (0.55 * cube.counts[axis]) / Math.max(1, total));
        return gaps.map((mark, i) => (place += (i ? 1 : 0) + mark * gap));
      };
      const now = at(this.cube);
      if (!this.before) return now;
      const old = at(this.before);
      return now.map((value, i) => old[i] + (value - old[i]) * this.progress);
    }

    paint() {
      const { canvas, context, cube } = this;
      const box = canvas.getBoundingClientRect();
      if (!cube || !box.width) return;
      const ratio = devicePixelRatio || 1;
      canvas.width = Math.round(box.width * ratio);
      canvas.height = Math.round(box.height * ratio);
      context.setTransform(ratio, 0, 0, ratio, 0, 0);
      const theme = readTheme(canvas);
      // While colours change, none are kept.
      if (theme.dark !== this.theme?.dark || this.before) this.fills = [];
      this.theme = theme;
      const starts = [0, 1, 2].map((axis) => this.starts(axis));
      const lengths = starts.map((places) => places.at(-1) + 1);
      const project = this.projection(box, lengths);
      this.polygons = [];
      this.paintCells(starts, project);
      this.paintChosen();
      this.paintLabels(lengths, project);
    }

    projection(box, [n, c, p]) {
      const yaw = (this.view.yaw * Math.PI) / 180;
      const pitch = (this.view.pitch * Math.PI) / 180;
      const [cy, sy, cp, sp] = [Math.cos(yaw), Math.sin(yaw), Math.cos(pitch), Math.sin(pitch)];
      // Turning does not change the scale: the base is taken as its circle.
      const base = Math.hypot(n, c);
      const scale = Math.min((box.width - 130) / base, (box.height - 56) / (p * cp + base * Math.abs(sp)), 46);
      const project = (x, y, z) => {
        const [dx, dy, dz] = [x - n / 2, y - c / 2, z - p / 2];
        const away = dx * sy + dy * cy;
        return [box.width / 2 + (dx * cy - dy * sy) * scale, box.height / 2 + (dz * cp - away * sp) * scale];
      };
      project.scale = scale;
      // How much farther from the reader one step along each axis leads.
      project.away = [sy * cp, cy * cp, sp];
      return project;
    }

    paintCells(starts, project) {
      const { counts, cells } = this.cube;
      const orders = counts.map((count, axis) => {
        const places = [...Array(count).keys()];
        return project.away[axis] > 0 ? places.reverse() : places;
      });
      const size = [counts[1] * counts[2], counts[2], 1];
      const place = [0, 0, 0];
      for (place[0] of orders[0]) {
        for (place[1] of orders[1]) {
          for (place[2] of orders[2]) {
            const voxel = place[0] * size[0] + place[1] * size[1] + place[2];
            const bright = this.lit === null || cells[voxel] === this.lit;
            for (let axis = 0; axis < 3; axis += 1) {
              if (this.isHidden(axis, place, voxel, size[axis], bright, starts[axis], project)) continue;
              this.paintFace(axis, place, voxel, bright, starts, project);
            }
          }
        }
      }
    }

    /** The outline of the chosen element, over all that was drawn. */
    paintChosen() {
      const { context } = this;
      context.strokeStyle = this.theme.text;
      context.lineWidth = 2.2;
      for (const [corners, place] of this.polygons) {
        if (!this.element?.every((index, i) => index === place[i])) continue;
        context.beginPath();
        corners.forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
        context.closePath();
        context.stroke();
      }
    }

    /** Whether a face is covered by the next element, which touches it and is as bright. */
    isHidden(axis, place, voxel, step, bright, starts, project) {
      const away = project.away[axis];
      if (Math.abs(away) < 1e-9) return true;
      const next = place[axis] + (away > 0 ? -1 : 1);
      if (next < 0 || next >= starts.length) return false;
      const gap = Math.abs(starts[place[axis]] - starts[next]) - 1;
      const neighbour = this.cube.cells[voxel + (next - place[axis]) * step];
      return gap < 0.02 && bright === (this.lit === null || neighbour === this.lit);
    }

    paintFace(axis, place, voxel, bright, starts, project) {
      const low = place.map((index, i) => starts[i][index]);
      const fixed = low[axis] + (project.away[axis] > 0 ? 0 : 1);
      const [u, v] = [0, 1, 2].filter((other) => other !== axis);
      const corners = [[0, 0], [1, 0], [1, 1], [0, 1]].map(([du, dv]) => {
        const point = [...low];
        point[axis] = fixed;
        point[u] += du;
        point[v] += dv;
        return project(...point);
      });
      const { context } = this;
      context.beginPath();
      corners.forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
      context.closePath();
      context.fillStyle = this.fill(axis, voxel, bright);
      context.strokeStyle = bright ? this.theme.edge : this.theme.faint;
      context.lineWidth = Math.min(1, project.scale / 18);
      context.lineJoin = "round";
      context.fill();
      context.stroke();
      this.polygons.push([corners, [...place]]);
    }

    /** The colour of a face; the same one until the picture changes. */
    fill(axis, voxel, bright) {
      const flipped = this.view.pitch < 0 ? 1 : 0;
      return (this.fills[((voxel * 3 + axis) * 2 + flipped) * 2 + (bright ? 1 : 0)] ??= this.mixed(axis, voxel, bright));
    }

    mixed(axis, voxel, bright) {
      const { colours } = this.cube;
      const { dark } = this.theme;
      const flipped = axis === 2 && this.view.pitch < 0 ? -0.16 : 0;
      const shade = SHADES[axis] + flipped - (dark ? 0.04 : 0);
      const wanted = colours[voxel];
      if (wanted === null) return rgb(nk.fromOklch((dark ? 0.42 : 0.86) + shade, 0.01, 250), bright ? 1 : 0.2);
      if (!bright) return rgb(nk.fromOklch((dark ? 0.4 : 0.88) + shade, 0.015, 250), dark ? 0.16 : 0.22);
      const [l, c, h] = this.blended(wanted, voxel);
      return rgb(nk.fromOklch(l + shade, c, h), 1);
    }

    /** A colour between the old picture and the new one; hues take the short way round. */
    blended(wanted, voxel) {
      const old = this.before?.colours[voxel];
      if (!old) return wanted;
      const turn = ((wanted[2] - old[2] + 540) % 360) - 180;
      const part = this.progress;
      return [old[0] + (wanted[0] - old[0]) * part, old[1] + (wanted[1] - old[1]) * part, old[2] + turn * part];
    }

    /** A label along the lowest visible outer edge of each axis. */
    paintLabels(lengths, project) {
      const { context, cube, canvas } = this;
      const away = project.away;
      context.font = `600 13px ${getComputedStyle(canvas).fontFamily}`;
      context.textBaseline = "middle";
      const centre = project(...lengths.map((length) => length / 2));
      for (let axis = 0; axis < 3; axis += 1) {
        const label = this.labels[axis];
        if (!label || cube.counts[axis] === 0) continue;
        const [u, v] = [0, 1, 2].filter((other) => other !== axis);
        let best = null;
        for (const [a, b] of [[0, 0], [0, 1], [1, 0], [1, 1]]) {
          // An outline edge lies between a face that is seen and one that is not.
          const seenU = away[u] > 0 === (a === 0);
          const seenV = away[v] > 0 === (b === 0);
          if (seenU === seenV) continue;
          const point = [0, 0, 0];
          point[axis] = lengths[axis] / 2;
          point[u] = a * lengths[u];
          point[v] = b * lengths[v];
          const at = project(...point);
          const score = axis === 2 ? -at[0] : at[1];
          if (!best || score > best.score) best = { at, score };
        }
        if (!best) continue;
        const [x, y] = best.at;
        const [dx, dy] = [x - centre[0], y - centre[1]];
        const far = Math.hypot(dx, dy) || 1;
        context.textAlign = Math.abs(dx) < 12 ? "center" : dx > 0 ? "left" : "right";
        context.fillStyle = this.theme.text;
        const left = context.textAlign === "right" ? context.measureText(label).width + 4 : 4;
        context.fillText(label, Math.max(left, x + (dx / far) * 10), y + (dy / far) * 10 + (axis === 2 ? 0 : 6));
      }
    }

    /** The element under a point of the canvas, as places on the three sides. */
    at(x, y) {
      for (let i = this.polygons.length - 1; i >= 0; i -= 1) {
        if (contains(this.polygons[i][0], x, y)) return this.polygons[i][1];
      }
      return null;
    }

    listen() {
      const { canvas } = this;
      let held = null;
      const point = (event) => {
        const box = canvas.getBoundingClientRect();
        return [event.clientX - box.left, event.clientY - box.top];
      };
      canvas.addEventListener("pointerdown", (event) => {
        held = { x: event.clientX, y: event.clientY, far: 0 };
        canvas.setPointerCapture(event.pointerId);
      });
      canvas.addEventListener("pointermove", (event) => {
        if (!held) {
          if (event.pointerType === "mouse") this.on.hover(this.at(...point(event)));
          return;
        }
        const [dx, dy] = [event.clientX - held.x, event.clientY - held.y];
        held.far += Math.abs(dx) + Math.abs(dy);
        [held.x, held.y] = [event.clientX, event.clientY];
        if (held.far > 4) this.turn(-dx * 0.5, event.pointerType === "touch" ? 0 : dy * 0.5);
      });
      canvas.addEventListener("pointerup", (event) => {
        if (held && held.far <= 4) this.on.pick(this.at(...point(event)));
        held = null;
      });
      canvas.addEventListener("pointercancel", () => (held = null));
      canvas.addEventListener("pointerleave", () => this.on.hover(null));
      canvas.addEventListener("keydown", (event) => {
        const turns = { ArrowLeft: [8, 0], ArrowRight: [-8, 0], ArrowUp: [0, 8], ArrowDown: [0, -8] };
        if (event.ctrlKey || event.metaKey || event.altKey) return;
        if (event.key in turns) this.turn(...turns[event.key]);
        else if (event.key === "Home") this.home();
        else if (event.key === "+" || event.key === "=") this.on.pull(this.apart + 0.15);
        else if (event.key === "-") this.on.pull(this.apart - 0.15);
        else if (event.key === "Escape") this.on.pick(null);
        else return;
        event.preventDefault();
      });
    }
  };

  function readTheme(element) {
    const style = getComputedStyle(element);
    const value = (name) => style.getPropertyValue(name).trim();
    return {
      dark: value("--nkx-scheme") === "dark",
      text: value("--nkx-text"),
      edge: value("--nkx-edge"),
      faint: value("--nkx-faint"),
    };
  }

  const rgb = (parts, alpha) => `rgba(${parts.map((part) => Math.round(255 * part)).join(",")},${alpha})`;
  nk.css = (colour) => rgb(nk.fromOklch(...colour), 1);

  function contains(corners, x, y) {
    let inside = false;
    for (let i = 0, j = corners.length - 1; i < corners.length; j = i, i += 1) {
      const [xi, yi] = corners[i];
      const [xj, yj] = corners[j];
      if (yi > y !== yj > y && x < ((xj - xi) * (y - yi)) / (yj - yi) + xi) inside = !inside;
    }
    return inside;
  }
})((globalThis.normkitExplorer ??= {}));
