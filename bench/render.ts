/** Charts as files: Vega-Lite to SVG, SVG to PNG. */
import type { TopLevelSpec } from "npm:vega-lite@6.5.0";

/** A chart as both kinds of file. */
export interface Drawn {
  readonly svg: string;
  readonly png: Uint8Array;
}

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
  const picture = new Resvg(svg, { fitTo: { mode: "zoom", value: scale }, font: { defaultFontFamily: "sans-serif" } });
  return { svg: `${svg}\n`, png: picture.render().asPng() };
}
