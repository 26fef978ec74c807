#!/usr/bin/env python3
"""Times other libraries at the shapes of our benchmarks, on the same card, and prints both side by side.

    cargo bench -p benches --features cuda --bench awq_gemm -- --table --json FOLDER        (and gqa_attention)
    scripts/bench_peers.py products FOLDER [FILTER]       cuBLASLt's FP8 product through torch._scaled_mm
    scripts/bench_peers.py attention FOLDER [FILTER]      torch's scaled_dot_product_attention in bf16 (flash, cuDNN); where
                                                          FlashInfer is installed its decode and TensorRT-LLM's XQA kernel
                                                          on FP8 pages

FOLDER has awq_gemm.json or gqa_attention.json; FILTER is a regular expression over the rows' names. Needs torch with CUDA;
without a GPU, or with --ours, only our figures are printed. FlashInfer compiles a kernel for each model when it first runs.

Timed as ours are: launches captured into a graph that rotates through copies of the operands beyond four times the L2
cache, with random contents; the median of seven replays between events. A dash is what a library does not offer.
"""

import argparse
import json
import math
import re
import statistics
import sys
from pathlib import Path

L2_BYTES = 60 << 20
REPLAY_SECONDS = 2e-3
SAMPLES = 7
PAGE_SIZE = 64
# The largest number of e4m3.
FP8_MAX = 448.0


class NotOffered(Exception):
    """What a library is not asked for."""


def copies_of(size):
    """Copies of operands of `size` bytes that together no cache holds."""
    return min(256, math.ceil(4 * L2_BYTES / max(size, 1)))


def seconds_of(launch, copies):
    """Seconds of `launch(copy)`: the median over replays of a graph."""
    import torch

    def elapsed(work):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3

    # On another stream, as capturing asks for; the first launches plan and compile.
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(2):
            launch(0)
        stream.synchronize()
        once = elapsed(lambda: launch(copies - 1))
    launches = max(1, min(512, int(REPLAY_SECONDS / once)))
    launches = math.ceil(launches / copies) * copies
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for index in range(launches):
            launch(index % copies)
    graph.replay()
    return statistics.median(elapsed(graph.replay) for _ in range(SAMPLES)) / launches


def attempt(label, prepare):
    """Seconds of what `prepare` makes, or None, with a line that says why, where a library does not offer it."""
    import torch

    try:
        return seconds_of(*prepare())
    except NotOffered:
        return None
    except (RuntimeError, ValueError, TypeError, AssertionError, ImportError) as error:
        print(f"{label}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}", file=sys.stderr)
        return None
    finally:
        torch.cuda.empty_cache()


def fp8(*sizes, deviation):
    """Random e4m3 numbers."""
    import torch

    numbers = torch.randn(*sizes, device="cuda", dtype=torch.bfloat16)
    return numbers.mul_(deviation).clamp_(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)


# Products


def scaled_mm(shape):
    """The FP8 product by a scale for each operand, as fast as cuBLASLt offers it."""
    import torch

    def prepare():
        rows, features, tokens = shape["out_features"], shape["in_features"], shape["tokens"]
        copies = copies_of(rows * features)
        weights = [fp8(rows, features, deviation=128.0) for _ in range(copies)]
        x = fp8(tokens, features, deviation=128.0)
        scale = torch.full((), 1e-4, device="cuda")

        def launch(copy):
            torch._scaled_mm(
                x, weights[copy].t(), scale_a=scale, scale_b=scale, out_dtype=torch.bfloat16, use_fast_accum=True
            )

        return launch, copies

    return prepare


