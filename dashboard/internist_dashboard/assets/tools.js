/* What every chart offers: its numbers as a table or a file, its picture, a logarithmic axis, a smoothed line; and what it
   shows, in words, for those who do not see it. Nothing is asked of the server: the chart holds its numbers. */
(function () {
  "use strict";

  const NAMES = {
    "loss-graph": { lines: true }, "series-graph": { lines: true }, "optimizer-graph": { lines: false },
    "heat-graph": {}, "logit-graph": {}, loglog: {}, "compare-graph": { lines: true }, "difference-graph": {}, "condition-graph": { lines: true },
  };
  const SMOOTH_SHARE = 20; /* a smoothed value looks back over this part of the line */
  const SMOOTHED = ", smoothed";
  const MOST_ROWS = 2000;

  function make(tag, properties, ...children) {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  }

  const plotOf = (id) => document.querySelector(`#${id} .js-plotly-plot`);

  function titleOf(graph) {
    const panel = graph.closest(".panel, .mantine-Drawer-content");
    const head = panel && panel.querySelector("h2, .mantine-Drawer-title");
    return head ? head.textContent : "chart";
  }

  /** The chart's numbers as rows: a header first. Lines share a column of steps; a heat map has a row a cell's row. */
  function rowsOf(graph) {
    const traces = graph._fullData.filter((trace) => trace.visible === true && !String(trace.name).endsWith(SMOOTHED));
    const heat = traces.find((trace) => trace.type === "heatmap");
    if (heat) {
      const { steps, details } = window.internistCells.heldBy(heat) || { steps: heat.x, details: heat.customdata };
      const value = (i, j) => { const cell = details[i][j]; return Array.isArray(cell) || ArrayBuffer.isView(cell) ? cell[0] : cell; };
      return [["", ...steps], ...Array.from(heat.y, (name, i) => [plain(name), ...Array.from(steps, (_, j) => value(i, j))])];
    }
    const lines = traces.filter((trace) => trace.mode && trace.mode.includes("lines") && trace.name && !/^trace \d/.test(trace.name));
    const steps = [...new Set(lines.flatMap((trace) => Array.from(trace.x)))].sort((a, b) => a - b);
    const found = lines.map((trace) => new Map(Array.from(trace.x, (x, i) => [x, trace.y[i]])));
    return [["step", ...lines.map((trace) => plain(trace.name))], ...steps.map((step) => [step, ...found.map((line) => line.get(step) ?? null)])];
  }

  function plain(name) {
    return String(name).replaceAll("&lt;", "<").replaceAll("&gt;", ">").replaceAll("&amp;", "&").replaceAll("\u2060", "");
  }

  function isNumber(value) {
    return value !== null && value !== undefined && !Number.isNaN(value);
  }

  function csv(rows) {
    const quoted = (value) => (!isNumber(value) ? "" : /[",\n]/.test(String(value)) ? `"${String(value).replaceAll('"', '""')}"` : String(value));
    return rows.map((row) => row.map(quoted).join(",")).join("\n") + "\n";
  }

  function fileName(graph, ending) {
    const run = (document.querySelector(".crumb.here") || {}).textContent || "internist";
    return `${run} ${titleOf(graph)}`.replace(/[^\w.-]+/g, "-").toLowerCase() + ending;
  }

  function save(text, name) {
    const link = make("a", { href: URL.createObjectURL(new Blob([text], { type: "text/csv" })), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  function showTable(graph) {
    const rows = rowsOf(graph);
    const cell = (value) => (isNumber(value) ? (typeof value === "number" ? String(Number(value.toPrecision(6))) : String(value)) : "");
    const head = make("thead", {}, make("tr", {}, ...rows[0].map((name) => make("th", { scope: "col" }, String(name) || "name"))));
    const body = make("tbody", {}, ...rows.slice(1, MOST_ROWS).map((row) => make("tr", {}, make("th", { scope: "row" }, cell(row[0])), ...row.slice(1).map((value) => make("td", { className: "num right" }, cell(value))))));
    const close = make("button", { type: "button", className: "small-button" }, "Close");
    const scroll = make("div", { className: "table-scroll", tabIndex: 0 }, make("table", { className: "routing" }, head, body));
    scroll.setAttribute("role", "region");
    scroll.setAttribute("aria-label", titleOf(graph));
    const box = make("dialog", { className: "keys panel table-dialog" }, make("h2", {}, titleOf(graph)), scroll, close);
    close.addEventListener("click", () => box.close());
    box.addEventListener("close", () => box.remove());
    document.body.append(box);
    box.showModal();
  }

  function toggleLog(graph) {
    const axis = graph._fullLayout.yaxis.type === "log" ? "linear" : "log";
    graph.internistAxis = axis;
    window.Plotly.relayout(graph, { "yaxis.type": axis, "yaxis.autorange": true, "yaxis.tickmode": "auto" });
    return axis === "log";
  }

  function smoothed(values) {
    const keep = 1 - 1 / Math.max(3, values.length / SMOOTH_SHARE);
    let before = null, weight = 0;
    return Array.from(values, (value) => {
      if (!isNumber(value)) return null;
      before = keep * (before ?? 0) + (1 - keep) * value;
      weight = keep * weight + (1 - keep);
      return before / weight;
    });
  }

  /** A smoothed line over the raw one, which stays, faint. */
  function toggleSmooth(graph) {
    const there = graph.data.findIndex((trace) => trace.isSmoothed);
    const place = graph.data.findIndex((trace) => trace.name && trace.name !== "lr" && trace.mode && trace.mode.startsWith("lines") && trace.line && trace.line.width === 1.75);
    graph.internistSmooth = there < 0;
    if (there >= 0) {
      window.Plotly.deleteTraces(graph, there);
      if (place >= 0) window.Plotly.restyle(graph, { opacity: 1 }, [place]);
      return false;
    }
    if (place < 0) return false;
    const raw = graph._fullData[place];
    window.Plotly.restyle(graph, { opacity: 0.35 }, [place]);
    window.Plotly.addTraces(graph, { x: Array.from(raw.x), y: smoothed(raw.y), mode: "lines", line: { color: raw.line.color, width: 2 }, name: plain(raw.name) + SMOOTHED, hoverinfo: "skip", isSmoothed: true });
    return true;
  }

  function item(said, act) {
    const button = make("button", { type: "button", className: "plain" }, said);
    button.addEventListener("click", (event) => {
      event.stopPropagation();
      act(button);
    });
    return button;
  }

  function copyLink() {
    return navigator.clipboard ? navigator.clipboard.writeText(location.href) : Promise.reject(new Error("no clipboard"));
  }

  function menu(id) {
    const on = (button, isOn) => button.setAttribute("aria-pressed", String(isOn));
    const items = [
      item("show as a table", () => showTable(plotOf(id))),
      item("save as CSV", () => save(csv(rowsOf(plotOf(id))), fileName(plotOf(id), ".csv"))),
      item("save as PNG", () => window.Plotly.downloadImage(plotOf(id), { format: "png", scale: 2, filename: fileName(plotOf(id), "") })),
      item("save as SVG", () => window.Plotly.downloadImage(plotOf(id), { format: "svg", filename: fileName(plotOf(id), "") })),
      item("copy the link to this view", (button) => copyLink().then(() => { button.textContent = "copied"; }, () => { button.textContent = location.href; })),
    ];
    if (NAMES[id].lines) items.unshift(item("logarithmic axis", (button) => on(button, toggleLog(plotOf(id)))), item("smoothed", (button) => on(button, toggleSmooth(plotOf(id)))));
    const summary = make("summary", { title: "what can be done with this chart" }, "⋯");
    summary.setAttribute("aria-label", "what can be done with this chart");
    const box = make("details", { className: "chart-menu" }, summary, make("div", { className: "chart-menu-items panel" }, ...items));
    box.addEventListener("keydown", (event) => { if (event.key === "Escape" && box.open) { box.open = false; summary.focus(); event.stopPropagation(); } });
    document.addEventListener("click", (event) => { if (!box.contains(event.target)) box.open = false; });
    return box;
  }

  /** What a chart shows, in words. */
  function describe(graph) {
    const sentence = document.querySelector(".sentence-text");
    const range = graph._fullLayout.xaxis && graph._fullLayout.xaxis.range;
    const steps = range && graph._fullLayout.xaxis.type === "linear" ? `, steps ${Math.max(0, Math.ceil(range[0]))} to ${Math.floor(range[1])}` : "";
    return `${titleOf(graph)}${steps}. ${sentence ? sentence.textContent : ""} Its numbers are in the chart's menu, as a table.`;
  }

  function tend() {
    for (const id of Object.keys(NAMES)) {
      const graph = plotOf(id);
      if (!graph || !graph._fullLayout) continue;
      const label = describe(graph);
      if (graph.getAttribute("aria-label") !== label) {
        graph.setAttribute("role", "img");
        graph.setAttribute("aria-label", label);
      }
      const holder = document.getElementById(id);
      const panel = holder && holder.closest(".panel, .mantine-Drawer-body");
      const head = panel && panel.querySelector(":scope > .panel-head");
      if (panel && !panel.querySelector(".chart-menu")) head ? head.append(menu(id)) : holder.before(menu(id));
      /* A chart that was drawn anew keeps what was chosen for it. */
      if (graph.internistAxis && graph._fullLayout.yaxis.type !== graph.internistAxis) window.Plotly.relayout(graph, { "yaxis.type": graph.internistAxis, "yaxis.autorange": true, "yaxis.tickmode": "auto" });
      if (graph.internistSmooth && !graph.data.some((trace) => trace.isSmoothed)) toggleSmooth(graph);
    }
  }

  setInterval(tend, 1000);
})();
