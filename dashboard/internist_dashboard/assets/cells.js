/* The cells of heat maps: what is sent are values and ratios in few digits; colours, and what a cell says of itself, are
   made of them here, for whole charts and for news alike. */
(function () {
  "use strict";

  const RATIO_STEPS = 64; /* of one, in which log-ratios are sent whole */
  const LEAST = -2, MOST = 2, FARTHEST = 9; /* of the colours; ratios beyond stay, up to the last, for what they say */
  const UNJUDGED = -2.5;
  const MOST_LOGIT = 3;
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
    if (!ratios) return { ...trace, z: values.map((row) => row.map(ofLogit)), customdata: values };
    const logs = ratios.map((row) => row.map((ratio) => (ratio === null ? null : ratio / RATIO_STEPS)));
    return {
      ...trace,
      z: values.map((row, i) => row.map((value, j) => ofRatio(value, logs[i][j]))),
      customdata: values.map((row, i) => row.map((value, j) => says(value, logs[i][j], trace.x[j] - ago[i][j], against))),
    };
  }

  window.internistCells = { unfold, ofRatio, ofLogit, says };
})();
