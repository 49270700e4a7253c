"""PyTorch beside flashtape: the work of `bench peers`, and the layers of `bench layers`, where there is a CUDA device.

Usage: python3 bench/baselines/torch.py JOB, JOB being the JSON that the benchmarks hand over.
"""

import json
import sys
import time

sys.path = [path for path in sys.path if not path.endswith("baselines")]  # this file is not the package

try:
    import numpy as np
    import torch
    import torch.nn.functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel
except ImportError as error:
    sys.exit(f"fatal: {error}")

MARK = "@flashtape-bench "


def tell(**report):
    print(MARK + json.dumps(report), flush=True)


def numbers(seed, length, scale=1.0):
    """The same numbers as numbers() of peers/work.ts."""
    with np.errstate(over="ignore"):
        powers = np.cumprod(np.full(length, 1664525, np.uint32), dtype=np.uint32)
        start = np.uint32((seed + 1) * 0x9E3779B1 & 0xFFFFFFFF)
        sums = np.cumsum(np.concatenate([np.ones(1, np.uint32), powers[:-1]]), dtype=np.uint32)
        x = powers * start + sums * np.uint32(1013904223)
        x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
        x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
        x = x ^ (x >> np.uint32(16))
    return (scale * np.sqrt(12) * (x / 2.0**32 - 0.5)).astype(np.float32)


def clock(f):
    torch.cuda.synchronize()
    start = time.perf_counter()
    f()
    torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - start)


def chain_times(chain, repeats, budget):
    """Times as chainTimes() of peers/work.ts takes them."""
    chain(1)
    chain(2)
    short, long = clock(lambda: chain(1)), clock(lambda: chain(5))
    one = max((long - short) / 4, 1e-3)
    links = int(max(2, min(200, np.ceil(150 / one), budget // (one * 2))))
    chain(1 + links)
    few, many, begin = [], [], time.perf_counter()
    while len(few) < repeats and (len(few) < 5 or 1000 * (time.perf_counter() - begin) < budget):
        few.append(clock(lambda: chain(1)))
        many.append(clock(lambda: chain(1 + links)))
    once = float(np.median(few))
    return {"each": [max(0.0, (ms - once) / links) for ms in many], "chain": links}


TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
KERNELS = {
    "fused": [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION],
    "math": [SDPBackend.MATH],
}


def prepare(work, seed, kernels):
    """The call that gives all results, and a chain of calls."""
    dtype = TYPES[work["dtype"]]
    if work["kind"] == "matmul":
        n = work["n"]
        a, b = [torch.tensor(numbers(seed + i, n * n, s).reshape(n, n)).to("cuda", dtype) for i, s in ((0, 1.0), (1, n**-0.5))]

        def product(x):
            return x @ b

        def chain(n):
            x = a
            for _ in range(n):
                x = product(x)

        return "cuBLAS", lambda: [product(a)], chain
    shape = [work[name] for name in ("batch", "seqlen", "heads", "headDim")]
    count = 3 if work["kind"] == "forward" else 4
    given = [torch.tensor(numbers(seed + i, int(np.prod(shape))).reshape(shape)).to("cuda", dtype) for i in range(count)]

    def attend(q, k, v):
        with sdpa_kernel(KERNELS[kernels]):
            out = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=work["causal"])
        return out.transpose(1, 2)

    def once(q, k, v):
        if work["kind"] == "forward":
            return [attend(q, k, v)]
        inputs = [x.detach().requires_grad_() for x in (q, k, v)]
        return list(torch.autograd.grad((attend(*inputs) * given[3]).sum(), inputs))

    def chain(n):
        x = given[:3]
        for _ in range(n):
            y = once(*x)
            x = [y[0], *given[1:3]] if len(y) == 1 else [a + b for a, b in zip(x, y)]

    return f"scaled_dot_product_attention, {kernels}", lambda: once(*given[:3]), chain


def serve(job):
    for i, work in enumerate(job["works"]):
        try:
            how, results, chain = prepare(work, job["seed"], job["provider"])
            files = []
            for n, x in enumerate(results()):
                files.append(f"{job['directory']}/{i}-{n}.f32")
                x.detach().float().contiguous().cpu().numpy().tofile(files[-1])
            tell(work=i, files=files, how=how)
            tell(work=i, **chain_times(chain, job["repeats"], job["budget"]))
        except Exception as error:  # a work that fails does not end the others
            tell(work=i, cannot=str(error).split("\n")[0][:300])
        torch.cuda.empty_cache()


def layers(job):
    """Forward and gradients of each layer: op by op, and fused where PyTorch has it so."""
    sizes, dtype = job["sizes"], TYPES[job["sizes"]["dtype"]]
    B, S, D, I, V, H = (sizes[name] for name in ("batch", "seqlen", "hidden", "intermediate", "vocab", "nheads"))

    def random(*shape, scale=1.0):
        return torch.randn(*shape, device="cuda").mul(scale).to(dtype).requires_grad_()

    def rms_norm(x, w):
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).to(dtype) * w

    def rotary(x):
        half = x.shape[-1] // 2
        angles = torch.outer(torch.arange(S, device="cuda"), 10000.0 ** (-torch.arange(half, device="cuda") / half))
        c, s = (f(angles).to(dtype)[None, :, None] for f in (torch.cos, torch.sin))
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * c - b * s, b * c + a * s], -1)

    small = D**-0.5
    labels = torch.randint(V, (B * S,), device="cuda")
    all_layers = {
        "rmsNorm": (lambda: [random(B, S, D), random(D)], {"eager": rms_norm, "fused": lambda x, w: F.rms_norm(x, (D,), w)}),
        "swiglu": (lambda: [random(B, S, I), random(B, S, I)], {"eager": lambda g, u: F.silu(g) * u}),
        "rotary": (lambda: [random(B, S, H, D // H)], {"eager": rotary}),
        "mlp": (
            lambda: [random(B, S, D), random(I, D, scale=small), random(I, D, scale=small), random(D, I, scale=small)],
            {"eager": lambda x, g, u, d: F.linear(F.silu(F.linear(x, g)) * F.linear(x, u), d)},
        ),
        "linearCrossEntropy": (
            lambda: [random(B * S, D), random(V, D, scale=small)],
            {"eager": lambda x, w: F.cross_entropy(F.linear(x, w).float(), labels)},
        ),
    }
    for name in job["only"]:
        make, ways = all_layers[name]
        for way, f in ways.items():
            for direction in job["passes"]:
                inputs = make()

                def run():
                    if direction == "forward":
                        with torch.no_grad():
                            return f(*inputs)
                    y = f(*inputs)
                    return torch.autograd.grad(y, inputs, y.detach())

                for _ in range(3):
                    run()
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
                run()
                peak = torch.cuda.max_memory_allocated() - before
                calls = max(1, min(200, int(20 / max(clock(run), 1e-3))))

                def many():
                    for _ in range(calls):
                        run()

                each = [clock(many) / calls for _ in range(job["repeats"])]
                tell(layer=name, way=way, each=each, peakBytes=peak, **{"pass": direction})
                del inputs


if __name__ == "__main__":
    if not torch.cuda.is_available():
        sys.exit("fatal: PyTorch finds no CUDA device")
    tell(adapter=f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}")
    given = json.loads(sys.argv[1])
    layers(given) if "sizes" in given else serve(given)
