#!/usr/bin/env python3
"""Breaks one kernel at a time and asks whether the GPU tests notice.

  scripts/gpu_mutants.py pack [NAME...]   here: builds the GPU tests of each mutant (or of those named, or of crates named) into
                                          dist/gpu-mutants.tar.gz (needs nvcc)
  scripts/gpu_mutants.py run              there, on a host with a GPU: runs them; a line a mutant, "N of M caught" last;
                                          exit status 1 where one survived

A mutant is caught where its tests fail, or do not end within a minute: those without full_size in their names, on as few
shapes as under a sanitizer. The tests of the kernels as they are must pass for this to mean anything: scripts/gpu-tests.sh.
"""

import concurrent.futures
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
ARCHIVE = ROOT / "dist" / "gpu-mutants.tar.gz"
SECONDS = 60
AT_ONCE = 4

# name, crate, file in its kernels, what stands there, what stands there instead
MUTANTS = [
    ("norm-skips-the-last-vectors", "layers", "norm.cuh",
     "y[i] = from_bf16(inside ? load_packed(residual, vector)", "y[i] = from_bf16(inside && i < 3 ? load_packed(residual, vector)"),
    ("norm-drops-the-second-delta", "layers", "norm.cuh", "delta.x[j] += second.x[j];", "delta.x[j] += 0.0f * second.x[j];"),
    ("activation-scale-of-its-own-slice", "layers", "activation_quantize.cuh", "max(largest, slots[round][i])",
     "max(largest, i / warps == peregrine::cluster_block_rank() ? slots[round][i] : 0u)"),
    ("append-turns-backwards", "kv-cache", "rope_append.cuh",
     "turns[i] = make_float2(cosine, sine);", "turns[i] = make_float2(cosine, -sine);"),
    ("append-drops-its-barrier", "kv-cache", "rope_append.cuh",
     "    __syncthreads();\n    for (; unit < units", "    for (; unit < units"),
    ("append-next-head's-scale", "kv-cache", "rope_append.cuh",
     "arguments.key_scales[kv_head];", "arguments.key_scales[(kv_head + 1) % shape.kv_heads];"),
    ("sample-loses-the-carry", "sampling", "sample.cuh", "atomicAdd(&shared.buckets.low[bucket], low) > ~low;",
     "(atomicAdd(&shared.buckets.low[bucket], low), 0);"),
    ("w4a16-multiplies-what-is-not-turned", "awq-gemm", "w4a16_plan.cuh", "void wait_turned() const { barrier_wait(turned(), phase); }",
     "void wait_turned() const {}"),
    ("w4a16-zero-point-of-the-other-row", "awq-gemm", "w4a16.cuh", "__uint_as_float((zeros & 0xf0u) | 0x4b000000u);",
     "__uint_as_float((zeros & 0x0fu) | 0x4b000000u);"),
    ("argmax-takes-the-higher-id", "sampling", "argmax.cuh", "<< 32 | ~token;", "<< 32 | token;"),
    ("quantize-largest-of-a-part", "fp8", "quantize.cuh", "const float scale = __fdiv_rn(absmax, e4m3_max);",
     "const float scale = __fdiv_rn(0.99f * absmax, e4m3_max);"),
    ("w4a8-drops-the-barrier-of-its-data", "awq-gemm", "w4a8_plan.cuh", "void wait_full() const { barrier_wait(full(), phase); }",
     "void wait_full() const {}"),
    ("w4a8-skips-the-zero-points-of-odd-groups", "awq-gemm", "w4a8_multiply.cuh", "here ? -zero.x * f32_from_f16",
     "here && group % 2 == 0 ? -zero.x * f32_from_f16"),
    ("w4a8-scale-of-the-other-row", "awq-gemm", "w4a8_multiply.cuh", "fmaf(scale[row], part[i], sum[i ^ 1]);",
     "fmaf(scale[1 - row], part[i], sum[i ^ 1]);"),
    ("w4a8-next-token's-group-sum", "awq-gemm", "w4a8.cuh", "const int token = min(first + i * kRows, p.tokens - 1);",
     "const int token = min(first + i * kRows + 1, p.tokens - 1);"),
    ("w4a8-widens-without-the-sign", "awq-gemm", "w4a8_widen.cuh", "return magnitude | (~(codes + offset) & 0x80808080u);",
     "return magnitude;"),
    ("decode-forgets-to-rescale", "gqa-attention", "decode_warp.cuh",
     "decay = exp2_approx(reference[j][e] - next);", "decay = 1.0f;"),
    ("decode-skips-a-page", "gqa-attention", "decode.cuh", "            state.add_page(", "            if (left != 2) state.add_page("),
    ("prefill-sees-the-next-token", "gqa-attention", "prefill.cuh", "if (token > position[r] ||", "if (token > position[r] + 1 ||"),
]


def pack(*chosen):
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve() / "mutants"
    environment = os.environ | {"CARGO_TARGET_DIR": str(target)}
    # Always at one place: what cargo keeps from build to build names it.
    tree = target / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    ARCHIVE.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, tarfile.open(ARCHIVE, "w:gz") as archive:
        shutil.copytree(ROOT, tree, ignore=lambda _, names: {name for name in names if name in ("target", "dist") or name[0] == "."})
        # The build refuses kernels that spill registers; a broken one may.
        build = tree / "crates/nvcc-build/src/lib.rs"
        build.write_text(build.read_text().replace("bytes > allowed &&", "bytes > u64::MAX - allowed &&"))
        for name, crate, file, old, new in MUTANTS:
            if chosen and crate not in chosen and name not in chosen:
                continue
            path = tree / "crates" / crate / "kernels" / file
            text = path.read_text()
            if text.count(old) != 1:
                sys.exit(f"{name}: {file} has its text {text.count(old)} times: {old}")
            path.write_text(text.replace(old, new))
            command = ["cargo", "test", "-q", "-p", crate, "--features", f"{crate}/cuda", "--test", "gpu", "--no-run",
                       "--message-format=json"]
            lines = subprocess.run(command, cwd=tree, env=environment, stdout=subprocess.PIPE, check=True).stdout.splitlines()
            built = [message for line in lines if (message := json.loads(line)).get("executable")]
            stripped = pathlib.Path(folder) / name
            subprocess.run(["strip", "-o", stripped, built[-1]["executable"]], check=True)
            archive.add(stripped, name)
            path.write_text(text)
            print(f"{crate}: {name}", flush=True)


def outcome(mutant):
    """Whether the tests noticed, and what they said."""
    command = [mutant, "--ignored", "--test-threads=1", "--skip", "full_size"]
    environment = {"PROPTEST_CASES": "32", "PEREGRINE_SANITIZER": "1"} | os.environ
    try:
        result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return True, f"did not end in {SECONDS} s"
    said = [line.removeprefix("test result: ") for line in result.stdout.splitlines() if line.startswith("test result")]
    return result.returncode != 0, ";".join(said[-1].split(";")[:2]) if said else f"ended with {result.returncode}"


def run():
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        with tarfile.open(ARCHIVE) as archive:
            archive.extractall(folder, filter="data")
        mutants = sorted(pathlib.Path(folder).iterdir())
        survivors = 0
        for mutant, (caught, said) in zip(mutants, pool.map(outcome, mutants)):
            survivors += not caught
            print(f"{'caught  ' if caught else 'SURVIVED'}  {mutant.name}: {said}", flush=True)
    print(f"{len(mutants) - survivors} of {len(mutants)} caught")
    sys.exit(survivors > 0)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["pack", *chosen]:
            pack(*chosen)
        case ["run"]:
            run()
        case _:
            sys.exit(__doc__)
