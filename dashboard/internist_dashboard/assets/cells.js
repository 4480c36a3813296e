/* The cells of heat maps: what is sent are values and ratios in few digits; colours, and what a cell says of itself, are
   made of them here, for whole charts and for news alike. They are drawn on an even grid of steps, of which Plotly makes a
   small picture that it only stretches; on columns at any distance it would paint, and pack, each pixel anew. */
(function () {
  "use strict";

  const RATIO_STEPS = 64; /* of one, in which log-ratios are sent whole */
  const LEAST = -2, MOST = 2, FARTHEST = 9; /* of the colours; ratios beyond stay, up to the last, for what they say */
  const UNJUDGED = -2.5;
  const MOST_LOGIT = 3;
  const GRID = 480; /* columns: two pixels each on a wide screen */
  const isNumber = (value) => typeof value === "number";

  /** The colour of a log-ratio: what is not finite is farthest out, what was measured and not judged has its own. */
  function ofRatio(value, ratio) {
    if (value !== null && !isNumber(value)) return MOST;
    if (ratio !== null) return Math.min(Math.max(ratio, LEAST), FARTHEST);
    return value === null ? null : UNJUDGED;
  }

  function ofLogit(value) {
    return value === null ? null : isNumber(value) ? Math.log10(Math.max(1, value)) : MOST_LOGIT;
  }

  function says(value, ratio, step, against) {
    return [value, ratio === null ? "not judged" : `${Number((2 ** ratio).toPrecision(3))}× ${against || "its band"}`, step];
  }

  /** A figure as it is drawn: cells that were sent have become colours and texts. */
  function unfold(figure) {
    if (!figure || !figure.data) return figure;
    return { ...figure, data: figure.data.map((trace) => (trace.cells ? unfolded(trace) : trace)) };
  }

  function unfolded({ cells, ...trace }) {
    const { values, ratios, ago, against } = cells;
    if (!ratios) return onGrid(trace, { steps: trace.x, z: values.map((row) => row.map(ofLogit)), details: values.map((row) => row.map((value, j) => [value, trace.x[j]])) });
    const logs = ratios.map((row) => row.map((ratio) => (ratio === null ? null : ratio / RATIO_STEPS)));
    return onGrid(trace, {
      steps: trace.x,
      z: values.map((row, i) => row.map((value, j) => ofRatio(value, logs[i][j]))),
      details: values.map((row, i) => row.map((value, j) => says(value, logs[i][j], trace.x[j] - ago[i][j], against))),
    });
  }

  /** A trace that draws these columns, and holds them as they are: the nearest one stands at each place of the grid. */
  function onGrid(trace, held) {
    const { steps } = held;
    if (steps.length < 2) return { ...trace, held, x: steps, z: held.z, customdata: held.details };
    const end = steps.length - 1;
    const low = steps[0] - (steps[1] - steps[0]) / 2, high = steps[end] + (steps[end] - steps[end - 1]) / 2;
    const x = Array.from({ length: GRID }, (_, i) => low + ((i + 0.5) * (high - low)) / GRID);
    let near = 0;
    const places = x.map((at) => {
      while (near < end && Math.abs(steps[near + 1] - at) < Math.abs(steps[near] - at)) near += 1;
      return near;
    });
    const spread = (rows) => rows.map((row) => places.map((place) => row[place]));
    return { ...trace, held, x, z: spread(held.z), customdata: spread(held.details) };
  }

  /** What a trace holds, column by column. */
  function heldBy(trace) {
    return trace._input.held;
  }

  /** What of a trace changes with new columns at its end. */
  function extended(trace, steps, z, details) {
    const held = heldBy(trace);
    const joined = (rows, more) => rows.map((row, i) => [...row, ...more[i]]);
    const { x, z: colours, customdata, held: now } = onGrid({}, { steps: [...held.steps, ...steps], z: joined(held.z, z), details: joined(held.details, details) });
    return { x: [x], z: [colours], customdata: [customdata], held: [now] };
  }

  window.internistCells = { unfold, ofRatio, ofLogit, says, heldBy, extended };
})();
