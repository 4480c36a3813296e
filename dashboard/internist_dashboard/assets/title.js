/* The tab's title and icon say the verdict: `■ 2 · lr-sweep-3`, in the verdict's colour; `offline` when nothing is heard. */
(function () {
  "use strict";

  const COLOURS = { ok: "#4a7a62", drifting: "#b06a00", violated: "#c92a2a", "not measured": "#7a838c", offline: "#7a838c", troubled: "#b06a00" };
  const SHAPES = { ok: "●", drifting: "◐", violated: "■", "not measured": "○" };
  const FIGURES = {
    ok: "<circle cx='8' cy='8' r='6' fill='C'/>",
    drifting: "<circle cx='8' cy='8' r='5.2' fill='none' stroke='C' stroke-width='1.6'/><path d='M8 2.8a5.2 5.2 0 0 0 0 10.4z' fill='C'/>",
    violated: "<rect x='2' y='2' width='12' height='12' rx='1' fill='C'/>",
    "not measured": "<circle cx='8' cy='8' r='5' fill='none' stroke='C' stroke-width='2'/>",
    troubled: "<path d='M8 2 15 14H1z' fill='C'/>",
    offline: "<circle cx='8' cy='8' r='5' fill='none' stroke='C' stroke-width='2'/><path d='M3 13 13 3' stroke='C' stroke-width='2'/>",
  };
  const TROUBLED = ["lost", "stalled", "failed", "killed"];
  const state = { name: "", verdict: null, alerts: 0, life: "live", isOffline: false };

  function draw() {
    const figure = state.isOffline ? "offline" : TROUBLED.includes(state.life) ? "troubled" : state.verdict;
    document.title = title();
    const link = document.querySelector("link[rel=icon]");
    if (!link) return;
    const address = figure
      ? "data:image/svg+xml," + encodeURIComponent(`<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'>${FIGURES[figure].replaceAll("C", COLOURS[figure])}</svg>`)
      : `${window.internistConnection.base()}assets/favicon.svg`;
    if (link.getAttribute("href") !== address) link.setAttribute("href", address);
  }

  function title() {
    const name = state.name || "Internist";
    if (state.isOffline) return `offline · ${name}`;
    if (TROUBLED.includes(state.life)) return `${state.life} · ${name}`;
    if (!state.verdict) return name;
    return `${SHAPES[state.verdict]}${state.alerts ? " " + state.alerts : ""} · ${name}`;
  }

  window.internistTitle = {
    /** What the page is, and how what it shows is. */
    show(headline) {
      Object.assign(state, { name: "", verdict: null, alerts: 0, life: "live" }, headline || {});
      draw();
    },
    /** News of the run whose page this is. */
    tell(news) {
      Object.assign(state, { verdict: news.verdict, alerts: news.open_alerts, life: news.state });
      draw();
    },
    name: () => state.name,
    offline(isOffline) {
      if (state.isOffline === isOffline) return;
      state.isOffline = isOffline;
      draw();
    },
  };
})();
