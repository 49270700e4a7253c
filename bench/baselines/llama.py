"""A checkpoint of Llama-3.2-1B's shape with random weights, and what PyTorch and transformers make of it.

    python3 bench/baselines/llama.py DIR [--static] [--repeats N]

Writes a checkpoint to DIR (bf16, as save_pretrained does) unless one is there, then DIR/baseline.json: how fast generate() and
a forward pass are, and what greedy decoding gives, in bf16 and with the same weights in f32, with the margin between the two
highest scores at each token. Scores of the last place go to DIR/logits.safetensors. Needs a CUDA device.
"""
import argparse
import json
import os
import statistics
import time

import torch
from safetensors.torch import save_file
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

NEW, PROMPT, LONG = 64, 24, 1024


def make(directory):
    config = LlamaConfig(
        vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, head_dim=64, max_position_embeddings=131072, rms_norm_eps=1e-5, tie_word_embeddings=True,
        rope_theta=500000.0, bos_token_id=128000, eos_token_id=[128001, 128008, 128009], initializer_range=0.02,
        rope_scaling={"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                      "original_max_position_embeddings": 8192})
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.generation_config = GenerationConfig(bos_token_id=128000, eos_token_id=[128001, 128008, 128009], pad_token_id=128004)
    model.save_pretrained(directory)


def load(directory, attention, dtype=torch.bfloat16):
    return LlamaForCausalLM.from_pretrained(directory, dtype=dtype, attn_implementation=attention, device_map="cuda").eval()


def median(f, repeats, warm=2):
    """Median seconds of a call, the device waited for."""
    for _ in range(warm):
        f()
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        f()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def prompt(batch, length):
    generator = torch.Generator().manual_seed(length)
    return torch.randint(1000, 100000, (batch, length), generator=generator)


@torch.no_grad()
def greedy(model, ids):
    """Greedy tokens, and by how much each was ahead of the next best."""
    ids, cache, tokens, margins, first = ids.cuda(), None, [], [], None
    for _ in range(NEW):
        out = model(ids if cache is None else ids[:, -1:], past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache, scores = out.past_key_values, out.logits[0, -1].float()
        first = scores if first is None else first
        top = scores.topk(2)
        tokens.append(top.indices[0].item())
        margins.append((top.values[0] - top.values[1]).item())
        ids = torch.cat([ids, top.indices[:1][None]], 1)
    return {"tokens": tokens, "margins": margins}, first


@torch.no_grad()
def speed(model, repeats, **options):
    """Tokens a second of generate() by batch, and milliseconds to the first token and for a long prompt."""
    found = {}
    for batch in (1, 2):
        ids = prompt(batch, PROMPT).cuda()
        mask = torch.ones_like(ids)
        run = lambda: model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=NEW, min_new_tokens=NEW,
                                     pad_token_id=128004, **options)
        found[f"tokens_per_second_batch_{batch}"] = batch * NEW / median(run, repeats)
    if not options:
        long, short = prompt(1, LONG).cuda(), prompt(1, PROMPT).cuda()
        found["prefill_1024_ms"] = 1e3 * median(lambda: model(long, logits_to_keep=1), repeats)
        found["first_token_ms"] = 1e3 * median(lambda: model(short, logits_to_keep=1).logits.argmax(-1).cpu(), repeats)
    return found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("directory")
    parser.add_argument("--static", action="store_true", help="times a static cache and torch.compile too: minutes")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    if not os.path.exists(os.path.join(args.directory, "config.json")):
        make(args.directory)
    result = {"torch": torch.__version__, "device": torch.cuda.get_device_name(), "new": NEW, "prompt": prompt(1, PROMPT)[0].tolist(),
              "prompts": prompt(2, PROMPT).tolist(), "long": prompt(1, LONG)[0].tolist(), "speed": {}}
    for attention in ("eager", "sdpa"):
        start = time.perf_counter()
        model = load(args.directory, attention)
        result["load_seconds"] = time.perf_counter() - start
        result["speed"][attention] = speed(model, args.repeats)
        if attention == "sdpa":
            result["bf16"], _ = greedy(model, prompt(1, PROMPT))
            if args.static:
                result["speed"]["static"] = speed(model, args.repeats, cache_implementation="static")
        del model
    model = load(args.directory, "eager", torch.float32)
    result["f32"], scores = greedy(model, prompt(1, PROMPT))
    with torch.no_grad():
        long = model(prompt(1, LONG).cuda(), logits_to_keep=1).logits[0, -1]
    scores = {name: x.float().cpu().contiguous() for name, x in (("short", scores), ("long", long))}
    save_file(scores, os.path.join(args.directory, "logits.safetensors"))
    with open(os.path.join(args.directory, "baseline.json"), "w") as file:
        json.dump(result, file)
    print(json.dumps(result["speed"], indent=1), "load", round(result["load_seconds"], 1), "s")


main()
