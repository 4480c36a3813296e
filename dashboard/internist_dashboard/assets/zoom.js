/* The steps that all charts of a run show, and the step that is pointed at: dragging, the wheel or a button in one of them
   changes all. Charts show other steps at once, by the numbers they hold; the server sends finer ones after. */
(function () {
  "use strict";

  const CHARTS = ["loss-graph", "heat-graph", "logit-graph", "optimizer-graph"];
  const REST_MS = 250; /* the wheel has come to rest */
  const STEPS = { in: [0.25, 0.75], out: [-0.5, 1.5], earlier: [-0.5, 0.5], later: [0.5, 1.5] };
  const WHEEL = 0.0015;
  const state = { range: null, isDrawing: false, resting: null, pointed: null };

  const shown = () => CHARTS.map((id) => document.querySelector(`#${id} .js-plotly-plot`)).filter((graph) => graph && graph._fullLayout && graph._fullLayout.xaxis && graph.offsetParent);

  /** All charts show these steps, one chart a frame. */
  function show(range) {
    const waiting = shown().filter((graph) => graph._fullLayout.xaxis.range.some((end, i) => end !== range[i]));
    (function next() {
      const graph = waiting.shift();
      if (!graph) return;
      if (graph.isConnected) move(graph, range);
      requestAnimationFrame(next);
    })();
  }

  /** A chart shows other steps, and tells nobody: the page knows, and to be told would have it all looked through again. */
  function move(graph, range) {
    const { emit } = graph;
    graph.emit = (name, ...rest) => name !== "plotly_relayout" && emit.call(graph, name, ...rest);
    window.Plotly.relayout(graph, { "xaxis.range": range }).finally(() => { graph.emit = emit; });
  }

  /** To drag to the same steps as the last time is news, too, once others were shown in between. */
  function forget() {
    for (const id of CHARTS) if (document.getElementById(id)) window.dash_clientside.set_props(id, { relayoutData: null });
  }

  /** Whole steps of what a chart shows, as the address and the server have them. */
  function windowOf([low, high]) {
    const first = Math.max(0, Math.floor(low));
    return { first, last: Math.max(first + 1, Math.ceil(high)) };
  }

  function settle(range) {
    const steps = windowOf(range);
    forget();
    window.internistView.remember({ steps: `${steps.first}-${steps.last}` });
    window.dash_clientside.set_props("window", { data: steps });
  }

  /** Part of what is shown, from a share of its width to another; no run has steps before its first. */
  function part([low, high], from, to) {
    const width = high - low;
    const ends = [low + from * width, low + to * width];
    const before = Math.max(0, -0.012 * (to - from) * width - ends[0]);
    return ends.map((end) => end + before);
  }

  function turn(event) {
    const graph = (event.ctrlKey || event.metaKey) && event.target.closest && event.target.closest(CHARTS.map((id) => `#${id}`).join());
    const plot = graph && shown().find((one) => graph.contains(one));
    if (!plot) return;
    event.preventDefault();
    const { _size: size, xaxis } = plot._fullLayout;
    const at = Math.min(1, Math.max(0, (event.clientX - plot.getBoundingClientRect().left - size.l) / size.w));
    const factor = Math.exp(Math.min(Math.max(event.deltaY, -400), 400) * WHEEL);
    state.range = part(state.range || xaxis.range, at - at * factor, at + (1 - at) * factor);
    if (!state.isDrawing) requestAnimationFrame(draw);
    state.isDrawing = true;
    clearTimeout(state.resting);
    state.resting = setTimeout(rest, REST_MS);
  }

  function draw() {
    state.isDrawing = false;
    if (state.range) show(state.range);
  }

  function rest() {
    const { range } = state;
    state.range = null;
    if (range && shown().length) settle(range);
  }

  /** A line at the step that is pointed at, in every chart. */
  function point(event) {
    const graph = event.target.closest && event.target.closest(".js-plotly-plot");
    const all = shown();
    const plot = all.includes(graph) ? graph : null;
    const size = plot && plot._fullLayout._size;
    const at = plot ? event.clientX - plot.getBoundingClientRect().left - size.l : -1;
    const step = plot && at >= 0 && at <= size.w ? plot._fullLayout.xaxis.p2d(at) : null;
    if (step === null && state.pointed === null) return;
    state.pointed = step;
    for (const one of all) mark(one, step);
  }

  function mark(graph, step) {
    let line = graph.querySelector(":scope > .pointed");
    if (!line) {
      line = document.createElement("div");
      line.className = "pointed";
      graph.append(line);
    }
    const { _size: size, xaxis } = graph._fullLayout;
    line.hidden = step === null || step < xaxis.range[0] || step > xaxis.range[1];
    if (line.hidden) return;
    line.style.transform = `translateX(${size.l + xaxis.d2p(step)}px)`;
    line.style.top = `${size.t}px`;
    line.style.height = `${size.h}px`;
  }

  document.addEventListener("wheel", turn, { passive: false });
  document.addEventListener("mousemove", point, { passive: true });
  document.addEventListener("click", (event) => {
    const button = event.target.closest && event.target.closest("[data-zoom]");
    const [plot] = button ? shown() : [];
    if (!plot) return;
    const range = part(plot._fullLayout.xaxis.range, ...STEPS[button.dataset.zoom]);
    show(range);
    settle(range);
  });

  window.internistZoom = { show, forget, windowOf };
})();
