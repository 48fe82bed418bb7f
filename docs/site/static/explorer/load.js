// Loads the explorer: its style and its scripts, in order, from the folder of this file.
(function () {
  "use strict";

  const here = new URL(".", document.currentScript.src);
  const style = document.createElement("link");
  style.rel = "stylesheet";
  style.href = new URL("explorer.css", here);
  document.head.append(style);
  const names = ["pattern", "plan", "catalog", "texts", "colours", "model", "code", "formula", "cube", "icon", "memory", "explorer"];
  for (const name of names) {
    const script = document.createElement("script");
    script.async = false; // in this order
    script.src = new URL(`${name}.js`, here);
    document.head.append(script);
  }
})();
