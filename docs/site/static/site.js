"use strict";
// The page that chooses a language opens the one that was chosen last.
for (const link of document.querySelectorAll("a.nk-language")) {
  link.addEventListener("click", () => {
    try { localStorage.setItem("normkit-language", link.hreflang.slice(0, 2)); } catch (error) { /* storage may be off */ }
  });
}
