#!/usr/bin/env python3
"""Write the goldens of crates/models/tests/goldens: what transformers computes for small random Falcon and Llama models.

    python3 -m venv venv && venv/bin/pip install -r scripts/requirements.txt
    venv/bin/python scripts/make_goldens.py                     # writes all of them
    venv/bin/python scripts/make_goldens.py --only falcon-11b   # writes one
    venv/bin/python scripts/make_goldens.py --check             # recomputes from the committed prompts and compares

Weights are not stored but generated from the tensors' names, by the formula in `generate` and in the goldens' README;
each golden lists the tensors that `save_pretrained` writes for its model, with an amplitude and an offset for each.
"""

import argparse
import base64
import json
import math
import random
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors import safe_open
from safetensors.numpy import save_file

from golden_variants import VARIANTS

GOLDENS = Path(__file__).resolve().parent.parent / "crates/models/tests/goldens"
GREEDY_TOKENS = 32
MIN_MARGIN = 0.05  # between the two largest logits at every greedy step: far above what f32 summation order can move
MIN_DISTINCT = 10  # greedy tokens, so that a constant output cannot pass
LOGIT_POSITIONS = (0, 1, 31, 62, 63, 64, 65, 127, 128, 257)  # around the 64-token pages; the last one is always added

FNV_OFFSET, FNV_PRIME = 0xCBF29CE484222325, 0x100000001B3
GAMMA, MIX_1, MIX_2 = (np.uint64(x) for x in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def generate(name, shape, amplitude, offset):
    """Element i (row-major): x = splitmix64's finaliser of fnv1a64(name) + (i + 1) * GAMMA; u = x >> 40;
    value = (u - 2^23) / 2^23 * amplitude + offset, each operation rounded to f32 (no fused multiply-add)."""
    seed = FNV_OFFSET
    for byte in name.encode():
        seed = (seed ^ byte) * FNV_PRIME % 2**64
    with np.errstate(over="ignore"):
        x = np.uint64(seed) + np.arange(1, math.prod(shape) + 1, dtype=np.uint64) * GAMMA
        x = (x ^ (x >> np.uint64(30))) * MIX_1
        x = (x ^ (x >> np.uint64(27))) * MIX_2
        x ^= x >> np.uint64(31)
    unit = ((x >> np.uint64(40)).astype(np.int32) - 2**23).astype(np.float32) / np.float32(2**23)
    return (unit * np.float32(amplitude) + np.float32(offset)).reshape(shape)


def scale(name, shape, tied):
    """Amplitude and offset that keep activations near unit variance and spread the logits by about 3. Under a tied head
    the final norm has weights of random sign, or a token's own row would win and greedy output would repeat it."""
    if name.endswith("bias"):
        return 0.1, 0.0
    if tied and name in ("model.norm.weight", "transformer.ln_f.weight"):
        return math.sqrt(3), 0.0
    if len(shape) == 1:
        return 0.2, 1.0
    amplitude = math.sqrt(3 / shape[1])
    if name.startswith("lm_head") or (tied and "embed" in name):
        return 3 * amplitude, 0.0
    return math.sqrt(3) if "embed" in name else amplitude, 0.0


def encode(logits):
    return base64.b64encode(logits.numpy().astype("<f4").tobytes()).decode()


def decode(text):
    return np.frombuffer(base64.b64decode(text), "<f4")


def tensors_of(model_class, config, tied):
    """Names and shapes as save_pretrained writes them, sorted by name."""
    with tempfile.TemporaryDirectory() as folder:
        model_class(config).save_pretrained(folder)
        with safe_open(Path(folder) / "model.safetensors", "np") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in sorted(file.keys())}
        saved_config = json.loads((Path(folder) / "config.json").read_text())
    tensors = []
    for name, shape in shapes.items():
        amplitude, offset = scale(name, shape, tied)
        tensors.append({"name": name, "shape": list(shape), "amplitude": float(np.float32(amplitude)),
                        "offset": offset})
    return tensors, saved_config


def load(variant, folder):
    """Builds the checkpoint folder and loads it as a user would; returns the model, its config.json and tensors."""
    family = "Llama" if variant.config["model_type"] == "llama" else "Falcon"
    model_class = getattr(transformers, family + "ForCausalLM")
    readable = variant.modern or variant.config
    config = getattr(transformers, family + "Config").from_dict(readable)
    tensors, saved_config = tensors_of(model_class, config, config.tie_word_embeddings)
    shown = saved_config if variant.as_saved else variant.config
    (folder / "config.json").write_text(json.dumps(saved_config if variant.as_saved else readable))
    save_file({t["name"]: generate(**t) for t in tensors}, folder / "model.safetensors", {"format": "pt"})
    # Eager attention adds ALiBi twice in this version: once to the scores and once through the mask. The sdpa path
    # computes the (scores + alibi) / sqrt(head_dim) that the checkpoints were trained with.
    attention = "sdpa" if readable.get("alibi") else "eager"
    model, info = model_class.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention,
                                              output_loading_info=True)
    problems = {key: value for key, value in info.items() if value}
    if problems:
        raise SystemExit(f"{variant.name}: transformers did not take the tensors as they are: {problems}")
    return model.eval(), shown, tensors


