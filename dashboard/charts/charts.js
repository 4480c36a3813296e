/* Plotly with the two kinds of traces that the board draws: lines, and heat maps. */
var Plotly = require("plotly.js/lib/core");

Plotly.register(require("plotly.js/lib/heatmap"));

module.exports = Plotly;
