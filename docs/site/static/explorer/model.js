// From what the reader chose to what the page shows: shape, strides, cells, plan and formula. No document is needed.
(function (nk) {
  "use strict";

  const LARGEST = 16384;
  // No more places than these of each side of the cube are drawn, so that it turns without delay.
  const DRAWN = { samples: 8, channels: 16, positions: 16 };

  /** Which dimensions of a region are samples, channels and positions; a leading "..." is samples and positions. */
  function rolesOf(region) {
    const all = [...region.dims.keys()];
    const channels = all.filter((i) => nk.isFeature(region.dims[i]));
    const others = all.filter((i) => !channels.includes(i));
    const samples = channels.includes(0) ? [] : others.slice(0, 1);
    const rest = others.slice(samples.length);
    const leading = samples.length > 0 && region.dims[samples[0]][0].name === nk.ELLIPSIS;
    return { samples, channels, positions: rest, leading };
  }

  /** As many sizes as there are dimensions: the last ones are multiplied, or ones of 2 are put first. */
  function fitted(sizes, wanted) {
    if (wanted === 0) return [];
    const out = sizes.slice(0, wanted);
    if (sizes.length > wanted) out[wanted - 1] = nk.product(sizes.slice(wanted - 1));
    while (out.length < wanted) out.unshift(2);
    return out;
  }

  /** The shape of the tensor, and for each of its dimensions the side of the cube that it belongs to. */
  function shapeOf(region, state) {
    const roles = rolesOf(region);
    const ellipsis = region.dims.findIndex((dim) => dim[0].name === nk.ELLIPSIS);
    const named = roles.positions.filter((i) => i !== ellipsis).length;
    const free = roles.positions.includes(ellipsis) || (roles.leading && ellipsis >= 0);
    const channels = fitted(state.channels, roles.channels.length);
    const positions = free && state.positions.length >= named ? [...state.positions] : fitted(state.positions, named);
    const several = positions.length - named;
    const shape = [];
    const sides = [];
    const add = (side, sizes) => sizes.forEach((size) => (shape.push(size), sides.push(side)));
    region.dims.forEach((dim, i) => {
      if (roles.channels.includes(i)) add("channels", channels.splice(0, 1));
      else if (roles.samples.includes(i)) {
        add("samples", [state.batch]);
        if (roles.leading) add("positions", positions.splice(0, several));
      } else if (i === ellipsis) add("positions", positions.splice(0, several));
      else add("positions", positions.splice(0, 1));
    });
    return { shape, sides };
  }

  /** The strides of a dense tensor; with "channels_last", channels are innermost in memory. */
  function stridesOf(shape, sides, layout) {
    let order = [...shape.keys()];
    if (layout === "channels_last") {
      const innermost = (i) => sides[i] === "channels";
      order = [...order.filter((i) => !innermost(i)), ...order.filter(innermost)];
    }
    const strides = Array(shape.length);
    let inside = 1;
    for (const dim of order.reverse()) {
      strides[dim] = inside;
      inside *= shape[dim];
    }
    return strides;
  }

  /** The names of the levels for readers: what "..." holds is called by its usual letters. */
  function namesOf(levels, sides) {
    const used = new Set(levels.map((level) => level.name));
    const unnamed = levels.filter((level) => level.name === nk.ELLIPSIS);
    const inside = unnamed.filter((level) => sides[level.dim] === "positions");
    const usual = [[], ["l"], ["h", "w"], ["d", "h", "w"]][inside.length] ?? inside.map((_, i) => `i${i + 1}`);
    return levels.map((level) => {
      if (level.name !== nk.ELLIPSIS) return level.name;
      let name = sides[level.dim] === "samples" ? "b" : usual[inside.indexOf(level)];
      while (used.has(name)) name += "'";
      used.add(name);
      return name;
    });
  }

  /** How many places of each level are drawn. */
  function drawnSizes(sizes, limit) {
    let most = limit;
    const drawn = () => sizes.map((size) => Math.min(size, most));
    while (nk.product(drawn()) > limit && most > 2) most -= 1;
    return drawn();
  }

  /** One side of the cube: its levels, the drawn places, and for each place the indices of its levels. */
  function sideOf(name, levels, sides) {
    const own = [...levels.keys()].filter((i) => sides[levels[i].dim] === name);
    const sizes = own.map((i) => levels[i].size);
    const drawn = drawnSizes(sizes, DRAWN[name]);
    const places = [];
    for (let place = 0; place < nk.product(drawn); place += 1) {
      const index = Array(own.length);
      let rest = place;
      for (let k = own.length - 1; k >= 0; k -= 1) {
        index[k] = rest % drawn[k];
        rest = Math.floor(rest / drawn[k]);
      }
      places.push(index);
    }
    return { name, own, size: nk.product(sizes), places, whole: nk.product(drawn) === nk.product(sizes) };
  }

  /** The number of the cell that holds an element: its kept indices, read as one number. */
  function cellOf(levels, index) {
    let cell = 0;
    levels.forEach((level, i) => {
      if (!level.reduced) cell = cell * level.size + index[i];
    });
    return cell;
  }

  /** The index of an element in every level, from its places on the three sides. */
  function indexOf(found, places) {
    const index = Array(found.levels.length).fill(0);
    ["samples", "channels", "positions"].forEach((name, i) => {
      const side = found.sides[name];
      side.own.forEach((level, k) => (index[level] = side.places[places[i]][k]));
    });
    return index;
  }

  /** Where an element lies in memory, and the index of its weight as the plan says it. */
  function offsetOf(found, index) {
    let offset = 0;
    found.levels.forEach((level, i) => {
      const inside = found.levels.filter((other, j) => j > i && other.dim === level.dim).map((other) => other.size);
      offset += index[i] * found.strides[level.dim] * nk.product(inside);
    });
    return offset;
  }

  /** What one element of memory is: its index in every level. */
  function elementAt(found, offset) {
    const index = Array(found.levels.length).fill(0);
    let rest = offset;
    for (const i of [...found.order].reverse()) {
      index[i] = rest % found.levels[i].size;
      rest = Math.floor(rest / found.levels[i].size);
    }
    return index;
  }

  function describe(state) {
    const asked = nk.parse(state.pattern);
    const groups = asked.axes.find((axis) => axis.name === "g");
    const takesGroups = groups !== undefined && groups.size === null;
    const region = takesGroups ? asked.bind({ g: state.groups }) : asked;
    const { shape, sides } = shapeOf(region, state);
    if (!Number.isSafeInteger(nk.product(shape))) {
      throw new nk.NormkitError("ArgumentError", `shape ${nk.tuple(shape)} is too large for this page`);
    }
    const levels = region.levels(shape);
    const strides = stridesOf(shape, sides, state.layout);
    const plan = nk.plan(region, shape, strides);
    const steps = levels.map((level, i) => {
      const inside = levels.filter((other, j) => j > i && other.dim === level.dim).map((other) => other.size);
      return strides[level.dim] * nk.product(inside);
    });
    const reduced = levels.filter((level) => level.reduced).map((level) => level.size);
    const kept = levels.filter((level) => !level.reduced).map((level) => level.size);
    const features = shape.filter((_, dim) => levels.some((level) => level.dim === dim && level.feature));
    return {
      asked,
      region,
      shape,
      strides,
      levels,
      plan,
      takesGroups,
      roles: rolesOf(region),
      // All levels in the order of memory, those of size 1 too.
      order: [...levels.keys()].sort((i, j) => steps[j] - steps[i]),
      names: namesOf(levels, sides),
      sides: {
        samples: sideOf("samples", levels, sides),
        channels: sideOf("channels", levels, sides),
        positions: sideOf("positions", levels, sides),
      },
      count: nk.product(reduced),
      cells: nk.product(kept),
      total: nk.product(shape),
      features,
      positions: shape.filter((_, dim) => sides[dim] === "positions"),
    };
  }

  /** Sizes as text: "3x3", "3 × 3", "3,3" or "3 3"; null if it is none, [] for nothing. */
  function readSizes(text, most = 4) {
    const words = text.split(/[\s,x×*·]+/iu).filter(Boolean);
    if (words.length > most || !words.every((word) => /^[1-9][0-9]{0,4}$/.test(word))) return null;
    const sizes = words.map(Number);
    return sizes.every((size) => size <= LARGEST) ? sizes : null;
  }

  /** The state as the part of an address after "#", and back. What cannot be read keeps its value. */
  function toHash(state) {
    const words = { p: state.pattern, m: state.method, b: state.batch, c: state.channels.join("x") };
    Object.assign(words, { x: state.positions.join("x"), g: state.groups, layout: state.layout });
    const parts = Object.entries(words).filter(([key]) => !(key === "m" && !state.method));
    return `#${parts.map(([key, value]) => `${key}=${encodeURIComponent(value).replaceAll("%20", "+")}`).join("&")}`;
  }

  function readHash(hash) {
    const words = new Map();
    for (const part of hash.replace(/^#/, "").split("&")) {
      const [key, ...rest] = part.split("=");
      const value = rest.join("=").replaceAll("+", " ");
      try {
        words.set(key, decodeURIComponent(value));
      } catch {
        words.set(key, value); // written by hand, with a lone "%"
      }
    }
    return words;
  }

  /** The method of a pattern: the one named, if it has that region, else the first of the catalog that has it. */
  function methodOf(pattern, named = "") {
    let text = pattern;
    try {
      text = nk.parse(pattern).text;
    } catch (error) {
      if (!(error instanceof nk.NormkitError)) throw error;
    }
    const same = nk.catalog.methods.filter((method) => method.patterns.includes(text));
    return (same.find((method) => method.name === named) ?? same[0])?.name ?? "";
  }

  function fromHash(hash, state) {
    const words = readHash(hash);
    if (!words.has("p") && !words.has("m")) return null;
    const out = { ...state };
    const method = nk.catalog.methods.find((each) => each.name === words.get("m"));
    out.pattern = words.get("p") ?? method?.patterns[0] ?? "";
    // A method without a region has no pattern, and no pattern names it.
    out.method = method && !method.patterns.length && !out.pattern ? method.name : methodOf(out.pattern, method?.name);
    const one = (key, name) => {
      const sizes = readSizes(words.get(key) ?? "", 1);
      if (sizes?.length) out[name] = sizes[0];
    };
    one("b", "batch");
    one("g", "groups");
    const channels = readSizes(words.get("c") ?? "", 3);
    if (channels?.length) out.channels = channels;
    const positions = words.has("x") ? readSizes(words.get("x")) : null;
    if (positions) out.positions = positions;
    out.layout = words.get("layout") === "channels_last" ? "channels_last" : "contiguous";
    return out;
  }

  /** The statistics of a cell: each with its symbol, the names of all, kept and reduced axes, and what is summed. */
  function statistics(found, method) {
    const all = found.names;
    const kept = all.filter((_, i) => !found.levels[i].reduced);
    const reduced = all.filter((_, i) => found.levels[i].reduced);
    const line = (symbol, of, root = false) => ({ symbol, of, root, all, kept, reduced, count: found.count });
    const formula = method?.formula ?? "";
    if (formula.includes("||x||")) return [line("‖x‖", "square", true)];
    if (formula.includes("mean(x²)")) return [line("mean(x²)", "square")];
    // Its region is that of a covariance matrix.
    if (formula.includes("whitening")) return [];
    const name = formula.includes("batch_var") && found.levels[0].reduced ? "batch_var" : "var";
    return [line("mean", "value"), line(name, "deviation")];
  }

  /** The formula: the method's own, or that of standardization. */
  function formulaOf(found, method) {
    if (method) return method.formula;
    return `y = (x - mean) / sqrt(var + eps)${found.region.hasFeatures ? " * weight + bias" : ""}`;
  }

  Object.assign(nk, { LARGEST, cellOf, describe, elementAt, formulaOf, fromHash, indexOf, offsetOf, readSizes });
  Object.assign(nk, { methodOf, rolesOf, statistics, toHash });
})((globalThis.normkitExplorer ??= {}));
