/** Charts as files: Vega-Lite to SVG, SVG to PNG. */
import type { TopLevelSpec } from "npm:vega-lite@6.5.0";

/** A chart as both kinds of file. */
export interface Drawn {
  readonly svg: string;
  readonly png: Uint8Array;
}

let warned = false;

/**
 * Draws a chart.
 * @param scale pixels of the PNG for each of the chart's own
 */
export async function draw(spec: TopLevelSpec, { scale = 2 } = {}): Promise<Drawn> {
  const [vega, { compile }, { Resvg }] = await Promise.all([
    import("npm:vega@6.4.0"),
    import("npm:vega-lite@6.5.0"),
    import("npm:@resvg/resvg-js@2.6.2"),
  ]);
  const view = new vega.View(vega.parse(compile(spec).spec), { renderer: "none" });
  const svg = await view.toSVG();
  view.finalize();
  const letter = `<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><text y="9">M</text></svg>`;
  if (new Resvg(letter).getBBox() === undefined && !warned) {
    warned = true;
    console.error("no fonts here: the PNGs have no text, the SVGs do (on Debian: apt-get install fonts-dejavu-core)");
  }
  const picture = new Resvg(svg, { fitTo: { mode: "zoom", value: scale }, font: { defaultFontFamily: "sans-serif" } });
  return { svg: `${svg}\n`, png: picture.render().asPng() };
}
