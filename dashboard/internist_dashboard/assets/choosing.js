/* Runs that are chosen on the page of all runs, to be compared, pinned, archived or deleted: kept here while pages turn
   and rows are drawn anew. And the order of that page, which the server makes. */
(function () {
  "use strict";

  const MOST = 20;
  const chosen = new Set();

  function paint() {
    for (const box of document.querySelectorAll("[data-choose]")) {
      const isOn = String(chosen.has(box.dataset.choose));
      if (box.getAttribute("aria-checked") !== isOn) box.setAttribute("aria-checked", isOn);
    }
    const actions = document.getElementById("chosen-actions");
    if (!actions) return;
    if (actions.hidden !== chosen.size < 1) actions.hidden = chosen.size < 1;
    const button = actions.querySelector("[data-compare]");
    const text = `Compare ${chosen.size} runs`;
    if (button.hidden !== chosen.size < 2) button.hidden = chosen.size < 2;
    if (button.textContent !== text) button.textContent = text; /* writing what stands there is a change, too */
  }

  const redraw = () => window.dash_clientside.set_props("runs-tick", { data: `asked at ${Date.now()}` });

  /** Do something to every chosen run, one after the other; those it was done to are chosen no more. */
  async function toEach(button, work) {
    button.disabled = true;
    try {
      for (const run of [...chosen]) {
        await work(`api/v1/runs/${encodeURIComponent(run)}`);
        chosen.delete(run);
      }
    } catch (error) {
      button.title = String(error.message || error);
      button.textContent = "try again";
    }
    button.disabled = false;
    paint();
    redraw();
  }

  function sort(by) {
    const params = window.internistView.query();
    const isAgain = (params.get("sort") || "newest") === by;
    reorder({ sort: by === "newest" ? null : by, reverse: isAgain && params.get("reverse") !== "1" ? "1" : null });
  }

  function reorder(changes) {
    window.internistView.remember({ ...changes, first: null });
    const params = window.internistView.query();
    const order = Object.fromEntries(["sort", "reverse", "archived"].map((name) => [name, params.get(name)]));
    window.dash_clientside.set_props("runs-first", { data: 0 });
    window.dash_clientside.set_props("runs-order", { data: order });
  }

  document.addEventListener("click", (event) => {
    const box = event.target.closest && event.target.closest("[data-choose]");
    if (box) {
      event.preventDefault();
      event.stopPropagation();
      if (!chosen.delete(box.dataset.choose) && chosen.size < MOST) chosen.add(box.dataset.choose);
      return paint();
    }
    const button = event.target.closest && event.target.closest("[data-compare], [data-change-chosen], [data-delete-chosen], [data-sort], [data-archived]");
    if (!button) return;
    const { told } = window.internistConnection;
    if (button.dataset.sort) sort(button.dataset.sort);
    else if (button.dataset.archived) reorder({ archived: button.dataset.archived === "1" ? "1" : null });
    else if (button.dataset.changeChosen) toEach(button, (path) => told("PATCH", path, JSON.parse(button.dataset.changeChosen)));
    else if (button.dataset.deleteChosen !== undefined) {
      const many = chosen.size === 1 ? "this run" : `these ${chosen.size} runs`;
      if (window.confirm(`Delete ${many} with all points and alerts, for good?`)) toEach(button, (path) => told("DELETE", path));
    } else location.assign(`${window.internistConnection.base()}compare?runs=${[...chosen].map(encodeURIComponent).join(",")}`);
  }, true);

  new MutationObserver(paint).observe(document.documentElement, { childList: true, subtree: true });
})();