def products(report, wanted, on_gpu):
    rows = {}
    for row in report["rows"]:
        if wanted(row["name"]):
            rows.setdefault(row["name"], {})[row["group"]] = row
    print("| | W4A8 us | x floor | W4A16 us | x floor | FP8 us | torch._scaled_mm us | best FP8 / W4A8 |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for name, groups in rows.items():
        shape = next(iter(groups.values()))["shape"]
        ours = [groups.get(group) for group in ("W4A8", "W4A16", "FP8 (cuBLASLt)")]
        torch_seconds = attempt(name, scaled_mm(shape)) if on_gpu else None
        w4a8, _, fp8_row = ours
        eight_bit = [seconds for seconds in (fp8_row and fp8_row["seconds"], torch_seconds) if seconds]
        ratio = min(eight_bit) / w4a8["seconds"] if eight_bit and w4a8 else None
        cells = []
        for row in ours[:2]:
            cells += [us(row and row["seconds"]), number(row and row["seconds"] / row["floor_seconds"])]
        cells += [us(fp8_row and fp8_row["seconds"]), us(torch_seconds), number(ratio)]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


# Attention


def sdpa(shape, backend):
    """Contiguous keys and values in bf16, all sequences of one length."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.attention.bias import causal_lower_right
    from torch.nn.functional import scaled_dot_product_attention

    def prepare():
        heads, kv_heads, dim = (shape["model"][key] for key in ("query_heads", "kv_heads", "head_dim"))
        lengths, queries = shape["batch"]["context_lens"], shape["batch"]["queries"]
        if len(set(lengths)) > 1:
            raise NotOffered("lengths differ")
        batch, context = len(lengths), lengths[0]
        # One query a sequence sees all keys: the heads of a group are then rows of one product.
        rows = (kv_heads, heads // kv_heads) if queries == 1 else (heads, queries)
        copies = copies_of(2 * batch * context * kv_heads * dim * 2)
        q = torch.randn(batch, *rows, dim, device="cuda", dtype=torch.bfloat16)
        kv = [
            torch.randn(2, batch, kv_heads, context, dim, device="cuda", dtype=torch.bfloat16) for _ in range(copies)
        ]
        options = {"enable_gqa": True} if queries > 1 else {}
        if queries == context:
            options["is_causal"] = True
        elif queries > 1:
            options["attn_mask"] = causal_lower_right(queries, context)

        def launch(copy):
            with sdpa_kernel(getattr(SDPBackend, backend)):
                scaled_dot_product_attention(q, kv[copy][0], kv[copy][1], **options)

        return launch, copies

    return prepare


def pages(shape):
    """FP8 pages [page, kv_head, token, dim] of all sequences, the block table, and queries."""
    import torch

    heads, kv_heads, dim = (shape["model"][key] for key in ("query_heads", "kv_heads", "head_dim"))
    lengths = shape["batch"]["context_lens"]
    if shape["batch"]["queries"] > 1:
        raise NotOffered("decode only")
    needs = [math.ceil(length / PAGE_SIZE) for length in lengths]
    table = torch.zeros(len(lengths), max(needs), dtype=torch.int32)
    # Sequences that grow side by side take their pages in turn.
    count = 0
    for index in range(max(needs)):
        for sequence, need in enumerate(needs):
            if index < need:
                table[sequence, index] = count
                count += 1
    copies = copies_of(2 * sum(lengths) * kv_heads * dim)
    pools = [tuple(fp8(count, kv_heads, PAGE_SIZE, dim, deviation=1.0) for _ in range(2)) for _ in range(copies)]
    queries = torch.randn(len(lengths), heads, dim, device="cuda", dtype=torch.bfloat16)
    return queries, pools, table, needs, copies


def flashinfer_decode(shape):
    import torch

    def prepare():
        import flashinfer

        queries, pools, table, needs, copies = pages(shape)
        starts = torch.tensor([0] + needs, dtype=torch.int32).cumsum(0).to(torch.int32)
        indices = torch.cat([table[sequence, :need] for sequence, need in enumerate(needs)])
        last = torch.tensor([(n - 1) % PAGE_SIZE + 1 for n in shape["batch"]["context_lens"]], dtype=torch.int32)
        workspace = torch.zeros(256 << 20, dtype=torch.uint8, device="cuda")
        wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
            workspace, "HND", use_tensor_cores=True, backend="fa2"
        )
        wrapper.plan(
            starts.cuda(), indices.cuda(), last.cuda(), queries.shape[1], pools[0][0].shape[1], queries.shape[2],
            PAGE_SIZE, q_data_type=queries.dtype, kv_data_type=torch.float8_e4m3fn,
        )  # fmt: skip
        out = torch.empty_like(queries)
        return lambda copy: wrapper.run(queries, pools[copy], out=out), copies

    return prepare


def xqa(shape):
    import torch

    def prepare():
        from flashinfer.decode import xqa_batch_decode_with_kv_cache

        queries, pools, table, _, copies = pages(shape)
        lengths = shape["batch"]["context_lens"]
        table = table.cuda()
        device_lengths = torch.tensor(lengths, dtype=torch.int32, device="cuda").view(torch.uint32)
        workspace = torch.zeros(512 << 20, dtype=torch.uint8, device="cuda")
        out = torch.empty_like(queries)

        def launch(copy):
            xqa_batch_decode_with_kv_cache(
                queries, pools[copy], workspace, table, device_lengths, max(lengths),
                bmm1_scale=queries.shape[2] ** -0.5, bmm2_scale=1.0, out=out, kv_layout="HND",
            )  # fmt: skip

        return launch, copies

    return prepare


def attention(report, wanted, on_gpu):
    print("| | ours us | x ceiling | SDPA flash us | SDPA cuDNN us | FlashInfer us | XQA us | best of them / ours |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for row in report["rows"]:
        label, shape = f"{row['group']}, {row['name']}", row["shape"]
        if not wanted(label):
            continue
        peers = {"bf16": [sdpa(shape, "FLASH_ATTENTION"), sdpa(shape, "CUDNN_ATTENTION"), None, None]}.get(
            shape["pages"], [None, None, flashinfer_decode(shape), xqa(shape)]
        ) if on_gpu else [None] * 4  # fmt: skip
        times = [peer and attempt(label, peer) for peer in peers]
        best = min((time for time in times if time), default=None)
        cells = [us(row["seconds"]), number(row["seconds"] / row["ceiling_seconds"]), *map(us, times)]
        print(f"| {label} | {' | '.join(cells)} | {number(best and best / row['seconds'])} |", flush=True)


def us(seconds):
    return f"{seconds * 1e6:.1f}" if seconds else "-"


def number(value):
    return f"{value:.2f}" if value else "-"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["products", "attention"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("filter", nargs="?", default="")
    parser.add_argument("--ours", action="store_true", help="print our figures alone")
    arguments = parser.parse_args()
    name, show = {"products": ("awq_gemm", products), "attention": ("gqa_attention", attention)}[arguments.what]
    report = json.loads((arguments.folder / f"{name}.json").read_text())
    on_gpu = not arguments.ours
    if on_gpu:
        import torch

        on_gpu = torch.cuda.is_available()
        if on_gpu and torch.cuda.get_device_name() != report["card"]:
            sys.exit(f"the figures are of {report['card']}, this is {torch.cuda.get_device_name()}")
        libraries = [f"torch {torch.__version__}"]
        try:
            import flashinfer

            libraries.append(f"FlashInfer {flashinfer.__version__}")
        except ImportError:
            pass
        print(f"{report['card']}; {', '.join(libraries) if on_gpu else 'no GPU here'}")
    show(report, re.compile(arguments.filter).search, on_gpu)


if __name__ == "__main__":
    main()
