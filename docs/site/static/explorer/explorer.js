// The page: controls, and everything that is shown for what was chosen. The state is in the address after "#".
// Over 400 lines, because one class builds and updates all parts of the page, which share its state.
(function (nk) {
  "use strict";

  const QUICK = ["batch_norm", "layer_norm", "instance_norm", "group_norm", "rms_norm", "layer_norm2d"];
  const START = {
    method: "group_norm",
    pattern: "b (g [c]) [...]",
    batch: 3,
    channels: [6],
    positions: [2, 3],
    groups: 2,
    layout: "contiguous",
  };
  const SIZES = {
    small: { batch: 3, channels: [6], positions: [2, 3], groups: 2 },
    resnet: { batch: 32, channels: [256], positions: [14, 14], groups: 32 },
  };
  const SIDES = ["samples", "channels", "positions"];

  /** An element: tag, attributes ("on..." are listeners), children. */
  function h(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) {
      if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
      else if (value === true) element.setAttribute(key, "");
      else if (value !== false && value !== null) element.setAttribute(key, value);
    }
    element.append(...children.filter((child) => child !== null));
    return element;
  }

  class Explorer {
    constructor(root) {
      this.root = root;
      this.lang = languageOf(root);
      root.lang = this.lang === "zh" ? "zh-CN" : "en";
      this.t = (name, values) => nk.text(this.lang, name, values);
      this.state = nk.fromHash(location.hash, START) ?? { ...START };
      this.element = null; // chosen places on the three sides; null for none
      this.build();
      this.update();
      // The address changes when the reader changes something: it may name a heading of this page.
      this.changed = true;
      addEventListener("hashchange", () => {
        const state = nk.fromHash(location.hash, this.state);
        if (state && nk.toHash(state) !== nk.toHash(this.state)) this.set(state);
      });
      // The theme of the site may be switched while the page is shown.
      const dark = matchMedia("(prefers-color-scheme: dark)");
      const watch = new MutationObserver(() => this.follow(dark));
      for (const each of [document.documentElement, document.body]) watch.observe(each, { attributeFilter: ["data-theme"] });
      dark.addEventListener("change", () => this.follow(dark));
      this.follow(dark);
      new ResizeObserver(() => {
        if (this.found?.coloured && nk.columnsIn(this.root.clientWidth - 34) !== this.columns) this.showPlan(false);
      }).observe(this.root);
    }

    /** Light or dark as the site is: its themes set data-theme on html or body; "auto" leaves it to the reader. */
    follow(dark) {
      const asked = [document.body, document.documentElement].map((each) => each.dataset.theme);
      const found = asked.find((theme) => theme === "light" || theme === "dark");
      this.root.dataset.scheme = found ?? (dark.matches ? "dark" : "light");
      this.cube.draw();
    }

    get method() {
      return nk.catalog.methods.find((method) => method.name === this.state.method) ?? null;
    }

    title(method) {
      return method.title[this.lang];
    }

    // Building the page, once.

    build() {
      const { t } = this;
      this.root.replaceChildren(
        h("form", { class: "nkx-controls", onsubmit: (event) => event.preventDefault() }, ...this.buildControls()),
        h("div", { class: "nkx-main" }, this.buildStage(), this.buildCell()),
        (this.planBox = h("section", { class: "nkx-card", "aria-label": t("planHeading") })),
        (this.formulaBox = h("section", { class: "nkx-card", "aria-label": t("formulaHeading") })),
        (this.codeBox = h("section", { class: "nkx-card", "aria-label": t("codeHeading") })),
      );
      this.cube = new nk.Cube(this.canvas, {
        hover: (places) => this.show(places ?? this.element),
        pick: (places) => this.choose(places),
        pull: (apart) => this.pull(apart),
      });
    }

    buildControls() {
      const { t } = this;
      this.quick = QUICK.map((name) => {
        const method = nk.catalog.methods.find((each) => each.name === name);
        const attributes = { type: "button", class: "nkx-chip", title: method.aliases[0], onclick: () => this.pickMethod(name) };
        return [name, h("button", attributes, nk.icon(method.patterns[0]), this.title(method))];
      });
      const options = (wanted) =>
        nk.catalog.methods
          .filter((method) => method.patterns.length > 0 === wanted)
          .map((method) => h("option", { value: method.name }, this.title(method)));
      this.select = h(
        "select",
        { id: "nkx-method", onchange: () => this.pickMethod(this.select.value) },
        (this.ownOption = h("option", { value: "" }, `(${t("own")})`)),
        h("optgroup", { label: t("withRegion") }, ...options(true)),
        h("optgroup", { label: t("withoutRegion") }, ...options(false)),
      );
      this.input = h("input", {
        id: "nkx-pattern",
        type: "text",
        spellcheck: "false",
        autocomplete: "off",
        autocapitalize: "none",
        "aria-describedby": "nkx-help nkx-error",
        oninput: () => this.typePattern(this.input.value),
      });
      return [
        (this.chips = h("div", { class: "nkx-chips" }, ...this.quick.map(([, button]) => button))),
        h(
          "div",
          { class: "nkx-fields" },
          h("label", { class: "nkx-field", for: "nkx-method" }, h("span", {}, t("method")), this.select),
          h("label", { class: "nkx-field nkx-grow", for: "nkx-pattern" }, h("span", {}, t("pattern")), this.input),
        ),
        (this.error = h("pre", { id: "nkx-error", class: "nkx-error", role: "alert", hidden: true })),
        h("p", { id: "nkx-help", class: "nkx-help" }, t("patternHelp")),
        (this.related = h("div", { class: "nkx-related" })),
        this.buildSizes(),
      ];
    }

    buildSizes() {
      const { t } = this;
      const field = (name, example, most) => {
        const input = h("input", { type: "text", inputmode: "numeric", size: "5", autocomplete: "off", id: `nkx-${name}` });
        const box = h("label", { class: "nkx-field nkx-small", for: `nkx-${name}` }, h("span", {}, t(name)), input);
        input.addEventListener("input", () => this.typeSize(name, input, example, most));
        input.addEventListener("blur", () => this.fillSizes());
        return { box, input };
      };
      this.sizes = {
        batch: field("batch", "4", 1),
        channels: field("channels", "6", 3),
        positions: field("positions", "2×3", 4),
        groups: field("groups", "2", 1),
      };
      const layout = (name) => {
        const radio = h("input", { type: "radio", name: "nkx-layout", value: name, onchange: () => this.set({ layout: name }) });
        return [radio, h("label", {}, radio, h("span", {}, t(name)))];
      };
      this.layouts = ["contiguous", "channels_last"].map((name) => layout(name));
      const preset = (name) =>
        h("button", { type: "button", class: "nkx-link", onclick: () => this.set({ ...SIZES[name] }) }, t(name));
      return h(
        "div",
        { class: "nkx-fields" },
        ...Object.values(this.sizes).map((each) => each.box),
        h(
          "fieldset",
          { class: "nkx-field nkx-layout" },
          h("legend", {}, t("layout")),
          h("div", { class: "nkx-segments" }, ...this.layouts.map(([, label]) => label)),
        ),
        h("div", { class: "nkx-presets" }, h("span", {}, t("sizes")), preset("small"), preset("resnet")),
      );
    }

    buildStage() {
      const { t } = this;
      this.canvas = h("canvas", { class: "nkx-cube", tabindex: "0", role: "application" });
      this.apart = h("input", {
        type: "range",
        min: "0",
        max: "1.5",
        step: "0.05",
        value: "0.6",
        oninput: () => this.pull(Number(this.apart.value)),
      });
      const turn = (sign, name, mark) => {
        const attributes = { type: "button", class: "nkx-round", "aria-label": t(name), title: t(name), onclick: () => this.cube.turn(sign * 22.5, 0) };
        return h("button", attributes, mark);
      };
      const reset = { type: "button", class: "nkx-round", "aria-label": t("reset"), title: t("reset"), onclick: () => this.cube.home() };
      return h(
        "div",
        { class: "nkx-stage nkx-card" },
        this.canvas,
        h(
          "div",
          { class: "nkx-turns" },
          turn(1, "turnLeft", "↺"),
          h("button", reset, "⌂"),
          turn(-1, "turnRight", "↻"),
          h("label", { class: "nkx-apart" }, h("span", {}, t("apart")), this.apart),
        ),
        (this.note = h("p", { class: "nkx-note" }, t("hint"))),
      );
    }

    buildCell() {
      const { t } = this;
      const slider = (name, i) => {
        const input = h("input", { type: "range", min: "0", step: "1", value: "0", "aria-label": t(name) });
        const show = () => this.choose(this.sliders.map((each) => Number(each.input.value)));
        input.addEventListener("input", show);
        input.addEventListener("focus", show);
        const value = h("b", {});
        const box = h("label", { class: `nkx-slider nkx-side-${i}` }, h("span", {}, t(name)), input, value);
        return { box, input, value };
      };
      this.sliders = ["sample", "channel", "position"].map(slider);
      return h(
        "div",
        { class: "nkx-cell nkx-card" },
        h("p", { class: "nkx-count" }, (this.count = h("strong", {})), (this.countText = h("span", {}))),
        (this.without = h("p", {})),
        (this.product = h("p", { class: "nkx-product" })),
        (this.facts = h("dl", { class: "nkx-facts" })),
        h("h3", {}, t("element")),
        ...this.sliders.map((each) => each.box),
        (this.status = h("p", { class: "nkx-status", role: "status" })),
        (this.clear = h("button", { type: "button", class: "nkx-link", onclick: () => this.choose(null) }, t("clear"))),
      );
    }

    // What the reader does.

    set(change) {
      this.state = { ...this.state, ...change };
      this.element = null;
      this.update();
    }

    pickMethod(name) {
      const method = nk.catalog.methods.find((each) => each.name === name);
      if (!method) return;
      this.set({ method: name, pattern: method.patterns[0] ?? "" });
    }

    typePattern(pattern) {
      this.set({ pattern, method: nk.methodOf(pattern, this.state.method) });
    }

    typeSize(name, input, example, most) {
      const sizes = nk.readSizes(input.value, most);
      const wrong = sizes === null || (!sizes.length && name !== "positions");
      input.setAttribute("aria-invalid", wrong);
      input.setCustomValidity(wrong ? this.t("badSize", { most: nk.LARGEST, example }) : "");
      if (wrong) input.reportValidity();
      else this.set({ [name]: most === 1 ? sizes[0] : sizes });
    }

    choose(places) {
      this.element = places;
      this.show(places);
    }

    pull(apart) {
      this.cube.pull(apart);
      this.apart.value = this.cube.apart;
    }

    // Showing the state.

    update() {
      const { state, method } = this;
      if (this.changed) history.replaceState(null, "", nk.toHash(state));
      for (const [name, button] of this.quick) {
        button.setAttribute("aria-pressed", String(name === state.method));
        // On a phone the row of buttons is wider than the screen.
        if (name === state.method) this.chips.scrollLeft = button.offsetLeft - this.chips.clientWidth / 2 + button.offsetWidth / 2;
      }
      this.select.value = state.method;
      this.ownOption.hidden = state.method !== "";
      if (this.input.value !== state.pattern) this.input.value = state.pattern;
      for (const [radio] of this.layouts) radio.checked = radio.value === state.layout;
      this.fillSizes();
      const none = method !== null && !method.patterns.length && !state.pattern;
      let error = null;
      try {
        this.found = { ...nk.describe(none ? { ...state, pattern: "b c [...]" } : state), coloured: !none };
      } catch (caught) {
        if (!(caught instanceof nk.NormkitError)) throw caught;
        error = caught.message;
      }
      this.error.hidden = error === null;
      this.error.textContent = error ?? "";
      this.input.setAttribute("aria-invalid", String(error !== null));
      this.root.classList.toggle("nkx-wrong", error !== null);
      this.root.classList.toggle("nkx-empty", !this.found);
      if (error === null) this.showAll(none);
    }

    /** The fields for sizes, except the one in which the reader types. */
    fillSizes() {
      const { state } = this;
      const values = {
        batch: state.batch,
        channels: state.channels.join("×"),
        positions: state.positions.join("×"),
        groups: state.groups,
      };
      for (const [name, { input }] of Object.entries(this.sizes)) {
        if (document.activeElement === input) continue;
        input.value = values[name];
        input.removeAttribute("aria-invalid");
      }
    }

    showAll(none) {
      const { found, t } = this;
      this.root.classList.toggle("nkx-none", none);
      this.sizes.groups.box.hidden = none || !found.takesGroups;
      this.cube.labels = SIDES.map((side, i) => {
        const { size, own } = found.sides[side];
        const named = own.map((level) => found.names[level].toUpperCase()).join("·");
        return own.length ? `${["N", "C", named][i]} = ${size}` : "";
      });
      this.cube.show(found);
      const sizes = { n: found.sides.samples.size, c: found.sides.channels.size, p: found.sides.positions.size };
      const values = { ...sizes, cells: found.cells, count: found.count };
      this.canvas.setAttribute("aria-label", t(none ? "cubeNone" : "cube", values));
      this.showRelated(none);
      this.showFacts(none);
      this.showPlan(none);
      this.showFormula(none);
      this.showCode(none);
      this.sliders.forEach(({ input }, i) => {
        input.max = found.sides[SIDES[i]].places.length - 1;
        input.disabled = none || input.max === "0";
      });
      this.show(null);
    }

    showRelated(none) {
      const { t, method, found } = this;
      const parts = [];
      if (method && method.patterns.length > 1) {
        const button = (pattern) => {
          const pressed = String(pattern === this.state.pattern);
          const attributes = { type: "button", class: "nkx-chip nkx-mono", "aria-pressed": pressed, onclick: () => this.set({ pattern }) };
          return h("button", attributes, pattern);
        };
        parts.push(h("span", {}, t("regionsOf")), ...method.patterns.map(button));
      }
      const same = none ? [] : nk.catalog.methods.filter((each) => each !== method && each.patterns.includes(found.asked.text));
      if (same.length) {
        const button = (each) => {
          const change = { method: each.name, pattern: found.asked.text };
          return h("button", { type: "button", class: "nkx-link", onclick: () => this.set(change) }, this.title(each));
        };
        parts.push(h("span", {}, t("sameRegion")), ...same.map(button));
      }
      this.related.replaceChildren(...parts);
    }

    showFacts(none) {
      const { found, t, method } = this;
      const formula = method?.formula ?? "";
      const square = formula.includes("mean(x²)");
      const words = square ? "shareSquare" : /\|\|x\|\||whitening/.test(formula) ? "shareStatistics" : "shareOne";
      this.count.textContent = none ? "" : found.count.toLocaleString("en");
      this.countText.textContent = none ? "" : t(words);
      const reduced = found.levels.map((level, i) => [level, found.names[i]]).filter(([level]) => level.reduced);
      this.product.textContent = none ? "" : `N = ${reduced.map(([level, name]) => `${level.size} ${name}`).join(" × ")}`;
      this.without.textContent = none ? t("noRegion", { method: this.title(method) }) : "";
      this.without.hidden = !none;
      const facts = [[t("shape"), h("code", {}, nk.tuple(found.shape))]];
      if (!none) {
        facts.push([t("cells"), found.cells.toLocaleString("en")]);
        const weights = found.region.hasFeatures ? found.features.join(" × ") : t("noWeights");
        facts.push([t("weights"), weights]);
      }
      if (method) facts.push([t("statisticsPer"), method.statistics[this.lang]]);
      this.facts.replaceChildren(...facts.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
      const cut = SIDES.filter((side) => !found.sides[side].whole).map((side) =>
        t(`drawn${side[0].toUpperCase()}${side.slice(1)}`, { drawn: found.sides[side].places.length, size: found.sides[side].size }),
      );
      const drawn = cut.length ? [t("drawn", { parts: cut.join(t("comma")) })] : [];
      this.note.textContent = [...drawn, ...(none ? [] : [t("hint")])].join(this.lang === "zh" ? "" : " ");
    }

    showPlan(none) {
      const { found, t } = this;
      const heading = h("h3", {}, t("planHeading"));
      if (none) {
        this.planBox.replaceChildren(heading, h("p", {}, t("noPlan")));
        return;
      }
      const { plan } = found;
      const [k0, r0, k1, r1] = plan.view;
      const sentences = [];
      if (plan.prepare === nk.PREPARE.REGROUP) sentences.push(t("copies"));
      const columns = k0 > 1 ? "columnsInBlocks" : "columns";
      sentences.push(plan.columns ? t(columns, { k0, width: k1 * r1, r0 }) : t("rows", { r1 }));
      if (found.region.hasFeatures) {
        sentences.push(t("weightIndex", { index: nk.weightIndex(plan) }));
        if (plan.slabs > 1) sentences.push(t("slabs", { slabs: plan.slabs }));
      }
      this.columns = nk.columnsIn(this.root.clientWidth - 34);
      const grid = nk.memoryGrid(found, { name: t(found.region.hasFeatures ? "memory" : "memoryNoWeights") }, this.columns);
      const part = grid.rows < grid.allRows || grid.columns < grid.allColumns ? ` ${t("memoryPart", grid)}` : "";
      grid.svg.addEventListener("pointermove", (event) => {
        const square = event.target.closest("[data-cell]");
        this.light(square ? Number(square.dataset.cell) : null);
      });
      grid.svg.addEventListener("pointerleave", () => this.show(this.element));
      this.planBox.replaceChildren(
        heading,
        this.viewOf(found),
        h("p", {}, sentences.join(this.lang === "zh" ? "" : " ")),
        grid.svg,
        h("p", { class: "nkx-note" }, t(found.region.hasFeatures ? "memory" : "memoryNoWeights") + part),
        h("pre", { class: "nkx-code nkx-plan-text", tabindex: "0" }, nk.planText(plan)),
      );
    }

    /** The four levels, with the axes that each holds. */
    viewOf(found) {
      const { t } = this;
      const { plan, levels, names } = found;
      const runs = nk.runsOf(levels, plan.memory);
      const places = nk.placesOf(runs);
      const axes = ["", "", "", ""];
      runs.forEach(([, size, own], i) => {
        // Without a level R0, what is kept is K0. A row that was cut into repetitions of its weights has no name.
        const place = places[i] === 2 && plan.view[1] === 1 ? 0 : places[i];
        if (plan.view[place] === size) axes[place] = own.map((axis) => names[axis]).join(" ");
      });
      const box = (size, i) => {
        const reduced = i % 2 === 1;
        const name = `${reduced ? "R" : "K"}${i < 2 ? 0 : 1}`;
        const role = size === 1 && !axes[i] ? t("unused") : t(reduced ? "reduced" : "kept");
        const style = `${reduced ? "nkx-reduced" : "nkx-kept"}${size === 1 ? " nkx-unused" : ""}`;
        return h("li", { class: style }, h("b", {}, name), h("strong", {}, String(size)), h("span", {}, axes[i] || "·"), h("small", {}, role));
      };
      return h(
        "div",
        { class: "nkx-view" },
        h("ol", {}, ...plan.view.map(box)),
        h("div", { class: "nkx-ends", "aria-hidden": "true" }, h("span", {}, `← ${t("outer")}`), h("span", {}, `${t("inner")} →`)),
      );
    }

    showFormula(none) {
      const { found, t, method } = this;
      const lines = none ? [] : nk.statistics(found, method);
      this.formulaBox.replaceChildren(
        h("h3", {}, t("formulaHeading")),
        h("p", { class: "nkx-mono nkx-formula" }, nk.formulaOf(found, method)),
        ...(lines.length ? [h("div", { class: "nkx-math", tabindex: "0" }, ...lines.map((line) => nk.mathOf(line)))] : []),
        ...(method ? [h("p", {}, method.principle[this.lang])] : []),
      );
    }

    showCode(none) {
      const { found, t, method } = this;
      const made = nk.code(none ? null : found, method);
      const block = (name, text) => {
        if (text === null) return null;
        const head = h("div", { class: "nkx-code-head" }, h("h4", {}, t(name)), this.copyButton(t("copy"), () => text));
        return h("div", { class: "nkx-block" }, head, h("pre", { class: "nkx-code", tabindex: "0" }, text));
      };
      this.codeBox.replaceChildren(
        h("h3", {}, t("codeHeading")),
        h("div", { class: "nkx-two" }, block("layerCode", made.layer), block("functionCode", made.function)),
        this.copyButton(t("copyLink"), () => location.href.split("#")[0] + nk.toHash(this.state)),
      );
    }

    copyButton(label, text) {
      const copied = async () => {
        await navigator.clipboard.writeText(text());
        button.textContent = this.t("copied");
        setTimeout(() => (button.textContent = label), 1500);
      };
      const button = h("button", { type: "button", class: "nkx-link", onclick: copied }, label);
      return button;
    }

    /** Highlight the cell of an element; null shows all cells. */
    show(places) {
      const { found, t } = this;
      if (!found || !found.coloured) {
        this.status.textContent = "";
        this.clear.hidden = true;
        return;
      }
      this.clear.hidden = !this.element;
      const at = places ?? [0, 0, 0];
      this.sliders.forEach(({ input, value }, i) => {
        const all = found.sides[SIDES[i]].size;
        input.value = at[i];
        value.textContent = places ? String(this.trueIndex(i, at[i])) : "–";
        input.setAttribute("aria-valuetext", t("of", { at: this.trueIndex(i, at[i]) + 1, all }));
      });
      if (!places) {
        this.light(null);
        this.status.textContent = t("statusNone");
        return;
      }
      const index = nk.indexOf(found, places);
      const cell = nk.cellOf(found.levels, index);
      this.light(cell, places);
      const offset = nk.offsetOf(found, index);
      const named = index.map((value, i) => `${found.names[i]}=${value}`).join(" ");
      const weight = found.region.hasFeatures ? this.weightOf(index) : null;
      const where = weight === null ? t("offsetOnly", { offset }) : t("offset", { offset, weight });
      const words = t("status", { element: named, cell: cell + 1, cells: found.cells, count: found.count });
      this.status.replaceChildren(words, h("br"), h("span", { class: "nkx-note" }, where));
    }

    /** The index along a whole side of a drawn place. */
    trueIndex(i, place) {
      const side = this.found.sides[SIDES[i]];
      return side.own.reduce((number, level, k) => number * this.found.levels[level].size + side.places[place][k], 0);
    }

    weightOf(index) {
      const { levels } = this.found;
      return levels.reduce((number, level, i) => (level.feature ? number * level.size + index[i] : number), 0);
    }

    light(cell, element = null) {
      this.cube.light(cell, element);
      const squares = this.planBox.querySelectorAll("[data-cell]");
      for (const square of squares) {
        square.classList.toggle("nkx-dim", cell !== null && Number(square.dataset.cell) !== cell);
      }
    }
  }

  /** The language of the page: of the element, else of the folder, else of the document. */
  function languageOf(root) {
    if (root.dataset.lang) return root.dataset.lang;
    if (/\/zh\//.test(location.pathname)) return "zh";
    if (/\/en\//.test(location.pathname)) return "en";
    return document.documentElement.lang.startsWith("zh") ? "zh" : "en";
  }

  for (const root of document.querySelectorAll(".normkit-explorer")) root.explorer = new Explorer(root);
})(globalThis.normkitExplorer);
