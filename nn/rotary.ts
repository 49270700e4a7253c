/** Rotary position embedding: tables of angles, with the scaling that stretches Llama 3's context. */
import { type Backend, getBackend } from "../tensor/backend.ts";
import { tensor } from "../tensor/create.ts";
import { ValueError } from "../tensor/errors.ts";
import type { Tensor } from "../tensor/tensor.ts";

/** How frequencies are stretched for contexts longer than the trained one. */
export type RotaryScaling =
  | { readonly type: "linear"; readonly factor: number }
  | {
    readonly type: "llama3";
    readonly factor: number;
    readonly lowFreqFactor: number;
    readonly highFreqFactor: number;
    readonly originalMaxPositions: number;
  };

/** Options of {@linkcode rotaryFrequencies}. */
export interface RotaryFrequencyOptions {
  /** Size of a head, even. */
  readonly headDim: number;
  /** The base of the wavelengths; 10,000 when not given. */
  readonly theta?: number;
  /** None when not given. */
  readonly scaling?: RotaryScaling;
}

/**
 * θ^(−2i/D) for i from 0 to D/2 − 1, scaled: radians a position (Su et al. 2021, arXiv:2104.09864).
 * @throws {ValueError} when the head size is odd or an option is out of its range
 */
export function rotaryFrequencies(
  { headDim, theta = 10_000, scaling }: RotaryFrequencyOptions,
): Float64Array<ArrayBuffer> {
  if (!Number.isInteger(headDim) || headDim <= 0 || headDim % 2 !== 0) {
    throw new ValueError("rotary", `the head size is an even number above 0, got ${headDim}`);
  }
  if (!(theta > 0 && theta < Infinity)) throw new ValueError("rotary", `theta is a number above 0, got ${theta}`);
  return Float64Array.from({ length: headDim / 2 }, (_, i) => stretch(theta ** (-2 * i / headDim), scaling));
}

/**
 * Short waves stay, long waves are stretched by `factor`, and between them llama3 goes from one to the other by how
 * often the wave fits into the original context.
 */
function stretch(frequency: number, scaling: RotaryScaling | undefined): number {
  if (scaling === undefined) return frequency;
  const { factor } = scaling;
  if (!(factor > 0)) throw new ValueError("rotary", `the scaling factor is a number above 0, got ${factor}`);
  if (scaling.type === "linear") return frequency / factor;
  const { lowFreqFactor: low, highFreqFactor: high, originalMaxPositions: length } = scaling;
  if (!(low > 0 && high > low && length > 0)) {
    throw new ValueError("rotary", `llama3 scaling needs 0 < low < high and a length, got ${low}, ${high}, ${length}`);
  }
  const wavelength = 2 * Math.PI / frequency;
  if (wavelength < length / high) return frequency;
  if (wavelength > length / low) return frequency / factor;
  const smooth = (length / wavelength - low) / (high - low);
  return (1 - smooth) * frequency / factor + smooth * frequency;
}

/**
 * cos and sin of position · frequency, computed in f64: an f32 product would lose the angle at far positions.
 *
 * @param frequencies radians a position, for each pair of a head
 * @param positions how many positions, from 0
 * @returns two tensors f32 `[positions, frequencies]`, as `rotaryEmbedding` takes them
 */
export function rotaryTables(
  frequencies: ArrayLike<number>,
  positions: number,
  { backend = getBackend() }: { readonly backend?: Backend } = {},
): { cos: Tensor; sin: Tensor } {
  const half = frequencies.length, shape = [positions, half];
  const cos = new Float32Array(positions * half), sin = new Float32Array(positions * half);
  for (let p = 0; p < positions; p++) {
    for (let i = 0; i < half; i++) {
      cos[p * half + i] = Math.cos(p * frequencies[i]);
      sin[p * half + i] = Math.sin(p * frequencies[i]);
    }
  }
  return { cos: tensor(cos, { shape, backend }), sin: tensor(sin, { shape, backend }) };
}
