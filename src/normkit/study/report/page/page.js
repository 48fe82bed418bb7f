(() => {
  "use strict";
  const root = document.documentElement;
  root.classList.add("scripted");
  const all = (query, from = document) => [...from.querySelectorAll(query)];

  // Light or dark: the choice on this page is stored, if the browser allows a file to store it.
  const remember = (value) => { try { localStorage.setItem("normkit-theme", value); } catch { /* not allowed */ } };
  const remembered = () => { try { return localStorage.getItem("normkit-theme"); } catch { return null; } };
  const dark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const button = document.getElementById("theme");
  const show = (theme) => { if (theme) root.dataset.theme = theme; button.setAttribute("aria-pressed", String(dark())); };
  show(remembered());
  button.addEventListener("click", () => { const next = dark() ? "light" : "dark"; show(next); remember(next); });

  // Methods: hidden in every figure and table.
  for (const toggle of all(".legend button")) {
    toggle.addEventListener("click", () => {
      const shown = toggle.getAttribute("aria-pressed") === "true";
      toggle.setAttribute("aria-pressed", String(!shown));
      for (const mark of all(`[data-m="${toggle.dataset.hides}"]`)) mark.classList.toggle("off", shown);
    });
  }

  // Tables: a heading becomes a button, so that it can be used with the keyboard.
  const key = (row, column, numeric) => {
    const cell = row.cells[column];
    const text = cell.dataset.sort ?? cell.textContent.trim();
    if (!numeric) return text;
    return text === "" ? NaN : Number(text);
  };
  for (const heading of all("table.sortable th[data-sortable]")) {
    const inner = document.createElement("button");
    inner.type = "button";
    inner.append(...heading.childNodes);
    heading.append(inner);
    heading.setAttribute("aria-sort", "none");
    inner.addEventListener("click", () => {
      const table = heading.closest("table"), body = table.tBodies[0];
      const column = heading.cellIndex, numeric = "numeric" in heading.dataset;
      const down = heading.getAttribute("aria-sort") === "ascending";
      for (const other of all("th[aria-sort]", table)) other.setAttribute("aria-sort", "none");
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const sign = down ? -1 : 1;
      const rows = [...body.rows].map((row) => [key(row, column, numeric), row]);
      rows.sort(([a], [b]) => {
        if (!numeric) return sign * a.localeCompare(b, root.lang);
        // Missing values come last in both directions.
        if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
        return sign * (a - b);
      });
      body.append(...rows.map(([, row]) => row));
    });
  }

  // A link to an experiment opens it.
  const open = () => {
    const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    const inside = target.closest("details");
    if (inside) { inside.open = true; target.scrollIntoView(); }
    else if (target.matches(".claim")) target.querySelector("details").open = true;
  };
  addEventListener("hashchange", open);
  for (const link of all('a[href^="#"]')) link.addEventListener("click", () => setTimeout(open));
  open();

  const every = document.getElementById("open-all");
  every?.addEventListener("click", () => {
    const opened = every.getAttribute("aria-expanded") === "true";
    for (const details of all("details.experiment")) details.open = !opened;
    every.setAttribute("aria-expanded", String(!opened));
    [every.textContent, every.dataset.other] = [every.dataset.other, every.textContent];
  });

  // For printing, everything is opened.
  let closed = [];
  addEventListener("beforeprint", () => { closed = all("details:not([open])"); for (const d of closed) d.open = true; });
  addEventListener("afterprint", () => { for (const d of closed) d.open = false; });

  for (const copy of all("button.copy")) {
    const name = copy.textContent;
    copy.addEventListener("click", async () => {
      const code = copy.parentElement.querySelector("code");
      try { await navigator.clipboard.writeText(code.textContent); }
      catch {
        // A file may not be allowed to use the clipboard; then the text is selected, ready to be copied.
        getSelection().selectAllChildren(code);
        if (!document.execCommand("copy")) return;
      }
      copy.textContent = copy.dataset.copied;
      setTimeout(() => { copy.textContent = name; }, 1600);
    });
  }
})();
