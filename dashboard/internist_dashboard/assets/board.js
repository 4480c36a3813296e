/* The view's state: what is shown lives in stores, and in the URL so that a link shows the same. */
(function () {
  "use strict";

  const AWAY_BEATS = 6;
  const nothing = () => window.dash_clientside.no_update;
  const query = () => new URLSearchParams(location.search);

  /** Write parameters into the URL without a navigation; an empty value leaves. What a person would go back from is a
      step of its own in the browser's history; what is typed or merely repainted is not. */
  function remember(values, { isStep = true } = {}) {
    const params = query();
    for (const [name, value] of Object.entries(values)) {
      if (value === null || value === undefined || value === "") params.delete(name);
      else params.set(name, value);
    }
    const text = params.toString().replaceAll("%2C", ",");
    const address = location.pathname + (text ? "?" + text : "");
    if (address === location.pathname + location.search) return;
    if (isStep) history.pushState(history.state, "", address);
    else history.replaceState(history.state, "", address);
  }

  function chosenScheme() {
    return window.internistScheme === "dark" ? "dark" : "light";
  }

  const narrowScreen = matchMedia("(max-width: 640px)");
  narrowScreen.addEventListener("change", (event) => {
    if (document.getElementById("content")) window.dash_clientside.set_props("narrow", { data: event.matches });
  });

  function windowOf(params) {
    const [first, last] = (params.get("steps") || "").split("-").map(Number);
    return Number.isFinite(first) && Number.isFinite(last) && last > first ? { first, last } : null;
  }

  function panelOf(params) {
    if (params.get("panel") === "coverage") return { coverage: true };
    const series = Number(params.get("series"));
    return params.has("series") && Number.isInteger(series) ? { series } : null;
  }

  function showPanel(panel) {
    remember({ series: panel && panel.series !== undefined ? panel.series : null, panel: panel && panel.coverage ? "coverage" : null });
    return panel;
  }

  function changedHeat(heat) {
    remember({ metric: heat.metric, open: heat.opened.join(",") });
    return heat;
  }

  function scalingOf(params) {
    const runs = (params.get("runs") || "").split(",").filter(Boolean);
    return { family: params.get("family"), runs, row: params.get("row") };
  }

  function showScaling(view) {
    remember({ family: view.family, runs: view.runs.join(","), row: view.row });
    return view;
  }

  window.internistView = { remember, query };
  window.dash_clientside = window.dash_clientside || {};
  window.dash_clientside.internist = {
    /** First of all: the scheme and the screen. */
    start() {
      return [chosenScheme(), narrowScreen.matches];
    },

    switchScheme(clicks, scheme) {
      if (!clicks) return nothing();
      const next = scheme === "dark" ? "light" : "dark";
      try { localStorage.setItem("internist-theme", next); } catch (error) { /* private windows keep nothing */ }
      remember({ theme: next }, { isStep: false });
      return next;
    },

    paint(scheme) {
      return scheme || nothing();
    },

    /** A page appeared: its state comes from the URL. */
    open(page) {
      const params = query();
      const text = params.get("filter") || "";
      window.internistTitle.show(page && page.headline);
      const opened = (params.get("open") || "").split(",").filter(Boolean);
      if (page && page.kind === "run") window.internistLive.follow(page.run, page.cursor);
      else window.internistLive.leave();
      return [windowOf(params), { metric: params.get("metric"), opened }, text, page && page.kind === "run" ? panelOf(params) : null, text];
    },

    filter(text, current) {
      if ((text || "") === (current || "")) return nothing();
      remember({ filter: text, first: null }, { isStep: false });
      if (document.getElementById("runs-table")) window.dash_clientside.set_props("runs-first", { data: 0 });
      return (text || "") === (current || "") ? nothing() : text || "";
    },

    pickMetric(metric, shown, heat) {
      if (!metric || metric === shown) return nothing();
      return changedHeat({ ...heat, metric });
    },

    /** A chart was dragged or double-clicked: the same window for all. */
    brush() {
      const trigger = window.dash_clientside.callback_context.triggered[0];
      if (!trigger || !trigger.value) return nothing();
      if (trigger.prop_id.startsWith("reset-zoom")) { window.internistZoom.forget(); remember({ steps: null }); return null; }
      const layout = trigger.value;
      if (layout["xaxis.autorange"]) { remember({ steps: null }); return null; }
      if (layout["xaxis.range[0]"] === undefined) return nothing();
      const range = [layout["xaxis.range[0]"], layout["xaxis.range[1]"]];
      const steps = window.internistZoom.windowOf(range);
      remember({ steps: `${steps.first}-${steps.last}` });
      window.internistZoom.show(range);
      return steps;
    },

    /** A heat map has come: what was sent of its cells becomes what is drawn. */
    unfold(sent) {
      return sent ? window.internistCells.unfold(sent) : nothing();
    },

    keepAxis(axis) {
      remember({ axis: axis === "step" ? null : axis }, { isStep: false });
      return nothing();
    },

    windowed(steps) {
      return !steps;
    },

    /** A row of the heat map: a block opens or closes, a module draws its series. */
    pressRow(click, figure, heat) {
      if (!click || !click.points || !click.points.length) return [nothing(), nothing()];
      const point = click.points[0];
      const keys = figure.layout.yaxis.categoryarray;
      return pressed(keys.indexOf(point.y), figure, heat);
    },

    pressHead(click, figure) {
      if (!click || !click.points || !click.points.length) return nothing();
      const row = figure.layout.meta[figure.layout.yaxis.categoryarray.indexOf(click.points[0].y)];
      return row ? showPanel({ series: row.series }) : nothing();
    },

    /** The verdict board: drawn here, for a hundred blocks are too many components. */
    drawBoard(rows) {
      const place = document.getElementById("board");
      if (!place || !rows) return nothing();
      const wasOpen = Boolean(place.querySelector("details[open]"));
      place.replaceChildren(...(rows.length ? boardTables(rows, wasOpen) : [make("p", { className: "quiet pad" }, "No verdict yet, or the filter matches none.")]));
      return nothing();
    },

    clear() {
      return null;
    },

    /** The scaling page appeared: what it shows comes from the URL. */
    openScaling(page) {
      return page && page.kind === "scaling" ? scalingOf(query()) : nothing();
    },

    /** Another family: the runs that the URL named and the open row are no longer meant. */
    pickFamily(family, shown) {
      return !family || family === shown ? nothing() : showScaling({ family, runs: [], row: null });
    },

    openDrawer(panel) {
      return Boolean(panel);
    },

    closeDrawer(opened, panel) {
      if (opened || !panel) return nothing();
      return showPanel(null);
    },

    detailTick(tick, panel) {
      return panel && panel.series !== undefined ? tick : nothing();
    },

    fallback(count) {
      return window.internistLive.needsPolling() ? count : nothing();
    },

    /** A page that asks by itself: not while it waits for an answer, and seldom while nobody looks. */
    beat(count) {
      const isDue = !document.hidden || count % AWAY_BEATS === 0;
      return isDue && !window.internistConnection.isBusy() && !window.internistConnection.isLost() ? count : nothing();
    },

    /** How what the page shows is, for the tab's title. */
    headline(said) {
      window.internistTitle.show(said);
      return nothing();
    },
  };

  const CARDS = [["fwd", "Forward"], ["dep", "Dependency"], ["upd", "Update"], ["spec", "Spectral"], ["attn", "Attention"], ["num", "Numeric"]];
  const SHAPES = { ok: ["●", "ok"], drifting: ["◐", "drifting"], violated: ["■", "violated"], "not measured": ["○", "unmeasured"] };
  const FIRST_ROWS = 12;

  function make(tag, properties, ...children) {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  }

  function boardTables(rows, isOpen) {
    const head = make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "block"),
      ...CARDS.map(([short, title]) => make("th", { scope: "col", title }, short)), make("th", { scope: "col" }, "worst")));
    const tables = [make("table", { className: "board" }, head, make("tbody", {}, ...rows.slice(0, FIRST_ROWS).map(boardRow)))];
    const rest = rows.slice(FIRST_ROWS);
    if (rest.length) {
      const table = make("table", { className: "board" }, make("tbody", {}, ...rest.map(boardRow)));
      tables.push(make("details", { open: isOpen }, make("summary", {}, `${rest.length} more`), table));
    }
    return tables;
  }

  function boardRow(row) {
    const cells = row.states.map((state, index) => {
      if (state === null) { /* nothing of this block is asked for: that is not the same as not measured */
        const none = make("td", { className: "quiet", title: `${CARDS[index][1]}: not judged here` }, "·");
        return none;
      }
      const mark = make("span", { className: `mark is-${SHAPES[state][1]}`, title: `${CARDS[index][1]}: ${state}` }, SHAPES[state][0]);
      mark.setAttribute("role", "img");
      mark.setAttribute("aria-label", `${CARDS[index][1]}: ${state}`);
      return make("td", {}, mark);
    });
    const line = make("tr", { title: row.title }, make("th", { scope: "row" }, make("bdi", {}, row.name)), ...cells,
      make("td", { className: `num is-${SHAPES[row.state][1]}` }, row.worst));
    if (row.series !== null) {
      line.dataset.series = row.series;
      line.tabIndex = 0;
      line.setAttribute("role", "button");
    }
    return line;
  }

  function pressed(index, figure, heat) {
    const row = figure.layout.meta && figure.layout.meta[index];
    if (!row) return [nothing(), nothing()];
    if (row.block === null) return [nothing(), row.series === null ? nothing() : showPanel({ series: row.series })];
    const opened = heat.opened.includes(row.block) ? heat.opened.filter((name) => name !== row.block) : [...heat.opened, row.block];
    return [changedHeat({ ...heat, opened }), nothing()];
  }

  /* Back and forward: the same page shows what the address says now. */
  window.addEventListener("popstate", () => {
    const put = (id, value) => document.getElementById("content") && window.dash_clientside.set_props(id, value);
    const params = query();
    if (document.getElementById("heat-graph")) {
      const opened = (params.get("open") || "").split(",").filter(Boolean);
      window.internistZoom.forget();
      put("window", { data: windowOf(params) });
      put("heat", { data: { metric: params.get("metric"), opened } });
      put("panel", { data: panelOf(params) });
    } else if (document.getElementById("scaling-report")) put("scaling-view", { data: scalingOf(params) });
    else if (document.getElementById("runs-table")) {
      put("runs-first", { data: Number(params.get("first")) || 0 });
      put("runs-order", { data: Object.fromEntries(["sort", "reverse", "archived"].map((name) => [name, params.get(name)])) });
    }
    const box = document.getElementById("filter-box");
    if (box && box.value !== (params.get("filter") || "")) put("filter-box", { value: params.get("filter") || "" });
  });

  /* Clicks on anything that names a series, an exponent, a family, a panel or a page; and on the heat map's row labels. */
  document.addEventListener("click", (event) => {
    const target = event.target.closest("[data-series], [data-exponent], [data-family], [data-panel], [data-href], [data-first]");
    if (target && !event.target.closest("a") && !event.defaultPrevented) return act(target);
    const heat = event.target.closest && event.target.closest("#heat-graph .js-plotly-plot");
    if (heat) pressLabel(heat, event);
  });

  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest && event.target.closest("input, textarea, select");
    const box = document.getElementById("filter-box");
    if (event.key === "/" && !typing && box) { event.preventDefault(); box.focus(); }
    if ((event.key === "j" || event.key === "k") && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) walk(event.key === "j" ? 1 : -1);
    if (event.key === "?" && !typing) showKeys();
    if (event.key === "Escape" && typing && typing === box) { window.dash_clientside.set_props("filter-box", { value: "" }); box.blur(); }
    const pressed = event.key === "Enter" || event.key === " ";
    const target = pressed && event.target.closest && event.target.closest("[role=button][data-series], tr[data-href], tr[data-exponent]");
    if (target && event.target === target) { event.preventDefault(); act(target); }
  });

  const ROWS = ".runs tbody a.run-name, #board tr[tabindex], .alert-title a, .scaling tbody tr";

  const shownRows = () => [...document.querySelectorAll(ROWS)].filter((row) => row.offsetParent !== null);
  let walked = null;

  /** The next row of the page's list, or the one before it, takes the focus. */
  function walk(way) {
    const rows = shownRows();
    const next = rows[rows.indexOf(document.activeElement) + way] || rows[way > 0 ? 0 : rows.length - 1];
    if (next) stand(next, rows);
  }

  function stand(row, rows) {
    if (!row.matches("a") && row.tabIndex < 0) row.tabIndex = 0;
    row.focus();
    row.scrollIntoView({ block: "nearest" });
    walked = { row, place: rows.indexOf(row), path: location.pathname };
  }

  /* A list that is drawn anew takes the focused row with it: the row in its place has the focus then. */
  new MutationObserver(() => {
    if (walked === null || walked.row.isConnected) return;
    const rows = shownRows();
    const lost = document.activeElement === document.body && walked.path === location.pathname;
    if (lost && !rows[walked.place]) return;
    const { place } = walked;
    walked = null;
    if (lost) stand(rows[place], rows);
  }).observe(document.documentElement, { childList: true, subtree: true });

  const KEYS = [["/", "filter or search"], ["j  k", "next row, row before"], ["Enter", "open it"], ["Escape", "close, or empty the filter"], ["?", "these keys"]];
  const GESTURES = [["drag", "zoom all charts to these steps"], ["Ctrl + wheel", "or a pinch: zoom where it points"], ["double click", "all steps again"], ["click a row", "open a block, or draw a series"], ["Back", "the view before"]];

  function showKeys() {
    const open = document.getElementById("keys");
    if (open) return open.close();
    const list = (pairs) => make("dl", {}, ...pairs.map(([key, does]) => make("div", {}, make("dt", {}, make("kbd", {}, key)), make("dd", {}, does))));
    const close = make("button", { type: "button", className: "small-button" }, "Close");
    const box = make("dialog", { id: "keys", className: "keys panel" }, make("h2", {}, "Keys"), list(KEYS), make("h2", {}, "On charts"), list(GESTURES), close);
    close.addEventListener("click", () => box.close());
    box.addEventListener("close", () => box.remove());
    document.body.append(box);
    box.showModal();
  }

  function act(target) {
    if (target.dataset.series) window.dash_clientside.set_props("panel", { data: showPanel({ series: Number(target.dataset.series) }) });
    else if (target.dataset.exponent) pressExponent(target.dataset.exponent);
    else if (target.dataset.family) window.dash_clientside.set_props("scaling-view", { data: showScaling({ family: target.dataset.family, runs: [], row: null }) });
    else if (target.dataset.panel) window.dash_clientside.set_props("panel", { data: showPanel({ coverage: true }) });
    else if (target.dataset.first) {
      remember({ first: target.dataset.first === "0" ? null : target.dataset.first });
      window.dash_clientside.set_props("runs-first", { data: Number(target.dataset.first) });
      scrollTo(0, 0);
    } else if (target.dataset.href) target.querySelector("a").click();
  }

  /** A row of the scaling page draws its log-log plot; where that lies above the table, the page goes there. */
  function pressExponent(row) {
    window.dash_clientside.set_props("scaling-view", { data: showScaling({ ...scalingOf(query()), row }) });
    const plot = document.querySelector(".area-loglog");
    if (plot && (plot.getBoundingClientRect().bottom < 0 || plot.getBoundingClientRect().top > innerHeight)) plot.scrollIntoView({ block: "start" });
  }

  function pressLabel(graph, event) {
    const layout = graph._fullLayout;
    const box = graph.getBoundingClientRect();
    if (event.clientX - box.left > layout._size.l) return;
    const row = Math.round(layout.yaxis.p2c(event.clientY - box.top - layout._size.t));
    const params = query();
    const heat = { metric: params.get("metric"), opened: (params.get("open") || "").split(",").filter(Boolean) };
    const [next, panel] = pressed(row, graph, heat);
    if (next !== nothing()) window.dash_clientside.set_props("heat", { data: next });
    if (panel !== nothing()) window.dash_clientside.set_props("panel", { data: panel });
  }
})();
