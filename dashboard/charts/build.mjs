/* Bundles what the board needs of plotly.js, a quarter of the whole. Texts that describe attributes are left out, as
   Plotly's own bundles do. */
import { build } from "esbuild";
import { readFile } from "node:fs/promises";

const INTO = "../internist_dashboard/assets/plotly.min.js";
const STRING = String.raw`(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")`;
const JOINED = String.raw`\[(?:\s|,|${STRING})*\]\s*\.join\(${STRING}\)`;
const DESCRIBING = new RegExp(String.raw`\b(?:description|role|hrName):\s*(?:${STRING}|${JOINED})\s*(?:,|(?=\}))`, "g");

const undescribed = {
  name: "undescribed",
  setup(bundle) {
    bundle.onLoad({ filter: /attributes.*\.js$/ }, async ({ path }) => ({
      contents: (await readFile(path, "utf8")).replace(DESCRIBING, ""),
      loader: "js",
    }));
  },
};

/* Of maps, which are not drawn here. */
const unstyled = {
  name: "unstyled",
  setup(bundle) {
    bundle.onLoad({ filter: /\.css$/ }, () => ({ contents: "", loader: "empty" }));
  },
};

const { version } = JSON.parse(await readFile("node_modules/plotly.js/package.json", "utf8"));
await build({
  entryPoints: ["charts.js"],
  outfile: INTO,
  bundle: true,
  minify: true,
  format: "iife",
  globalName: "Plotly",
  target: "es2020",
  define: { global: "window", "define.amd": "false" },
  banner: { js: `/* plotly.js ${version}, lines and heat maps alone. Copyright Plotly, Inc.; MIT license. */` },
  legalComments: "eof",
  plugins: [undescribed, unstyled],
});
