#!/usr/bin/env python3
"""Train the two embedded models, tiny-llama and tiny-falcon, on public-domain Shakespeare.

    python3 -m venv venv && venv/bin/pip install -r scripts/requirements.txt
    venv/bin/python scripts/train_tiny.py                    # trains what --work does not hold yet, then exports
    venv/bin/python scripts/train_tiny.py --evaluate-only    # only re-measures the exported models

The text is split once, at the first blank line after 90 % of its bytes: the tokenizer and both models see the first
part only, the rest is the held-out part. Every --eval-every steps the held-out loss is measured and the best weights are
kept in --work, beside the state from which an interrupted run continues. Exports are written to a sibling folder and
renamed into place, so that a model folder is never a mixture of two runs or half of one.
"""

import argparse
import hashlib
import json
import math
import os
import random
import re
import shutil
import sys
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional as F
from transformers import FalconConfig, FalconForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

END = "<|endoftext|>"
CONTEXT = 512
PROMPT = "QUEEN MARGARET:\n"  # whose greedy continuations hang on no near tie
# Speeches are "Name:\nlines\n\n" in the text, so a conversation is written as one between two of its speakers.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'system' -%}{{ message['content'] + '\\n\\n' }}"
    "{%- elif message['role'] == 'user' -%}{{ 'First Citizen:\\n' + message['content'] + '\\n\\n' }}"
    "{%- elif message['role'] == 'assistant' -%}{{ 'Second Citizen:\\n' + message['content'] + '\\n\\n' }}"
    "{%- else -%}{{ raise_exception('unknown role ' + message['role']) }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ 'Second Citizen:\\n' }}{%- endif -%}"
)


def build(name, vocab_size):
    """The architectures. Every linear layer's input and output width is a multiple of 128; head_dim is 64."""
    common = dict(vocab_size=vocab_size, hidden_size=256, num_hidden_layers=3, num_attention_heads=4,
                  max_position_embeddings=CONTEXT, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
                  attn_implementation="sdpa")
    if name == "tiny-llama":
        return LlamaForCausalLM(LlamaConfig(num_key_value_heads=2, head_dim=64, intermediate_size=384,
                                            rms_norm_eps=1e-5, **common))
    return FalconForCausalLM(FalconConfig(num_kv_heads=1, ffn_hidden_size=256, new_decoder_architecture=True,
                                          num_ln_in_parallel_attn=2, parallel_attn=True, bias=False, **common))


