/** `profile`: where the time of another command goes, kernel by kernel. */
import { dispose, LimitError, profile, UnsupportedError } from "@flashtape/flashtape";
import { expectWritable, refuseFiles, UsageError, writeAll } from "./files.ts";
import { memoryLimit, openBackend } from "./machine.ts";
import { command, path } from "./options.ts";
import { callOf, expectFigures, type Prepared, type Tools } from "./plan.ts";
import { emptyRow, type Row } from "./record.ts";
import { bytes } from "./table.ts";

/** An event of the Trace Event Format. */
interface TraceEvent {
  readonly ph: string;
  pid: number;
  args: Record<string, unknown>;
}

/** The `profile` command. */
export function profiled({ planOf, io, run }: Tools) {
  return command("profile", "A table of the kernels that another command runs, and a trace for ui.perfetto.dev.")
    .usage("[options] <command> [flags of that command]")
    .argument("<command...>", "a command with its flags, such as: attention --seqlen 2048")
    .option("--trace <file>", "write a Chrome trace, each case a process of its own", path)
    .passThroughOptions()
    .action((args, { trace }) => run(() => profileAll(args, trace)));

  async function profileAll(args: string[], trace: string | undefined): Promise<number> {
    refuseFiles("profile", args, "profile --trace FILE attention …");
    const plan = planOf(args);
    if (plan.cases === undefined) {
      throw new UsageError(
        `profile: ${plan.command} cannot be profiled. Allowed: attention, compare, layers, model, suite`,
      );
    }
    if (trace !== undefined) expectWritable("--trace", trace);
    const backend = await openBackend(plan.settings, io), limit = memoryLimit(backend, plan.settings);
    const events: TraceEvent[] = [], rows: Row[] = [];
    const leaveOut = (row: Row, reason: string) => {
      rows.push({ ...row, skipped: { reason, predictedBytes: null } });
      io.out(`${row.name}: left out, ${reason}\n\n`);
    };
    for (const [i, it] of plan.cases(backend).entries()) {
      const row = emptyRow(it.name, it.labels), { predictedBytes = 0 } = it;
      if (predictedBytes > limit) {
        leaveOut(row, `it would need ${bytes(predictedBytes)} of at most ${bytes(limit)} (--memory-limit)`);
        continue;
      }
      let prepared: Prepared | undefined;
      try {
        prepared = it.prepare();
        const call = callOf(prepared);
        prepared.begin?.();
        for (let n = -1; n < plan.settings.warmup; n++) dispose(call()); // the first one compiles
        const found = await profile(call);
        dispose(found.value);
        rows.push(row);
        io.out(`${it.name}\n${found.table()}\n\n`);
        const { traceEvents }: { traceEvents: TraceEvent[] } = JSON.parse(found.chromeTrace());
        for (const event of traceEvents) {
          if (event.ph === "M") event.args = { name: it.name };
          events.push({ ...event, pid: i + 1 });
        }
      } catch (error) {
        if (error instanceof UnsupportedError) throw new UsageError(`profile: ${error.message}`);
        if (!(error instanceof LimitError)) throw error;
        leaveOut(row, error.message);
      } finally {
        prepared?.end?.();
        dispose(prepared?.inputs);
      }
    }
    expectFigures(rows, plan);
    if (trace === undefined) return 0;
    writeAll({ [trace]: JSON.stringify({ displayTimeUnit: "ms", traceEvents: events }) });
    io.out(`trace in ${trace}: open it in ui.perfetto.dev or chrome://tracing\n`);
    return 0;
  }
}
