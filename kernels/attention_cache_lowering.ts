/** From the cache's ops to dispatches: append, rotate, attend. */
import type { CacheAppendParams, CacheAttentionParams } from "../tensor/attention_cache.ts";
import { named } from "../tensor/attention_options.ts";
import {
  cacheRows,
  type CacheRowsParams,
  type CacheRowsShape,
  planCacheRows,
  type RotaryTables,
} from "./attention_cache.ts";
import type { AttentionShape } from "./attention_common.ts";
import {
  type AttentionCall,
  dispatchNamed,
  flat,
  type Found,
  inRows,
  optionsOf,
  runForward,
  storageOf,
  stridesIn,
} from "./attention_lowering.ts";
import type { Lowering, View } from "./lowering.ts";

/** Positions that a batch row's cache can hold. */
function capacityOf(k: View, { blockTable }: Found): number {
  return blockTable ? blockTable.shape[1] * k.shape[1] : k.shape[1];
}

function rotaryOf({ cos }: Found, interleaved: boolean): RotaryTables | null {
  return cos === undefined ? null : { storage: storageOf(cos.dtype), width: 2 * cos.shape[1], interleaved };
}

/** Moves the rows of x to y, rotated where `rotary` says so. */
function moveRows(
  call: AttentionCall,
  x: View,
  y: View,
  lengths: View,
  found: Found,
  { rotary, place, capacity, page, advance }:
    & Pick<CacheRowsParams, "rotary" | "place">
    & Pick<CacheRowsShape, "capacity" | "page" | "advance">,
): void {
  const { cos, sin, cacheBatchIdx, blockTable } = found, [batch, count, heads, size] = x.shape;
  const params: CacheRowsParams = { from: storageOf(x.dtype), to: storageOf(y.dtype), size, rotary, place };
  const positions = rotary === null ? 0 : cos!.shape[0], pagesRow = blockTable?.shape[1] ?? 0;
  const plan = planCacheRows(
    params,
    { batch, count, heads, capacity, page, pagesRow, advance, positions },
    stridesIn(x),
  );
  const views: Record<string, View> = { x, y, lengths };
  if (rotary !== null) Object.assign(views, { cos: flat(call, cos!), sin: flat(call, sin!) });
  if (place === "index") views.index = flat(call, cacheBatchIdx!);
  if (place === "pages") views.pages = flat(call, blockTable!);
  dispatchNamed(call, cacheRows(params), views, plan);
}

/** New keys and values into the cache, in place. */
export function lowerCacheAppend(call: Lowering<CacheAppendParams>): void {
  const found = named(call.params.optional, call.inputs, 5), [kCache, vCache] = call.outputs;
  const [k, v] = call.inputs.slice(2, 4).map((x) => inRows(call, x)), lengths = flat(call, call.inputs[4]);
  const place = found.blockTable ? "pages" : found.cacheBatchIdx ? "index" : "cache";
  const at = { place, capacity: capacityOf(kCache, found), page: kCache.shape[1], advance: true } as const;
  moveRows(call, k, kCache, lengths, found, { ...at, rotary: rotaryOf(found, call.params.interleaved) });
  moveRows(call, v, vCache, lengths, found, { ...at, rotary: null });
}

/** Attention of queries over the cache. */
export function lowerCacheAttention(call: Lowering<CacheAttentionParams>): void {
  const { optional, added, interleaved, window, numSplits } = call.params;
  const found = named(optional, call.inputs, 4), { cacheBatchIdx, cacheLeftpad, blockTable } = found;
  const [k, v] = call.inputs.slice(1, 3).map((x) => inRows(call, x)), lengths = flat(call, call.inputs[3]);
  const rotary = rotaryOf(found, interleaved), capacity = capacityOf(k, found);
  let q = inRows(call, call.inputs[0]);
  const [batch, seqlenQ, heads, headDim] = q.shape;
  if (rotary !== null) {
    const turned = call.temporary(q.shape, "f32"), advance = window.some((n) => n >= 0);
    moveRows(call, q, turned, lengths, found, { rotary, place: "dense", capacity, page: 1, advance });
    q = turned;
  }
  const shape: AttentionShape = {
    batch,
    seqlenQ,
    seqlenK: capacity,
    heads,
    kvHeads: k.shape[2],
    headDim,
    valueDim: v.shape[3],
  };
  const options = optionsOf(call, call.params, found, shape);
  runForward(call, { q, k, v }, shape, {
    features: {
      ...options.features,
      lengths: "cache",
      leftpad: cacheLeftpad !== undefined,
      cacheIndex: cacheBatchIdx !== undefined,
      paged: blockTable !== undefined,
    },
    settings: { ...options.settings, added, pages: blockTable && { size: k.shape[1], row: blockTable.shape[1] } },
    bindings: {
      ...options.bindings,
      cacheLengths: lengths,
      ...(cacheLeftpad ? { leftpad: flat(call, cacheLeftpad) } : {}),
      ...(cacheBatchIdx ? { cacheIndex: flat(call, cacheBatchIdx) } : {}),
      ...(blockTable ? { pages: flat(call, blockTable) } : {}),
    },
  }, numSplits);
}
