/** `compare`: flash attention against the naive one, on the same inputs. */
import { type Backend, vjp } from "@flashtape/flashtape";
import { attends, callOf } from "./attention.ts";
import { type AttentionCall, attentionCase, attentionOf, partsOf, type Pass } from "./attention_cases.ts";
import { deviceLine } from "./machine.ts";
import type { Case, Take } from "./plan.ts";
import type { Result, Row } from "./record.ts";
import { bytes, digits, ms, table, times } from "./table.ts";
import type { Tensor } from "@flashtape/flashtape";

/** The `compare` command. */
export function compare(take: Take) {
  return attends("compare", "Flash attention against naive attention on one input: time, memory, difference.")
    .option("--no-grad", "leave out the backward pass")
    .action((options) => {
      const flash = callOf(options, "flash"), naive = callOf(options, "naive");
      const passes: Pass[] = options.grad ? ["forward", "backward"] : ["forward"];
      take({
        command: "compare",
        settings: options,
        sizedBy: ["--batch", "--seqlen", "--nheads", "--headdim"],
        cases: (backend) =>
          passes.flatMap((pass) => [attentionCase(naive, pass, backend), against(flash, naive, pass, backend)]),
        report,
      });
    });
}

/** The case of one call, its results compared with those of another. */
function against(call: AttentionCall, other: AttentionCall, pass: Pass, backend: Backend): Case {
  const it = attentionCase(call, pass, backend);
  const theirs = attentionOf(other, pass === "forward" ? partsOf(other, backend) : 1);
  return {
    ...it,
    prepare: () => {
      const made = it.prepare(), [q, k, v, dOut] = made.inputs as Tensor[];
      const forward = () => theirs(q, k, v), backward = () => vjp(theirs, q, k, v)[1](dOut);
      return { ...made, against: { name: other.algorithm, call: pass === "forward" ? forward : backward } };
    },
  };
}

function report(result: Result): string {
  const lines: string[][] = [];
  for (const pass of ["forward", "backward"]) {
    const of = (algorithm: string) =>
      result.rows.find(({ labels: at }) => at.pass === pass && at.algorithm === algorithm);
    const naive = of("naive"), flash = of("flash");
    if (naive === undefined || flash === undefined) continue;
    lines.push(line(naive, pass, "", ""), line(flash, pass, speedUp(naive, flash), lessMemory(naive, flash)));
  }
  const head = ["", "pass", "median ms", "speed-up", "peak memory", "less memory", "max diff", "mean diff"];
  const left = result.rows.filter(({ skipped }) => skipped !== undefined);
  const notes = left.map(({ name, skipped }) => `\n${name} was left out: ${skipped!.reason}`);
  return `${result.rows.at(-1)!.name}, ${deviceLine(result)}\n\n${table(head, lines, 2)}${notes.join("")}`;
}

function line(
  { labels, ms: timing, peakBytes, difference }: Row,
  pass: string,
  faster: string,
  less: string,
): string[] {
  const apart = difference === undefined ? ["", ""] : [digits(difference.max), digits(difference.mean)];
  return [String(labels.algorithm), pass, ms(timing?.median), faster, bytes(peakBytes), less, ...apart];
}

function speedUp(naive: Row, flash: Row): string {
  return naive.ms === null || flash.ms === null ? "" : times(naive.ms.median / flash.ms.median);
}

function lessMemory(naive: Row, flash: Row): string {
  return naive.peakBytes === null || flash.peakBytes === null ? "" : times(naive.peakBytes / flash.peakBytes);
}