@torch.inference_mode()
def greedy(model, prompt, eos_token_id=None):
    """The tokens of generate(do_sample=False), the smallest margin between the two best logits, the last logits."""
    settings = transformers.GenerationConfig(do_sample=False, max_new_tokens=GREEDY_TOKENS, eos_token_id=eos_token_id,
                                             pad_token_id=0, output_logits=True, return_dict_in_generate=True)
    ids = torch.tensor([prompt])
    model.generation_config = transformers.GenerationConfig()
    out = model.generate(ids, generation_config=settings, attention_mask=torch.ones_like(ids))
    top = torch.cat(out.logits).topk(2).values
    return out.sequences[0, len(prompt):].tolist(), (top[:, 0] - top[:, 1]).min().item(), out.logits[-1][0]


@torch.inference_mode()
def compute(variant, prompt=None):
    """The golden of a variant; without a prompt, of the first random one whose greedy tokens are unambiguous."""
    with tempfile.TemporaryDirectory() as folder:
        model, config, tensors = load(variant, Path(folder))
    attempts = [prompt] if prompt else [
        random.Random(f"{variant.seed_name}/{i}").choices(range(3, config["vocab_size"]), k=variant.prompt_tokens)
        for i in range(500)]
    for prompt in attempts:
        golden = {"purpose": variant.purpose, "transformers": transformers.__version__, "config": config}
        if variant.generation_config is not None:
            golden["generation_config"] = dict(variant.generation_config)
        if variant.same_weights_as:
            golden["same_weights_as"] = variant.same_weights_as
        # A fresh forward: dynamic scaling keeps state between calls, which loading anew has just cleared.
        logits = model(torch.tensor([prompt]), use_cache=False).logits[0]
        positions = sorted({p for p in LOGIT_POSITIONS if p < len(prompt)} | {len(prompt) - 1})
        golden |= {"tensors": tensors, "prompt": prompt, "positions": positions, "logits": encode(logits[positions])}
        if not variant.greedy:
            return golden
        tokens, margin, last = greedy(model, prompt)
        # The cached path must agree with one forward over everything, or the two would need separate goldens.
        whole = model(torch.tensor([prompt + tokens]), use_cache=False).logits[0, len(prompt) - 1 : -1]
        if margin < MIN_MARGIN or len(set(tokens)) < MIN_DISTINCT:
            continue
        if whole.argmax(-1).tolist() != tokens:
            raise SystemExit(f"{variant.name}: cached and whole-sequence greedy tokens differ")
        golden |= {"greedy": tokens, "greedy_margin": round(margin, 4), "greedy_last_logits": encode(last)}
        if variant.stop:
            stop_token = next(t for i, t in enumerate(tokens) if i >= 10 and t not in tokens[:i])
            unused = [t for t in range(3, config["vocab_size"]) if t not in tokens]
            variant.stop(golden, stop_token, unused)
            eos = golden.get("generation_config", golden["config"])["eos_token_id"]
            golden["greedy_until_eos"] = greedy(model, prompt, eos)[0]
            if golden["greedy_until_eos"] != tokens[: tokens.index(stop_token) + 1]:
                raise SystemExit(f"{variant.name}: generation did not stop at token {stop_token}")
        return golden
    raise SystemExit(f"{variant.name}: no prompt with a greedy margin of {MIN_MARGIN} in {len(attempts)} attempts")


def write(golden, path):
    """One line for each entry and for each tensor, so that a change shows as a readable difference."""
    lines = []
    for key, value in golden.items():
        if key == "tensors":
            text = "[\n  " + ",\n  ".join(json.dumps(t) for t in value) + "\n ]"
        else:
            text = json.dumps(value)
        lines.append(f" {json.dumps(key)}: {text}")
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def differences(new, old):
    """What a recomputed golden and the committed one disagree on."""
    found = []
    for key in sorted(set(new) | set(old)):
        if key in ("transformers", "greedy_margin"):
            continue
        if key not in new or key not in old:
            found.append(f"{key} is only in one of them")
        elif key.endswith("logits"):
            a, b = decode(new[key]), decode(old[key])
            error = np.abs(a - b).max() / np.abs(b).max() if a.shape == b.shape else math.inf
            if not error <= 1e-5:
                found.append(f"{key} differ by {error:.2e} of their largest magnitude")
        elif key == "config":
            a, b = ({k: v for k, v in c.items() if k != "transformers_version"} for c in (new[key], old[key]))
            if a != b:
                found.append("config differs")
        elif new[key] != old[key]:
            found.append(f"{key} differs")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with what is committed; writes nothing")
    parser.add_argument("--only", nargs="+", help="names of variants")
    parser.add_argument("--out", type=Path, default=GOLDENS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    unknown = set(args.only or ()) - {v.name for v in VARIANTS}
    if unknown:
        raise SystemExit(f"no such variant: {', '.join(sorted(unknown))}")
    args.out.mkdir(parents=True, exist_ok=True)
    failed, computed = 0, {}
    for variant in VARIANTS:
        if args.only and variant.name not in args.only:
            continue
        path = args.out / f"{variant.name}.json"
        committed = json.loads(path.read_text()) if args.check else None
        golden = computed[variant.name] = compute(variant, committed and committed["prompt"])
        twin = computed.get(variant.same_weights_as)
        if twin and (twin["tensors"], twin["logits"]) != (golden["tensors"], golden["logits"]):
            raise SystemExit(f"{variant.name}: differs from {variant.same_weights_as}")
        if args.check:
            found = differences(golden, committed)
            failed += bool(found)
            print(f"{variant.name}: {'; '.join(found) or 'equal'}", flush=True)
        else:
            write(golden, path)
            print(f"{variant.name}: {len(golden['prompt'])} prompt tokens, spread of logits "
                  f"{decode(golden['logits']).std():.2f}, greedy margin {golden.get('greedy_margin')}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