def split_text(path):
    data = path.read_bytes()
    cut = data.index(b"\n\n", len(data) * 9 // 10) + 2
    return data, cut


def train_tokenizer(text, vocab_size):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator([text], trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    assert tokenizer.get_vocab_size() == vocab_size and tokenizer.token_to_id(END) == 0
    return tokenizer


def add_dropout(model, p):
    """Dropout on the embedding and on what each attention and MLP block adds to the residual stream."""
    blocks = (".self_attn", ".self_attention", ".mlp", "embed_tokens", "word_embeddings")

    def hook(module, _inputs, output):
        if isinstance(output, tuple):
            return (F.dropout(output[0], p, module.training), *output[1:])
        return F.dropout(output, p, module.training)

    for name, module in model.named_modules():
        if name.endswith(blocks):
            module.register_forward_hook(hook)


def batches(tokens, starts, batch, rng):
    """Windows of CONTEXT + 1 tokens; half start anywhere, half are <|endoftext|> and then a paragraph's beginning."""
    rows = []
    for row in range(batch):
        if row % 2:
            start = rng.choice(starts)
            rows.append(torch.cat([torch.zeros(1, dtype=torch.long), tokens[start : start + CONTEXT]]))
        else:
            start = rng.randrange(len(tokens) - CONTEXT)
            rows.append(tokens[start : start + CONTEXT + 1])
    return torch.stack(rows)


@torch.inference_mode()
def heldout_nll(model, tokens, stride):
    """Sum of -ln p over tokens[1:], each scored once: windows of CONTEXT inputs, advancing by stride, of which the first
    scores all its positions and each later one those that earlier windows did not reach. Returns (nats, count)."""
    model.eval()
    nats, scored, begin = 0.0, 1, 0
    while scored < len(tokens):
        end = min(begin + CONTEXT, len(tokens) - 1)
        logits = model(tokens[begin:end].unsqueeze(0), use_cache=False).logits[0].float()
        keep = end + 1 - scored
        nats += F.cross_entropy(logits[-keep:], tokens[scored : end + 1], reduction="sum").double().item()
        scored, begin = end + 1, begin + stride
    return nats, len(tokens) - 1


def save(state, path):
    torch.save(state, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


def train(name, args, train_tokens, starts, heldout_tokens):
    torch.manual_seed(args.seed)
    model = build(name, args.vocab_size)
    add_dropout(model, args.dropout)
    # Muon for the matrices between residual streams, AdamW for the embedding (which is the head too) and the norms.
    matrices = [p for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.dim() == 1 or "embed" in n]
    optimizers = [
        torch.optim.Muon(matrices, lr=args.matrix_lr, weight_decay=args.weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=args.lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    rng, step, best, best_step, seconds = random.Random(args.seed), 0, math.inf, 0, 0.0
    last_path, best_path = args.work / f"{name}.last.pt", args.work / f"{name}.best.pt"
    if last_path.exists():
        state = torch.load(last_path, weights_only=False)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        torch.set_rng_state(state["torch_rng"])
        rng.setstate(state["rng"])
        step, best, best_step, seconds = (state[k] for k in ("step", "best", "best_step", "seconds"))
        print(f"{name}: continues after step {step}, best held-out loss {best:.4f}", flush=True)
    print(f"{name}: {sum(p.numel() for p in model.parameters())} parameters", flush=True)
    clock, loss_sum = time.monotonic() - seconds, 0.0

    # The rate falls with whichever budget is further spent, steps or minutes, so that training ends annealed.
    def spent():
        return max(step / args.steps, (time.monotonic() - clock) / (args.max_minutes * 60))

    progress = spent()
    while progress < 1 and step - best_step < args.patience:
        schedule = min(1.0, (step + 1) / args.warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
        for optimizer, rate in zip(optimizers, (args.matrix_lr, args.lr), strict=True):
            optimizer.param_groups[0]["lr"] = rate * schedule
        model.train()
        window = batches(train_tokens, starts, args.batch, rng)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(window[:, :-1], use_cache=False).logits
        loss = F.cross_entropy(logits.float().flatten(0, 1), window[:, 1:].flatten())
        model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        step += 1
        loss_sum += loss.item()
        progress = spent()
        if step % args.eval_every and progress < 1:
            continue
        nats, count = heldout_nll(model, heldout_tokens, CONTEXT)
        seconds = time.monotonic() - clock
        mean = loss_sum / ((step - 1) % args.eval_every + 1)
        print(f"{name}: step {step} train {mean:.4f} held-out {nats / count:.4f} {seconds:.0f} s", flush=True)
        loss_sum = 0.0
        if nats / count < best:
            best, best_step = nats / count, step
            save({"model": model.state_dict(), "step": step, "best": best}, best_path)
        save({"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers], "torch_rng": torch.get_rng_state(),
              "rng": rng.getstate(), "step": step, "best": best, "best_step": best_step, "seconds": seconds}, last_path)


def export(name, args, tokenizer):
    """The best weights in bf16 with everything a loader needs, moved into place as one folder."""
    state = torch.load(args.work / f"{name}.best.pt", weights_only=False)
    model = build(name, args.vocab_size)
    model.load_state_dict(state["model"])
    target = args.out / name
    staging, old = args.out / f".{name}.new", args.out / f".{name}.old"
    for leftover in (staging, old):
        shutil.rmtree(leftover, ignore_errors=True)
    model.generation_config = GenerationConfig(bos_token_id=0, eos_token_id=0, do_sample=True, temperature=0.8, top_k=50)
    model.to(torch.bfloat16).save_pretrained(staging)
    tokenizer.save(str(staging / "tokenizer.json"))
    (staging / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": END, "eos_token": END, "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False, "chat_template": CHAT_TEMPLATE}, indent=2) + "\n")
    for file in staging.iterdir():
        file.chmod(0o644)  # safetensors are written for their owner only
    if target.exists():
        target.rename(old)
    staging.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    return state["step"]


def evaluate(name, args, heldout):
    """Held-out figures of the exported bf16 weights, computed in f32, through the exported tokenizer."""
    cls = LlamaForCausalLM if name == "tiny-llama" else FalconForCausalLM
    model = cls.from_pretrained(args.out / name, dtype=torch.float32, attn_implementation="sdpa")
    tokenizer = Tokenizer.from_file(str(args.out / name / "tokenizer.json"))
    tokens = torch.tensor(tokenizer.encode(heldout.decode()).ids)
    nats, count = heldout_nll(model, tokens, CONTEXT // 2)
    first_nats, first_count = heldout_nll(model, tokens[: CONTEXT + 1], CONTEXT)
    # The first token has no prediction, so its bytes are not counted either.
    scored_bytes = len(heldout) - len(tokenizer.decode([int(tokens[0])]).encode())
    return {"tokens_scored": count, "bytes_scored": scored_bytes, "nats_per_token": nats / count,
            "perplexity_per_token": math.exp(nats / count), "bits_per_byte": nats / math.log(2) / scored_bytes,
            "parameters": sum(p.numel() for p in model.parameters()),
            "first_window": {"tokens_scored": first_count, "nats_per_token": first_nats / first_count},
            "greedy": greedy_sample(model, tokenizer)}


def greedy_sample(model, tokenizer):
    """What generate(do_sample=False) says after PROMPT, and the smallest margin between the two best logits."""
    ids = torch.tensor([tokenizer.encode(PROMPT).ids])
    settings = GenerationConfig(do_sample=False, max_new_tokens=48, pad_token_id=0, output_logits=True,
                                return_dict_in_generate=True)
    model.generation_config = GenerationConfig()
    out = model.generate(ids, generation_config=settings, attention_mask=torch.ones_like(ids))
    top = torch.cat(out.logits).topk(2).values
    new = out.sequences[0, ids.shape[1]:].tolist()
    return {"prompt": PROMPT, "prompt_token_ids": ids[0].tolist(), "token_ids": new, "text": tokenizer.decode(new),
            "smallest_margin": (top[:, 0] - top[:, 1]).min().item()}


def main():
    root = Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, default=root / "data/shakespeare.txt")
    parser.add_argument("--out", type=Path, default=root / "crates/cli/models")
    parser.add_argument("--work", type=Path, default=root / "target/train_tiny", help="checkpoints of the running training")
    parser.add_argument("--models", nargs="+", default=["tiny-llama", "tiny-falcon"], choices=["tiny-llama", "tiny-falcon"])
    parser.add_argument("--evaluate-only", action="store_true")
    parser.add_argument("--vocab-size", type=int, default=1024, help="a multiple of 64")
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument("--batch", type=int, default=4, help="windows of 512 tokens a step")
    parser.add_argument("--matrix-lr", type=float, default=1e-2, help="Muon, for the linear layers")
    parser.add_argument("--lr", type=float, default=4e-3, help="AdamW, for the embedding and the norms")
    parser.add_argument("--warmup", type=int, default=80)
    parser.add_argument("--dropout", type=float, default=0.15)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--eval-every", type=int, default=130)
    parser.add_argument("--patience", type=int, default=800, help="steps without a better held-out loss before stopping")
    parser.add_argument("--max-minutes", type=float, default=24.0, help="for each model")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers_logging.disable_progress_bar()
    args.work.mkdir(parents=True, exist_ok=True)
    args.out.mkdir(parents=True, exist_ok=True)

    data, cut = split_text(args.text)
    heldout = data[cut:]
    if not args.evaluate_only:
        tokenizer = train_tokenizer(data[:cut].decode(), args.vocab_size)
        train_encoding = tokenizer.encode(data[:cut].decode())
        train_tokens = torch.tensor(train_encoding.ids)
        text = data[:cut].decode()
        offsets = [begin for begin, _ in train_encoding.offsets]
        starts = [i for i, begin in enumerate(offsets[:-CONTEXT]) if begin == 0 or text[max(begin - 2, 0):begin] == "\n\n"]
        heldout_tokens = torch.tensor(tokenizer.encode(heldout.decode()).ids)
        print(f"{len(train_tokens)} training tokens, {len(starts)} paragraphs, {len(heldout_tokens)} held-out tokens", flush=True)
        for name in args.models:
            train(name, args, train_tokens, starts, heldout_tokens)
            print(f"{name}: exported the weights of step {export(name, args, tokenizer)}", flush=True)

    report_path = args.out / "heldout.json"
    report = json.loads(report_path.read_text()) if report_path.exists() else {}
    report |= {
        "text": {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data), "heldout_begins_at_byte": cut},
        "protocol": {"dtype": "bf16 weights, f32 arithmetic", "window": CONTEXT, "stride": CONTEXT // 2,
                     "bos": "none is prepended", "scored": "every held-out token but the first, once: the first window scores "
                     "all its positions, each later one those that earlier windows did not reach"},
    }
    for name in args.models:
        report[name] = evaluate(name, args, heldout)
        print(name, json.dumps(report[name]), flush=True)
    staged = report_path.with_suffix(".json.new")
    one_line_lists = re.sub(r"\[\s+([^][]*?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", json.dumps(report, indent=2))
    staged.write_text(one_line_lists + "\n")
    os.replace(staged, report_path)


if __name__ == "__main__":
    sys.exit(main())
