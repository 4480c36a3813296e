/* Runs that are chosen on the page of all runs, to be compared: kept here while pages turn and rows are drawn anew. */
(function () {
  "use strict";

  const MOST = 20;
  const chosen = new Set();

  function paint() {
    for (const box of document.querySelectorAll("[data-choose]")) {
      const isOn = String(chosen.has(box.dataset.choose));
      if (box.getAttribute("aria-checked") !== isOn) box.setAttribute("aria-checked", isOn);
    }
    const button = document.querySelector("[data-compare]");
    if (!button) return;
    const text = `Compare ${chosen.size} runs`;
    if (button.hidden !== chosen.size < 2) button.hidden = chosen.size < 2;
    if (button.textContent !== text) button.textContent = text; /* writing what stands there is a change, too */
  }

  document.addEventListener("click", (event) => {
    const box = event.target.closest && event.target.closest("[data-choose]");
    if (box) {
      event.preventDefault();
      event.stopPropagation();
      if (!chosen.delete(box.dataset.choose) && chosen.size < MOST) chosen.add(box.dataset.choose);
      return paint();
    }
    const button = event.target.closest && event.target.closest("[data-compare]");
    if (button) location.assign(`${window.internistConnection.base()}compare?runs=${[...chosen].map(encodeURIComponent).join(",")}`);
  }, true);

  new MutationObserver(paint).observe(document.documentElement, { childList: true, subtree: true });
})();
