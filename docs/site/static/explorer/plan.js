// From a region and a tensor's memory to the four-level view that kernels work on: the rules of src/normkit/plan.py.
// tests/site/test_explorer_rules.py compares both.
(function (nk) {
  "use strict";

  const SHORT_ROW = 64;
  const SHORTEST_ROW = 8;
  const WIDEST_CELL = 512;

  const PREPARE = {
    AS_IS: "the tensor as it is",
    STRIDED: "the tensor as it is, its rows apart",
    DENSE: "a dense copy first: the tensor has gaps or overlaps in memory",
    REGROUP: "a copy with kept before reduced axes first: the region needs more than four levels",
  };

  const product = (numbers) => numbers.reduce((a, b) => a * b, 1);
  const sizesOf = (levels, order) => order.map((i) => levels[i].size);

  /**
   * Plan one call.
   * @param region a Region of pattern.js
   * @param shape, strides of the tensor, in elements; no dimension may be empty
   * @param varying whether weights vary over each dimension; null for the features of the region
   */
  function plan(region, shape, strides, varying = null, slabsInRegions = true) {
    const levels = region.levels(shape, varying);
    const steps = levelStrides(levels, strides);
    const order = [...levels.keys()].filter((i) => levels[i].size > 1).sort((i, j) => steps[j] - steps[i]);
    const finished = (prepare) => {
      const made = finish(levels, order, prepare);
      return made === null || slabsInRegions || !(made.slabs > 1 && made.view[0] === 1) ? made : null;
    };
    if (isDense(order, levels, steps)) {
      return finished(PREPARE.AS_IS) ?? regrouped(levels, order, PREPARE.REGROUP);
    }
    const rows = stridedRows(order, levels, steps);
    const strided = rows === null ? null : finish(levels, order, PREPARE.STRIDED);
    if (strided !== null && !strided.columns && strided.view[1] === 1 && strided.view[2] === 1) {
      return { ...strided, rows };
    }
    return finished(PREPARE.DENSE) ?? regrouped(levels, order, PREPARE.DENSE);
  }

  /** The stride of each level. A dimension that is split in several has its last part innermost. */
  function levelStrides(levels, strides) {
    return levels.map((level, i) => {
      const later = levels.slice(i + 1).filter((other) => other.dim === level.dim);
      return strides[level.dim] * product(later.map((other) => other.size));
    });
  }

  function isDense(order, levels, steps) {
    let expected = 1;
    for (const i of [...order].reverse()) {
      if (steps[i] !== expected) return false;
      expected *= levels[i].size;
    }
    return true;
  }

  /** Where rows begin, if each is dense and they are one or two evenly spaced sequences without overlap. */
  function stridedRows(order, levels, steps) {
    let expected = 1;
    const head = [...order];
    while (head.length && levels[head.at(-1)].reduced) {
      if (steps[head.at(-1)] !== expected) return null;
      expected *= levels[head.pop()].size;
    }
    const runs = []; // number and distance, innermost first
    for (const i of head.reverse()) {
      const [number, step] = runs.at(-1) ?? [1, expected];
      if (steps[i] < number * step) return null;
      if (runs.length && steps[i] === number * step) runs[runs.length - 1] = [number * levels[i].size, step];
      else runs.push([levels[i].size, steps[i]]);
    }
    if (!runs.length || runs.length > 2 || expected === 1) return null;
    const [group, pitch] = runs[0];
    const outer = runs.length === 2 ? runs[1][1] : 0;
    return [group, pitch, outer];
  }

  /** A plan that always exists: kept before reduced axes, features side by side where the two meet. */
  function regrouped(levels, order, prepare) {
    const rank = (i) => 2 * levels[i].reduced + (levels[i].feature !== levels[i].reduced);
    return finish(levels, [...order].sort((i, j) => rank(i) - rank(j)), prepare);
  }

  /** The plan for axes in this order of memory, or null where four levels or one period do not describe it. */
  function finish(levels, order, prepare) {
    const found = viewOf(levels, order);
    const weights = weightsOf(levels, order);
    if (found === null || weights === null) return null;
    const [slabs, period, inner] = weights;
    let [view, columns] = walkOf(found, period, inner);
    const width = view[2] * view[3];
    const fits = columns && view[1] % slabs === 0 && width % (period * inner) === 0;
    if (slabs > 1 && view[0] === 1 && !fits) return null;
    if (columns && width % (period * inner) && inner % width) {
      if (view[3] <= SHORTEST_ROW) return null;
      columns = false;
    }
    return {
      view,
      period,
      inner,
      slabs,
      columns,
      prepare,
      sizes: levels.map((level) => level.size),
      memory: [...order],
      kept: order.filter((i) => !levels[i].reduced),
      features: order.filter((i) => levels[i].feature),
      rows: null,
    };
  }

  /** Neighbours in memory of the same role, outermost first: [reduced, size, axes]. */
  function runsOf(levels, order) {
    const runs = [];
    for (const i of order) {
      const last = runs.at(-1);
      if (last && last[0] === levels[i].reduced) {
        last[1] *= levels[i].size;
        last[2].push(i);
      } else {
        runs.push([levels[i].reduced, levels[i].size, [i]]);
      }
    }
    return runs;
  }

  /** The places of runs in K R K R. Roles alternate, so the innermost run decides: R1 if it is reduced, else K1. */
  function placesOf(runs) {
    const places = !runs.length || runs.at(-1)[0] ? [0, 1, 2, 3] : [0, 1, 2];
    return runs.length > places.length ? null : places.slice(places.length - runs.length);
  }

  function viewOf(levels, order) {
    const runs = runsOf(levels, order);
    const places = placesOf(runs);
    if (places === null) return null;
    const view = [1, 1, 1, 1];
    places.forEach((place, i) => (view[place] = runs[i][1]));
    return view[1] === 1 ? [view[0] * view[2], 1, 1, view[3]] : view;
  }

  /** Slabs, period and inner of the weights; null where other axes lie between those that they vary over. */
  function weightsOf(levels, order) {
    let places = [...order.keys()].filter((place) => levels[order[place]].feature);
    const apart = () => places.at(-1) - places[0] !== places.length - 1;
    let first = 0;
    if (places.length && apart()) {
      const outer = levels[order[0]].reduced;
      while (first < order.length && levels[order[first]].feature && levels[order[first]].reduced === outer) first += 1;
      places = places.slice(first);
      if (apart()) return null;
    }
    const slabs = product(sizesOf(levels, order.slice(0, first)));
    const period = product(places.map((place) => levels[order[place]].size));
    const inside = places.length ? order.slice(places.at(-1) + 1) : order;
    return [slabs, period, product(sizesOf(levels, inside))];
  }

  /** Whether a kernel walks down columns. It does for short rows, and where weights repeat within one long row. */
  function walkOf(view, period, inner) {
    const [k0, r0, k1, r1] = view;
    const width = period * inner;
    if (r0 === 1 && k1 === 1 && width < r1 && width <= WIDEST_CELL) return [[k0, Math.floor(r1 / width), 1, width], true];
    return [view, r0 > 1 && r1 < SHORT_ROW];
  }

  /** The plan as Python prints it. */
  function planText(made) {
    const walk = made.columns ? "walked down columns" : "walked along rows";
    const slabs = made.slabs === 1 ? "" : ` in each of ${made.slabs} slabs`;
    return `K R K R = ${made.view.join(" x ")}, ${walk}, weight index = ${weightIndex(made)}${slabs}; ${made.prepare}`;
  }

  function weightIndex(made) {
    return `${made.inner === 1 ? "offset" : `offset // ${made.inner}`} % ${made.period}`;
  }

  nk.PREPARE = PREPARE;
  nk.plan = plan;
  nk.planText = planText;
  nk.weightIndex = weightIndex;
  nk.runsOf = runsOf;
  nk.placesOf = placesOf;
})((globalThis.normkitExplorer ??= {}));
