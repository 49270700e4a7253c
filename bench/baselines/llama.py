"""A checkpoint of Llama-3.2-1B's shape with random weights, and what PyTorch and transformers make of it.

    python3 bench/baselines/llama.py DIR [--only decode,prefill,prefill8,agreement,train,static] [--repeats N]

Writes a checkpoint to DIR (bf16, as save_pretrained does) unless one is there, then, part by part, DIR/baseline.json: the times
of generate(), forward passes and training steps with eager attention and with sdpa, and what greedy decoding gives, in bf16 and
with the same weights in f32, with the margin between the two highest scores at each token; scores of the last place go to
DIR/logits.safetensors. What an earlier run left of other parts stays. A part that fails is recorded with its reason.
"""
import argparse
import gc
import json
import os
import sys
import time

sys.path = [path for path in sys.path if not path.endswith("baselines")]  # torch.py beside this file is not the package

import torch
from safetensors.torch import save_file
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

NEW, PROMPT, LONG, PAD = 64, 24, 1024, 128004
WAYS = {"eager": ("decode", "prefill", "prefill8", "train"), "sdpa": ("decode", "prefill", "prefill8", "agreement", "static", "train")}


def make(directory, device):
    config = LlamaConfig(
        vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, head_dim=64, max_position_embeddings=131072, rms_norm_eps=1e-5, tie_word_embeddings=True,
        rope_theta=500000.0, bos_token_id=128000, eos_token_id=[128001, 128008, 128009], initializer_range=0.02,
        rope_scaling={"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                      "original_max_position_embeddings": 8192})
    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.generation_config = GenerationConfig(bos_token_id=128000, eos_token_id=[128001, 128008, 128009], pad_token_id=PAD)
    model.save_pretrained(directory)


class Runner:
    def __init__(self, directory, device, repeats, warmup, ramp):
        self.directory, self.device = directory, device
        self.repeats, self.warmup, self.ramp = repeats, warmup, ramp
        self.vocabulary = LlamaConfig.from_pretrained(directory).vocab_size
        self.model = None

    def load(self, attention, dtype=torch.bfloat16):
        self.drop()
        self.model = LlamaForCausalLM.from_pretrained(
            self.directory, dtype=dtype, attn_implementation=attention, device_map=self.device).eval()
        self.wait()

    def drop(self):
        """Frees the model, and what a failed part has left."""
        self.model = None
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def wait(self):
        if self.device == "cuda":
            torch.cuda.synchronize()

    def times(self, f):
        """Milliseconds of each call, the device waited for. The first one compiles, the next raise the card's clock."""
        f()
        self.wait()
        start = time.perf_counter()
        while 1e3 * (time.perf_counter() - start) < self.ramp:
            f()
            self.wait()
        for _ in range(self.warmup):
            f()
        found = []
        for _ in range(self.repeats):
            self.wait()
            start = time.perf_counter()
            f()
            self.wait()
            found.append(1e3 * (time.perf_counter() - start))
        return found

    def prompt(self, batch, length):
        generator = torch.Generator().manual_seed(length)
        return torch.randint(min(1000, self.vocabulary // 2), min(100000, self.vocabulary), (batch, length), generator=generator)

    @torch.no_grad()
    def decode(self, **options):
        found = {}
        for batch in (1, 2):
            ids = self.prompt(batch, PROMPT).to(self.device)
            mask = torch.ones_like(ids)
            found[f"decode{batch}"] = self.times(lambda: self.model.generate(
                ids, attention_mask=mask, do_sample=False, max_new_tokens=NEW, min_new_tokens=NEW, pad_token_id=PAD, **options))
        if not options:
            short = self.prompt(1, PROMPT).to(self.device)
            found["first"] = self.times(lambda: self.model(short, logits_to_keep=1).logits.argmax(-1).cpu())
        return found

    def static(self):
        return self.decode(cache_implementation="static")

    @torch.no_grad()
    def prefill(self, batch=1):
        ids = self.prompt(batch, LONG).to(self.device)
        return {"prefill" if batch == 1 else f"prefill{batch}": self.times(lambda: self.model(ids, logits_to_keep=1))}

    def prefill8(self):
        return self.prefill(8)

    def train(self):
        """Steps of AdamW on weights and moments in bf16. The weights are others afterwards."""
        ids = self.prompt(4, LONG).to(self.device)
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=True)
        self.model.train()

        def step():
            self.model(ids, labels=ids, use_cache=False).loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        found = {"train": self.times(step)}
        if self.device == "cuda":
            found["train_peak_bytes"] = torch.cuda.max_memory_allocated()
        return found

    @torch.no_grad()
    def greedy(self):
        """Greedy tokens, and by how much each was ahead of the next best."""
        ids, cache, tokens, margins, first = self.prompt(1, PROMPT).to(self.device), None, [], [], None
        for _ in range(NEW):
            out = self.model(ids if cache is None else ids[:, -1:], past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache, scores = out.past_key_values, out.logits[0, -1].float()
            first = scores if first is None else first
            top = scores.topk(2)
            tokens.append(top.indices[0].item())
            margins.append((top.values[0] - top.values[1]).item())
            ids = torch.cat([ids, top.indices[:1][None]], 1)
        return {"tokens": tokens, "margins": margins}, first

    @torch.no_grad()
    def agreement(self):
        """The model is read again in f32, and again in bf16 for the parts that follow."""
        bf16, _ = self.greedy()
        self.load("eager", torch.float32)
        f32, short = self.greedy()
        long = self.model(self.prompt(1, LONG).to(self.device), logits_to_keep=1).logits[0, -1]
        scores = {name: x.float().cpu().contiguous() for name, x in (("short", short), ("long", long))}
        save_file(scores, os.path.join(self.directory, "logits.safetensors"))
        self.load("sdpa")
        return {"bf16": bf16, "f32": f32}


def main():
    parts = ["decode", "prefill", "prefill8", "agreement", "train", "static"]
    parser = argparse.ArgumentParser()
    parser.add_argument("directory")
    parser.add_argument("--only", type=lambda text: text.split(","), default=parts[:-1],
                        help="some of %s; static times a static cache and torch.compile: minutes" % ",".join(parts))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=3, help="calls that are not counted, after the one that compiles")
    parser.add_argument("--ramp", type=float, default=200, help="milliseconds of calls before those, for the card's clock to rise")
    parser.add_argument("--device", default="cuda", help="cpu tries the script out")
    args = parser.parse_args()
    if not os.path.exists(os.path.join(args.directory, "config.json")):
        make(args.directory, args.device)
    file = os.path.join(args.directory, "baseline.json")
    runner = Runner(args.directory, args.device, args.repeats, args.warmup, args.ramp)
    result = {"ways": {}, "failed": {}}
    if os.path.exists(file):
        with open(file) as earlier:
            result.update(json.load(earlier))
    result.update({
        "torch": torch.__version__, "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu", "new": NEW,
        "prompts": runner.prompt(2, PROMPT).tolist(), "long": runner.prompt(8, LONG).tolist()})

    def keep():
        with open(file + ".tmp", "w") as beside:
            json.dump(result, beside)
        os.replace(file + ".tmp", file)

    for way, known in WAYS.items():
        wanted = [part for part in known if part in args.only]
        for part in wanted:
            start = time.perf_counter()
            ours, name = result["ways"].setdefault("static" if part == "static" else way, {}), f"{part} {way}"
            try:
                if runner.model is None:
                    runner.load(way)
                    ours["load"] = [1e3 * (time.perf_counter() - start)]
                found = getattr(runner, part)()
                if part == "agreement":
                    result["agreement"] = found
                else:
                    ours.update(found)
                result["failed"].pop(name, None)
            except Exception as error:
                result["failed"][name] = (str(error).splitlines() or [type(error).__name__])[0][:300]
                failed = True
            else:
                failed = False
            if failed:
                runner.drop()  # outside the handler, whose traceback holds on to tensors
            keep()
            print(f"PyTorch {part} {way}: {result['failed'].get(name) or f'{time.perf_counter() - start:.1f} s'}", flush=True)
        runner.drop()


main()
