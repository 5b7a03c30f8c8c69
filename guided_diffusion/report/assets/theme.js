"use strict";
// The theme button: system, light, dark.
(() => {
  const button = document.getElementById("theme");
  const themes = ["system", "light", "dark"];
  let theme = "system";
  try {
    theme = localStorage.getItem("medsegdiff-theme") || "system";
  } catch (error) {
    // A browser may deny storage to local files; the choice then lasts until the page closes.
  }
  const apply = () => {
    document.documentElement.dataset.theme = theme;
    button.textContent = `Theme: ${theme}`;
  };
  button.addEventListener("click", () => {
    theme = themes[(themes.indexOf(theme) + 1) % themes.length];
    apply();
    try {
      localStorage.setItem("medsegdiff-theme", theme);
    } catch (error) {
      // as above
    }
  });
  if (!themes.includes(theme)) theme = "system";
  apply();
  button.hidden = false; // without a script it would do nothing
})();
