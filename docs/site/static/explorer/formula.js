// The sums that the statistics are, as MathML.
(function (nk) {
  "use strict";

  const NAMESPACE = "http://www.w3.org/1998/Math/MathML";

  function m(tag, ...children) {
    const element = document.createElementNS(NAMESPACE, tag);
    element.append(...children);
    return element;
  }

  const names = (all) => m("mrow", ...all.flatMap((name, i) => (i ? [m("mo", ","), m("mi", name)] : [m("mi", name)])));
  const at = (base, all) => (all.length ? m("msub", base, names(all)) : base);
  const squared = (...parts) => m("msup", m("mrow", ...parts), m("mn", "2"));

  /** One statistic, as `statistics` of model.js describes it. */
  nk.mathOf = function (line) {
    const x = () => at(m("mi", "x"), line.all);
    const body = {
      value: () => x(),
      square: () => squared(x()),
      deviation: () => squared(m("mo", "("), x(), m("mo", "−"), at(m("mi", "mean"), line.kept), m("mo", ")")),
    }[line.of]();
    const sum = m("mrow", m("munder", m("mo", "∑"), names(line.reduced)), body);
    const share = m("mfrac", m("mn", "1"), m("mn", String(line.count)));
    const whole = line.root ? m("msqrt", sum) : m("mrow", share, sum);
    const made = m("math", at(m("mi", line.symbol), line.kept), m("mo", "="), whole);
    made.setAttribute("display", "block");
    return made;
  };
})((globalThis.normkitExplorer ??= {}));
