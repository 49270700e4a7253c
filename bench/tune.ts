/** `tune`: which tiles suit the matrix units of this card, kept for the other commands. */
import { UnsupportedError } from "@flashtape/flashtape";
import type { MatmulTuning, MatrixSizes } from "@flashtape/flashtape/dawn";
import { join } from "node:path";
import { UsageError } from "./files.ts";
import { deviceLine } from "./machine.ts";
import { measures, type Settings, whole } from "./options.ts";
import type { Context, Take } from "./plan.ts";
import { emptyRow, type Result, type Row } from "./record.ts";
import { digits, table } from "./table.ts";
import { tilesFile, tilesFolder } from "./tiles.ts";

interface TuneSizes {
  readonly large: number;
  readonly small: number;
}

const sizesOf = ({ bm, bn, bk, wm, wn }: MatrixSizes) => ({ tile: `${bm}x${bn}x${bk}`, subgroup: `${wm}x${wn}` });

async function measureTiles(
  { large, small }: TuneSizes,
  { backend, settings, progress }: Context,
): Promise<{ rows: Row[]; tuning: MatmulTuning }> {
  const { builtInMatmulTable, tuneMatmul } = await import("@flashtape/flashtape/dawn");
  let tuning: MatmulTuning;
  try {
    tuning = await tuneMatmul(backend, {
      ...{ large, small, runs: settings.repeats, ramp: settings.ramp },
      onProgress: (done, of, tile, rate) => {
        if (done === 1) progress.start(of);
        progress.done({ ...emptyRow(`tile ${tile}`, {}), figures: { "TFLOP/s": rate } });
      },
    });
  } catch (error) {
    if (!(error instanceof UnsupportedError)) throw error;
    throw new UsageError(
      `--provider ${settings.provider}: ${error.message}. Tiles are of matrix units, which --provider dawn reaches on cards that have them`,
    );
  } finally {
    progress.stop();
  }
  const usual = builtInMatmulTable(backend).tiles.map((tile) => ({ ...tile, ...sizesOf(tile) }));
  const rows = tuning.table.tiles.map((tile): Row => {
    const labels = sizesOf(tile);
    const before = usual.find(({ tile, subgroup }) => tile === labels.tile && subgroup === labels.subgroup);
    return {
      ...emptyRow(`tile ${labels.tile}, subgroup ${labels.subgroup}`, labels),
      figures: {
        ...{ "TFLOP/s": tile.rate, "workgroups wanted": tile.wanted },
        ...before && { "built-in TFLOP/s": before.rate, "built-in workgroups wanted": before.wanted },
      },
    };
  });
  return { rows, tuning };
}

/** Where the tiles will be kept. */
function folderOf(settings: Pick<Settings, "cache">): string | null {
  const folder = tilesFolder(settings);
  if (folder !== null || settings.cache === false) return folder;
  throw new UsageError(
    "--cache: the environment names no folder for what this user keeps. Allowed: --cache DIR, --no-cache",
  );
}

/** The `tune` command. */
export function tune(take: Take) {
  return measures("tune", "Which tiles suit this card's matrix units; other commands on Dawn use what it finds.", {
    ...{ repeats: 9, provider: "dawn" },
  })
    .option("--large <n>", "rows, columns and terms of the product that fills the card", whole(1, 16_384), 4096)
    .option("--small <n>", "those of the product that does not", whole(1, 16_384), 1024)
    .action((options) => {
      const folder = folderOf(options);
      let found: MatmulTuning | undefined;
      take({
        command: "tune",
        settings: { ...options, cache: false }, // earlier tiles are not what is measured
        writes: folder === null ? [] : [["--cache", join(folder, "matmul.json")]],
        measure: async (context) => {
          const { rows, tuning } = await measureTiles(options, context);
          found = tuning;
          return rows;
        },
        files: () =>
          Promise.resolve(
            folder === null || found === undefined
              ? {}
              : { [tilesFile(folder, found.device, options.robustness)]: `${JSON.stringify(found, null, 2)}\n` },
          ),
        report,
      });
    });
}

function report(result: Result): string {
  const head = ["tile", "subgroup", "TFLOP/s", "built in", "workgroups wanted", "built in"];
  const show = (value: number | undefined) => value === undefined ? "" : digits(value);
  const lines = result.rows.map(({ labels, figures = {} }) => [
    ...[String(labels.tile), String(labels.subgroup), show(figures["TFLOP/s"]), show(figures["built-in TFLOP/s"])],
    ...[show(figures["workgroups wanted"]), show(figures["built-in workgroups wanted"])],
  ]);
  return `${
    deviceLine(result)
  }; f16 products, GPU timestamps; wanted: workgroups that a multiprocessor needs for the rate\n\n${
    table(head, lines, 2)
  }`;
}
