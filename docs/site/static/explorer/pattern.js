// A region written as text: the rules and the error texts of src/normkit/pattern.py, for the browser.
// tests/site/test_explorer_rules.py compares both.
(function (nk) {
  "use strict";

  const ELLIPSIS = "...";
  // Python's \s, \w and identifiers, which differ from JavaScript's.
  const SPACE = "\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";
  const TOKEN = new RegExp(`\\.\\.\\.|[A-Za-z_][\\p{L}\\p{N}_]*(?:=[\\p{L}\\p{N}_]*)?|[()\\[\\]]|[^${SPACE}]`, "gu");
  const BLANK = new RegExp(`^[${SPACE}]*$`, "u");
  const IDENTIFIER = /^[\p{XID_Start}_]\p{XID_Continue}*$/u;
  const CLOSER = { "(": ")", "[": "]" };
  const OPENER = { ")": "(", "]": "[" };

  class NormkitError extends Error {
    constructor(kind, text) {
      super(text);
      this.kind = kind;
    }
  }

  function patternError(pattern, position, rule, remedy) {
    // The caret counts characters, not the units of UTF-16.
    const before = " ".repeat([...pattern.slice(0, position)].length);
    return new NormkitError("PatternError", `${rule}\n    ${pattern}\n    ${before}^\n${remedy}`);
  }

  /** Text as Python's repr() shows it. */
  function quoted(text) {
    const quote = text.includes("'") && !text.includes('"') ? '"' : "'";
    const escapes = { "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t" };
    let out = "";
    for (const letter of text) {
      const code = letter.codePointAt(0);
      if (letter === quote) out += `\\${letter}`;
      else if (letter in escapes) out += escapes[letter];
      else if (letter === " " || !/[\p{C}\p{Z}]/u.test(letter)) out += letter;
      else if (code < 0x100) out += `\\x${code.toString(16).padStart(2, "0")}`;
      else if (code < 0x10000) out += `\\u${code.toString(16).padStart(4, "0")}`;
      else out += `\\U${code.toString(16).padStart(8, "0")}`;
    }
    return quote + out + quote;
  }

  /** A shape as Python shows a tuple. */
  function tuple(sizes) {
    return sizes.length === 1 ? `(${sizes[0]},)` : `(${sizes.join(", ")})`;
  }

  /** A whole number in the digits of any script, or null. */
  function decimal(text) {
    if (!/^\p{Nd}+$/u.test(text)) return null;
    let value = 0;
    for (const digit of text) {
      // Digits come in tens, so the number of digits directly before one gives its value.
      let code = digit.codePointAt(0);
      let place = 0;
      while (/\p{Nd}/u.test(String.fromCodePoint(code - 1))) {
        code -= 1;
        place += 1;
      }
      value = value * 10 + (place % 10);
    }
    return value;
  }

  const isFeature = (dim) => dim.some((axis) => axis.name.startsWith("c"));
  const product = (numbers) => numbers.reduce((a, b) => a * b, 1);

  class Region {
    /** `dims` has one array of axes {name, reduced, size} for each dimension; a size is null if it is not given. */
    constructor(dims) {
      this.dims = dims;
      const words = dims.map((dim) => {
        const inside = dim.map(bracketed).join(" ");
        return dim.length > 1 ? `(${inside})` : inside;
      });
      this.text = words.join(" ").replaceAll("] [", " ");
    }

    get axes() {
      return this.dims.flat();
    }

    get hasFeatures() {
      return this.dims.some(isFeature);
    }

    /** The same region with the sizes of some axes fixed. */
    bind(sizes) {
      const names = new Set(this.axes.map((axis) => axis.name).filter((name) => name !== ELLIPSIS));
      for (const [name, size] of Object.entries(sizes)) {
        if (!names.has(name)) {
          throw new NormkitError(
            "ArgumentError",
            `a size can be given only to an axis of the pattern; ${quoted(this.text)} ` +
              `has no axis ${quoted(name)}: name it there, as in 'b (${name} [c]) [...]'`,
          );
        }
        if (size < 1) {
          throw new NormkitError("ArgumentError", `axis ${quoted(name)} needs a size of at least 1, got ${size}`);
        }
      }
      const given = (axis) => (Object.hasOwn(sizes, axis.name) ? sizes[axis.name] : axis.size);
      return new Region(this.dims.map((dim) => dim.map((axis) => ({ ...axis, size: given(axis) }))));
    }

    /** The axes of a tensor of this shape, outermost first, with all sizes. */
    levels(shape, varying = null) {
      const out = [];
      this.dimsOf(shape).forEach((dim, index) => {
        const feature = varying === null ? isFeature(dim) : varying[index];
        const sizes = this.sizesOf(dim, shape[index], shape);
        dim.forEach((axis, part) => {
          out.push({ name: axis.name, dim: index, size: sizes[part], reduced: axis.reduced, feature });
        });
      });
      return out;
    }

    dimsOf(shape) {
      const named = this.dims.filter((dim) => dim[0].name !== ELLIPSIS);
      const extra = shape.length - named.length;
      if (extra < 0 || (extra > 0 && named.length === this.dims.length)) {
        const more = named.length < this.dims.length ? "at least " : "";
        throw new NormkitError(
          "ShapeError",
          `pattern ${quoted(this.text)} needs ${more}${named.length} dimensions, ` +
            `got ${shape.length} with shape ${tuple(shape)}: reshape the input or change the pattern`,
        );
      }
      return this.dims.flatMap((dim) => (dim[0].name === ELLIPSIS ? Array(extra).fill(dim) : [dim]));
    }

    sizesOf(dim, size, shape) {
      const known = product(dim.filter((axis) => axis.size !== null).map((axis) => axis.size));
      const free = dim.filter((axis) => axis.size === null);
      if (free.length > 1) {
        throw new NormkitError(
          "ArgumentError",
          `pattern ${quoted(this.text)} splits one dimension into ${dim.length} axes, ` +
            `so all but one need a size; ${free.map((axis) => axis.name).join(" and ")} have none: ` +
            `write '${free[0].name}=8', or give num_groups for an axis g`,
        );
      }
      if (free.length ? size % known : size !== known) {
        const given = dim
          .filter((axis) => axis.size !== null)
          .map((axis) => `${axis.name}=${axis.size}`)
          .join(" * ");
        const rule = free.length ? "be divisible by" : "equal";
        throw new NormkitError(
          "ShapeError",
          `the dimension (${dim.map((axis) => axis.name).join(" ")}) of pattern ${quoted(this.text)} ` +
            `must ${rule} ${given}, got ${size} in shape ${tuple(shape)}: ` +
            "change that size or the number of channels",
        );
      }
      return dim.map((axis) => (axis.size !== null ? axis.size : size / known));
    }
  }

  function bracketed(axis) {
    const text = axis.size === null ? axis.name : `${axis.name}=${axis.size}`;
    return axis.reduced ? `[${text}]` : text;
  }

  /** Reads one pattern from left to right, and remembers the position of each open bracket. */
  class Reader {
    constructor(pattern) {
      this.pattern = pattern;
      this.dims = [];
      this.group = null;
      this.seen = new Set();
      this.open = [];
    }

    fail(position, rule, remedy) {
      return patternError(this.pattern, position, rule, remedy);
    }

    read() {
      for (const match of this.pattern.matchAll(TOKEN)) {
        const word = match[0];
        if (word === "(" || word === "[") this.enter(word, match.index);
        else if (word === ")" || word === "]") this.leave(word, match.index);
        else this.axis(word, match.index);
      }
      if (this.open.length) {
        const [mark, at] = this.open.at(-1);
        throw this.fail(at, `'${mark}' is never closed`, `add '${CLOSER[mark]}' after its last axis`);
      }
      if (!this.dims.length) {
        throw this.fail(0, "a pattern names at least one axis", "write for instance 'b c [...]'");
      }
      if (!this.dims.flat().some((axis) => axis.reduced)) {
        throw this.fail(
          0,
          "no axis is in brackets, so no elements share a mean",
          "put the axes that are reduced in brackets: 'b c [...]'",
        );
      }
      return new Region(this.dims);
    }

    enter(mark, at) {
      if (this.open.some(([other]) => other === mark)) {
        throw this.fail(at, `'${mark}' cannot be inside another '${mark}'`, `remove this '${mark}'`);
      }
      this.open.push([mark, at]);
      if (mark === "(") this.group = [];
    }

    leave(mark, at) {
      if (!this.open.length) {
        throw this.fail(at, `'${mark}' closes nothing`, `remove it, or open it with '${OPENER[mark]}'`);
      }
      const [opened, openedAt] = this.open.pop();
      if (opened !== OPENER[mark]) {
        const place = [...this.pattern.slice(0, openedAt)].length + 1;
        throw this.fail(
          at,
          `'${mark}' cannot close the '${opened}' at character ${place}`,
          `close that first: '${CLOSER[opened]}'`,
        );
      }
      if (BLANK.test(this.pattern.slice(openedAt + 1, at))) {
        throw this.fail(openedAt, `'${opened}${mark}' is empty`, "put an axis in it, or remove it");
      }
      if (mark === ")") {
        this.dims.push(this.group);
        this.group = null;
      }
    }

    axis(word, at) {
      const equals = word.indexOf("=");
      const name = equals < 0 ? word : word.slice(0, equals);
      const size = equals < 0 ? "" : word.slice(equals + 1);
      const reduced = this.open.some(([mark]) => mark === "[");
      if (name === ELLIPSIS) {
        if (this.group !== null) {
          throw this.fail(at, "'...' means whole dimensions, so it cannot be inside '( )'", "name the axis");
        }
      } else if (!IDENTIFIER.test(name)) {
        throw this.fail(
          at,
          `${quoted(word)} is not an axis`,
          "an axis is a name such as b, c or h, perhaps with a size: g=8",
        );
      }
      if (this.seen.has(name)) {
        throw this.fail(at, `axis ${quoted(name)} is named twice`, "give the second one another name");
      }
      this.seen.add(name);
      const number = decimal(size);
      if (equals >= 0 && (number === null || number < 1)) {
        throw this.fail(
          at,
          `the size of axis ${quoted(name)} must be a whole number of at least 1, got ${quoted(size)}`,
          `write for instance ${name}=8`,
        );
      }
      const axis = { name, reduced, size: number };
      if (this.group !== null) this.group.push(axis);
      else this.dims.push([axis]);
    }
  }

  nk.ELLIPSIS = ELLIPSIS;
  nk.NormkitError = NormkitError;
  nk.isFeature = isFeature;
  nk.product = product;
  nk.tuple = tuple;
  nk.parse = (pattern) => new Reader(pattern).read();
})((globalThis.normkitExplorer ??= {}));
