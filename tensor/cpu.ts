/** The CPU backend: runs each op's reference. It is the specification, and the fallback where there is no GPU. */
import {
  type Backend,
  type Capabilities,
  type Launch,
  type LaunchLog,
  type MemoryInfo,
  setFallback,
} from "./backend.ts";
import { decode, type DType, dtypes, encode, type HostArray, hostArray, roundTo } from "./dtype.ts";
import { UnsupportedError, ValueError } from "./errors.ts";
import { dense, type NdArray, type Op, type Spec } from "./op.ts";
import { type Layout, type Shape, sizeOf, stridesOf } from "./shape.ts";
import { type Storage, storageOf, type Tensor } from "./tensor.ts";

const capabilities: Capabilities = {
  f16: false,
  roundsF16: false,
  subgroups: false,
  subgroupSize: 0,
  subgroupMatrix: [],
  timestamps: false,
  maxBinding: Infinity,
  maxWorkgroupMemory: 0,
  maxInvocations: 0,
  maxWorkgroups: 0,
};

class CpuStorage implements Storage {
  refs = 0;
  constructor(readonly owner: CpuBackend, readonly data: HostArray) {
    owner.count(data.byteLength);
  }
  free(): void {
    this.owner.count(-this.data.byteLength);
  }
}

class CpuBackend implements Backend {
  readonly name = "cpu";
  readonly description = "CPU: plain loops over typed arrays";
  readonly capabilities = capabilities;
  readonly dtypes = Object.keys(dtypes) as DType[];
  #current = 0;
  #peak = 0;
  #launches: Launch[] | null = null;

  count(bytes: number): void {
    this.#current += bytes;
    this.#peak = Math.max(this.#peak, this.#current);
  }

  upload(dtype: DType, bytes: Uint8Array): Storage {
    return new CpuStorage(this, decode(dtype, bytes));
  }

  allocate(dtype: DType, size: number): Storage {
    return new CpuStorage(this, hostArray(dtype, size));
  }

  write(storage: Storage, dtype: DType, at: number, bytes: Uint8Array): void {
    (storage as CpuStorage).data.set(decode(dtype, bytes), at);
  }

  copy(x: Tensor): Storage {
    const from = this.#view(x, "copy"), data = hostArray(x.dtype, x.size);
    data.set(dense(from).data);
    return new CpuStorage(this, data);
  }

  run<P>(
    op: Op<P>,
    inputs: readonly Tensor[],
    params: P,
    outputs: readonly Spec[],
    into: readonly Storage[] = [],
  ): Storage[] {
    const storages = outputs.map(({ shape, dtype }, i) =>
      (into[i] as CpuStorage | undefined) ?? new CpuStorage(this, hostArray(dtype, sizeOf(shape)))
    );
    const results = outputs.map(({ shape, dtype }, i) => whole(storages[i].data, shape, dtype));
    if (outputs.some(({ shape }) => sizeOf(shape) > 0)) {
      const start = performance.now();
      op.reference(inputs.map((x) => this.#view(x, op.name)), params, ...results);
      for (const { dtype, data } of results) roundTo(dtype, data);
      this.#launches?.push({ op: op.name, kernel: op.name, start, ms: performance.now() - start });
    }
    return storages;
  }

  readSync(storage: Storage, layout: Layout, dtype: DType): Uint8Array {
    const { data } = storage as CpuStorage;
    return encode(dtype, dense({ ...pick(layout), dtype, data }).data).slice();
  }

  read(storage: Storage, layout: Layout, dtype: DType): Promise<Uint8Array> {
    return Promise.resolve(this.readSync(storage, layout, dtype));
  }

  synchronize(): Promise<void> {
    return Promise.resolve();
  }

  memory(): MemoryInfo {
    return { current: this.#current, peak: this.#peak, pooled: 0 };
  }

  resetPeak(): void {
    this.#peak = this.#current;
  }

  profile(): LaunchLog {
    if (this.#launches !== null) throw new ValueError("profile", "a profile is running: they do not nest");
    const launches: Launch[] = this.#launches = [];
    const stop = () => {
      this.#launches = null;
      const first = launches[0]?.start ?? 0;
      return Promise.resolve(launches.map((launch) => ({ ...launch, start: launch.start - first })));
    };
    return { stop };
  }

  dispose(): void {}

  #view(x: Tensor, op: string): NdArray {
    const storage = storageOf(x, op);
    if (!(storage instanceof CpuStorage)) throw new UnsupportedError(op, `${x} is not on the CPU`);
    return { ...pick(x), dtype: x.dtype, data: storage.data };
  }
}

function pick({ shape, strides, offset }: Layout): Layout {
  return { shape, strides, offset };
}

function whole(data: HostArray, shape: Shape, dtype: DType): NdArray {
  return { shape, dtype, strides: stridesOf(shape), offset: 0, data };
}

let shared: CpuBackend | null = null;

/** The CPU backend. There is one; f64 lives here alone. */
export function cpu(): Backend {
  return shared ??= new CpuBackend();
}

setFallback(cpu);
