/* News of the run that is drawn: one small answer a tick, whose points are added to the charts where they are. What
   changes more than numbers, and every half minute, is drawn anew by the server. */
(function () {
  "use strict";

  const WHOLE_MS = 30000;
  const GROWTH = 1.25; /* charts that have grown so much are thinned anew */
  const MOST_STEPS = 60;
  const state = { epoch: null, drawnAt: 0, drawnLast: 0, isAsking: false };
  const plot = (id) => document.querySelector(`#${id} .js-plotly-plot`);
  const connection = window.internistConnection;
  const cells = window.internistCells;

  function whole(change) {
    state.drawnAt = Date.now();
    state.epoch = null;
    state.drawnLast = change.step || 0;
    window.dash_clientside.set_props("tick", { data: { cursor: change.cursor, state: change.state } });
  }

  function last(values) {
    return values && values.length ? Number(values[values.length - 1]) : null;
  }

  function traceOf(graph, index) {
    return graph && graph._fullData && graph._fullData[index];
  }

  /** What is drawn now, as the question for what is new; nothing where a chart is not there yet. */
  function question() {
    const lossGraph = plot("loss-graph"), heatGraph = plot("heat-graph"), logitGraph = plot("logit-graph");
    if (!lossGraph || !lossGraph.layout.meta || !heatGraph) return null;
    const first = traceOf(heatGraph, 0);
    const heat = first && first.type === "heatmap" && first.x.length ? cells.heldBy(first) : null; /* none while all warms up */
    const params = new URLSearchParams(location.search);
    const lines = Object.values(lossGraph.layout.meta.lines);
    const heads = logitGraph && Array.isArray(logitGraph.layout.meta) ? logitGraph.layout.meta.map((row) => row.series) : [];
    const ends = [lossGraph.layout.meta.last, heat && last(heat.steps)].filter((x) => x !== null && x !== undefined);
    const asked = new URLSearchParams({ after: String(Math.min(...ends)), lines: lines.join(","), heads: heads.join(",") });
    const picked = document.getElementById("metric");
    if (heat && picked && picked.value) asked.set("metric", picked.value);
    for (const name of ["open", "filter"]) if (params.get(name)) asked.set(name, params.get(name));
    return asked;
  }

  /** Take a change: as news if the charts can take them, else by drawing everything anew. */
  function take(run, change) {
    const isZoomed = new URLSearchParams(location.search).has("steps");
    const asked = isZoomed ? new URLSearchParams({ after: String(change.step || 0) }) : question();
    const isOld = Date.now() - state.drawnAt > WHOLE_MS;
    const hasGrown = change.step !== null && state.drawnLast > 0 && change.step > GROWTH * state.drawnLast;
    if (!asked || isOld || hasGrown || (!isZoomed && change.step - Number(asked.get("after")) < 0)) return whole(change);
    asked.set("cursor", change.cursor);
    state.isAsking = true;
    connection
      .ask(`_board/runs/${encodeURIComponent(run)}/news?${asked}`)
      .then((answer) => (answer.ok ? answer.json() : Promise.reject(new Error(String(answer.status)))))
      .then((news) => {
        connection.hear();
        if (window.internistLive.run() !== run) return;
        if ((state.epoch !== null && news.epoch !== state.epoch) || !fits(news)) return whole(change);
        state.epoch = news.epoch;
        tell(news);
        return isZoomed ? null : draw(run, news);
      })
      .catch((error) => (error instanceof TypeError ? connection.lose() : whole(change)))
      .finally(() => { state.isAsking = false; });
  }

  /** Whether the charts that are drawn have a place for everything that is new. */
  function fits(news) {
    const heat = traceOf(plot("heat-graph"), 0);
    if (news.heat && (news.heat.marked || news.heat.x.length > MOST_STEPS || (heat && news.heat.rows !== heat.z.length))) return false;
    return [...Object.values(news.lines), ...Object.values(news.heads)].every((one) => !one.marked && one.x.length <= MOST_STEPS);
  }

  function tell(news) {
    window.dash_clientside.set_props("badge", { children: news.badge });
    for (const [name, value] of Object.entries(news.facts)) {
      if (document.getElementById(`fact-${name}`)) window.dash_clientside.set_props(`fact-${name}`, { children: value });
    }
  }

  const painted = () => new Promise((done) => requestAnimationFrame(done));

  /** The line first, and each heat map in a frame of its own: what is quick is seen at once. */
  async function draw(run, news) {
    for (const [id, extend] of [["loss-graph", extendLines], ["heat-graph", extendHeat], ["logit-graph", extendLogits]]) {
      if (window.internistLive.run() !== run || !fits(news)) return; /* drawn anew meanwhile, or another page */
      extend(plot(id), news);
      await painted();
    }
  }

  function extendHeat(heatGraph, news) {
    if (news.heat && news.heat.x.length) {
      const { x, values, ratios, against } = news.heat;
      extendRows(heatGraph, news, x, values.map((row, i) => row.map((value, j) => cells.ofRatio(value, ratios[i][j]))),
        (i, j) => cells.says(values[i][j], ratios[i][j], x[j], against));
    } else extendRows(heatGraph, news, [], [], null);
  }

  function extendLogits(logitGraph, news) {
    const meta = logitGraph && logitGraph.layout.meta;
    if (!Array.isArray(meta)) return;
    const rows = meta.map((row) => news.heads[row.series] || { x: [], y: [] });
    const steps = [...new Set(rows.flatMap((row) => row.x))].sort((a, b) => a - b);
    const values = rows.map((row) => steps.map((step) => { const at = row.x.indexOf(step); return at < 0 ? null : row.y[at]; }));
    extendRows(logitGraph, news, steps, values.map((row) => row.map(cells.ofLogit)), (i, j) => [values[i][j], steps[j]]);
  }

  function extendLines(graph, news) {
    if (!graph || !graph.layout.meta) return;
    const meta = graph.layout.meta;
    const xs = [], ys = [], places = [];
    for (const [place, series] of Object.entries(meta.lines)) {
      const line = news.lines[series];
      const end = last(traceOf(graph, Number(place)).x);
      const fresh = line ? line.x.map((x, i) => [x, line.y[i]]).filter(([x]) => end === null || x > end) : [];
      if (!fresh.length) continue;
      xs.push(fresh.map(([x]) => x));
      ys.push(fresh.map(([, y]) => y));
      places.push(Number(place));
    }
    meta.last = news.last;
    if (places.length) {
      const traces = places.map((place) => traceOf(graph, place));
      window.Plotly.update(graph, { x: traces.map((t, i) => [...t.x, ...xs[i]]), y: traces.map((t, i) => [...t.y, ...ys[i]]) }, span(graph, news), places);
    } else window.Plotly.relayout(graph, span(graph, news));
  }

  function extendRows(graph, news, steps, z, detail) {
    const trace = traceOf(graph, 0);
    if (!trace || trace.type !== "heatmap") return;
    const end = last(cells.heldBy(trace).steps);
    const fresh = steps.map((step, j) => [step, j]).filter(([step]) => end === null || step > end);
    const layout = span(graph, news);
    if (graph.layout.images && graph.layout.images.length) layout["images[0].sizex"] = news.last - graph.layout.images[0].x;
    if (!fresh.length) return window.Plotly.relayout(graph, layout);
    const added = cells.extended(trace, fresh.map(([step]) => step), z.map((row) => fresh.map(([, j]) => row[j])), z.map((_, i) => fresh.map(([, j]) => detail(i, j))));
    window.Plotly.update(graph, added, layout, [0]);
  }

  /** All charts of the page show the same steps, with the room at their ends that the server gives them. */
  function span(graph, news) {
    const first = graph.layout.xaxis.range[0];
    const start = graph.layout.meta && graph.layout.meta.first !== undefined ? graph.layout.meta.first : Math.max(0, Math.ceil(first));
    return { "xaxis.range": [first, news.last + Math.max(0.5, 0.012 * (news.last - start))] };
  }

  window.internistNews = { take, isAsking: () => state.isAsking, forget() { state.epoch = null; state.drawnAt = Date.now(); state.drawnLast = 0; } };
})();
