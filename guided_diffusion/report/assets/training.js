"use strict";
// The slider over a run's validation pictures: the page holds the newest and loads earlier ones from the folder.
(() => {
  const { pictures } = JSON.parse(document.getElementById("data").textContent);
  const pick = document.getElementById("pick");
  if (!pick) return;
  const picture = document.getElementById("picture");
  const missing = document.getElementById("missing");
  const newest = picture.src;
  pick.addEventListener("input", () => {
    const index = Number(pick.value);
    const [step, source] = pictures[index];
    missing.hidden = true;
    picture.src = index === pictures.length - 1 ? newest : source;
    document.getElementById("step").textContent = `Step ${step}`;
    pick.setAttribute("aria-valuetext", `step ${step}`);
  });
  picture.addEventListener("error", () => {
    missing.textContent = `${pictures[Number(pick.value)][1]} was not found; keep this page in the run's folder to see earlier steps.`;
    missing.hidden = false;
  });
})();
