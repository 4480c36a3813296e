/* Bundles what the board needs of plotly.js, a quarter of the whole, without the texts that describe attributes; and the
   one part that Dash's scripts need of the polyfill for old browsers. */
import { build } from "esbuild";
import { readFile } from "node:fs/promises";

const ASSETS = "../internist_dashboard/assets";
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

const shared = { bundle: true, minify: true, target: "es2020", legalComments: "eof" };
const { version } = JSON.parse(await readFile("node_modules/plotly.js/package.json", "utf8"));
await build({
  ...shared,
  entryPoints: ["charts.js"],
  outfile: `${ASSETS}/plotly.min.js`,
  format: "iife",
  globalName: "Plotly",
  define: { global: "window", "define.amd": "false" },
  banner: { js: `/* plotly.js ${version}, lines and heat maps alone. Copyright Plotly, Inc.; MIT license. */` },
  plugins: [undescribed, unstyled],
});
await build({
  ...shared,
  entryPoints: ["node_modules/regenerator-runtime/runtime.js"],
  outfile: `${ASSETS}/regenerator.min.js`,
  banner: { js: "/* regenerator-runtime. Copyright (c) 2014-present, Facebook, Inc.; MIT license. */" },
});
