"use strict";
// The page that chooses a language opens the one that was chosen last.
for (const link of document.querySelectorAll("a.nk-language")) {
  link.addEventListener("click", () => {
    try { localStorage.setItem("normkit-language", link.hreflang.slice(0, 2)); } catch (error) { /* storage may be off */ }
  });
}

// A page that is opened as a file cannot read others, from which search takes the text around what it has found.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
