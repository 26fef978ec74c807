//! `peregrine bench` on the CPU, with the embedded models: figures that fit together, keys that stay, errors by the letter.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed expectation fails the test"
)]

mod common;

use common::{json_lines, refused, refused_with, stdout};
use serde_json::Value;

/// The one object that `args` print, with the keys in their order.
#[track_caller]
fn report(args: &[&str]) -> (Value, Vec<String>) {
    let text = stdout(&[args, &["--json", "--backend", "cpu"]].concat());
    assert_eq!(text.lines().count(), 1, "{text}");
    (serde_json::from_str(&text).unwrap(), top_keys(&text))
}

/// Keys of the outermost object in the order of the text, which `Value` does not keep.
fn top_keys(text: &str) -> Vec<String> {
    let (mut depth, mut keys, mut rest) = (0, Vec::new(), text);
    while let Some(at) = rest.find(['{', '}', '[', ']', '"']) {
        let (found, after) = (rest.as_bytes()[at], &rest[at + 1..]);
        rest = after;
        match found {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth -= 1,
            _ => {
                let end = after.find('"').unwrap();
                rest = &after[end + 1..];
                if depth == 1 && rest.starts_with(':') {
                    keys.push(after[..end].to_owned());
                }
            }
        }
    }
    keys
}

#[track_caller]
fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("expected a number, got {value}"))
}

#[track_caller]
fn equal(left: f64, right: f64) {
    assert!((left - right).abs() <= 1e-9 * left.abs().max(right.abs()), "{left} is not {right}");
}

#[track_caller]
fn rises(percentiles: &Value) {
    let [p50, p90, p99] = ["p50", "p90", "p99"].map(|key| number(&percentiles[key]));
    assert!(0.0 < p50 && p50 <= p90 && p90 <= p99, "{percentiles}");
}

/// What holds for every report of a whole workload.
#[track_caller]
fn fits_together(report: &Value) {
    let [prefill, decode, total] =
        ["prefill_seconds", "decode_seconds", "total_seconds"].map(|key| number(&report[key]));
    assert!(prefill > 0.0);
    equal(prefill + decode, total);
    let tokens = number(&report["osl"]) * number(&report["batch"]);
    equal(number(&report["output_tokens_per_second"]), tokens / total);
    rises(&report["time_to_first_token_seconds"]);

    let memory = &report["memory"];
    let parts = memory["weights"].as_array().unwrap();
    equal(parts.iter().map(|part| number(&part["bytes"])).sum(), number(&memory["weight_bytes"]));
    // All sequences, in whole pages; the last token of each takes none.
    let each = (number(&report["isl"]) + number(&report["osl"]) - 1.0) / 64.0;
    equal(number(&memory["kv_tokens"]), number(&report["batch"]) * each.ceil() * 64.0);

    // Nobody knows this machine's limits.
    assert!(report["limit"].is_null() && memory["measured"].is_null());
    assert_eq!((report["backend"].as_str(), report["device"].as_str()), (Some("cpu"), Some("CPU")));
}

const WHOLE_KEYS: [&str; 20] = [
    "bench",
    "model",
    "synthetic",
    "backend",
    "device",
    "kv_dtype",
    "isl",
    "osl",
    "batch",
    "max_batch_tokens",
    "seed",
    "runs",
    "prefill_seconds",
    "decode_seconds",
    "total_seconds",
    "output_tokens_per_second",
    "time_to_first_token_seconds",
    "decode_step_seconds",
    "limit",
    "memory",
];

#[test]
fn throughput_is_output_tokens_over_the_whole_time() {
    for (model, kv, synthetic) in [("tiny-llama", "fp8", false), ("tiny-falcon", "bf16", true)] {
        let mut args = vec!["bench", "throughput", "-m", model, "--kv", kv, "--batch", "3", "--seed", "5"];
        // Prompts that are cut by steps.
        args.extend(["--isl", "50", "--osl", "20", "--max-batch-tokens", "64"]);
        args.extend(synthetic.then_some("--synthetic"));
        let (report, keys) = report(&args);
        assert_eq!(keys, WHOLE_KEYS);
        fits_together(&report);
        rises(&report["decode_step_seconds"]);
        assert_eq!(report["bench"], "throughput");
        assert_eq!(report["model"], model);
        assert_eq!(report["synthetic"], synthetic);
        assert_eq!(report["kv_dtype"], kv);
        let sizes =
            ["isl", "osl", "batch", "max_batch_tokens", "seed", "runs"].map(|key| number(&report[key]));
        assert_eq!(sizes, [50.0, 20.0, 3.0, 64.0, 5.0, 1.0]);
    }
}

#[test]
fn the_cache_has_the_size_of_its_elements() {
    let bytes = |kv: &str| {
        let args = ["bench", "throughput", "-m", "tiny-llama", "--isl", "4", "--osl", "2", "--kv", kv];
        let memory = &report(&args).0["memory"];
        // Keys and values of 3 layers with 2 heads of 64.
        number(&memory["kv_bytes"]) / number(&memory["kv_tokens"]) / (2.0 * 3.0 * 2.0 * 64.0)
    };
    assert_eq!(["fp8", "bf16", "f32", "auto"].map(bytes), [1.0, 2.0, 4.0, 4.0]);
}

#[test]
fn a_cache_larger_than_needed_is_made_as_asked() {
    let args = ["bench", "throughput", "-m", "tiny-llama", "--isl", "4", "--osl", "2", "--kv-tokens", "1000"];
    assert_eq!(report(&args).0["memory"]["kv_tokens"], 1024);
}

#[test]
fn latency_is_of_one_sequence_in_several_runs() {
    let args = ["bench", "latency", "-m", "tiny-falcon", "--isl", "20", "--osl", "9"];
    let (report, keys) = report(&args);
    assert_eq!(keys, WHOLE_KEYS);
    fits_together(&report);
    rises(&report["decode_step_seconds"]);
    assert_eq!((&report["batch"], &report["runs"]), (&1.into(), &3.into()));
    // The slowest of three is both percentiles above two thirds, and none is below the mean.
    let first = &report["time_to_first_token_seconds"];
    assert_eq!(first["p90"], first["p99"]);
    assert!(number(&first["p99"]) >= number(&report["prefill_seconds"]));
}

#[test]
fn one_output_token_is_all_prefill() {
    let args = ["bench", "latency", "-m", "tiny-llama", "--isl", "20", "--osl", "1", "--runs", "1"];
    let (report, _) = report(&args);
    fits_together(&report);
    assert!(report["decode_step_seconds"].is_null());
    assert_eq!(report["decode_seconds"], 0.0);
}

#[test]
fn the_ops_of_a_step_sum_to_the_step() {
    for (model, synthetic) in [("tiny-llama", true), ("tiny-falcon", false)] {
        let mut args = vec!["bench", "ops", "-m", model, "--batch", "2", "--context", "70", "--steps", "4"];
        args.extend(synthetic.then_some("--synthetic"));
        let (report, keys) = report(&args);
        let wanted = [
            "bench",
            "model",
            "synthetic",
            "backend",
            "device",
            "kv_dtype",
            "batch",
            "context",
            "steps",
            "step_seconds",
            "ops",
            "between_seconds",
            "timed_step_seconds",
            "limit_seconds",
        ];
        assert_eq!(keys, wanted);
        let ops = report["ops"].as_array().unwrap();
        let between = number(&report["between_seconds"]);
        let sum: f64 = ops.iter().map(|op| number(&op["seconds"])).sum();
        equal(sum + between, number(&report["timed_step_seconds"]));
        assert!(between >= 0.0 && ops.iter().all(|op| number(&op["seconds"]) > 0.0));
        rises(&report["step_seconds"]);
        assert!(report["limit_seconds"].is_null() && ops.iter().all(|op| op["floor_seconds"].is_null()));
        // The last layer's branches, and what they are added to, are cut to the sampled rows: Falcon has two.
        let deltas = if model == "tiny-falcon" { 2 } else { 1 };
        let calls: Vec<_> =
            ops.iter().map(|op| (op["op"].as_str().unwrap(), op["calls"].as_u64().unwrap())).collect();
        let wanted = [
            ("batch to the device", 1),
            ("embed", 1),
            ("norm before attention", 3),
            ("qkv", 3),
            ("rope and append", 3),
            ("attention", 3),
            ("attention output", 3),
            ("norm before the MLP", 3),
            ("up", 3),
            ("activation", 3),
            ("down", 3),
            ("sampled rows", 1 + deltas),
            ("last norm", 1),
            ("head", 1),
            ("sample", 1),
        ];
        assert_eq!(calls, wanted, "{model}");
    }
}

#[test]
fn people_get_tables() {
    let cpu = ["-m", "tiny-llama", "--backend", "cpu"];
    let whole = ["bench", "throughput", "--isl", "8", "--osl", "4", "--batch", "2"];
    let text = stdout(&[&whole[..], &cpu].concat());
    for part in [
        "tiny-llama, f32 KV cache, on CPU\n2 sequences, 8 + 4 tokens each\n",
        "decode step, ms",
        "output tokens a second",
        "gate and up",
        "weights together",
        "KV cache of 128 tokens",
    ] {
        assert!(text.contains(part), "expected {part:?} in {text}");
    }
    assert!(!text.contains("limit") && !text.contains("measured"), "{text}");
    let ops = ["bench", "ops", "--batch", "2", "--context", "9", "--steps", "2", "--synthetic"];
    let text = stdout(&[&ops[..], &cpu].concat());
    for part in
        ["tiny-llama, random weights,", "18 tokens in the cache", "rope and append", "launch gaps and host"]
    {
        assert!(text.contains(part), "expected {part:?} in {text}");
    }
}

#[test]
fn a_context_beyond_the_models_own_is_asked_for_by_name() {
    let args = ["bench", "throughput", "-m", "tiny-llama", "--isl", "500", "--osl", "13"];
    refused_with(
        &args,
        "--isl 500 and --osl 13 make sequences of 513 tokens, beyond the model's context of 512; take fewer, or give \
         --max-context 513",
    );
    fits_together(&report(&[&args[..], &["--max-context", "513"]].concat()).0);
    refused_with(
        &["bench", "ops", "-m", "tiny-falcon", "--context", "513"],
        "--context 513 makes sequences of 513 tokens, beyond the model's context of 512; take fewer, or give \
         --max-context 513",
    );
    let huge = usize::MAX.to_string();
    refused(
        &["bench", "latency", "-m", "tiny-llama", "--isl", &huge],
        &["beyond the model's context of 512"],
    );
}

#[test]
fn sizes_of_nothing_are_refused() {
    let whole = ["isl", "osl", "batch", "max-batch-tokens", "kv-tokens", "max-context"];
    for (bench, options) in [
        ("throughput", &whole[..]),
        ("latency", &[&whole[..], &["runs"]].concat()),
        ("ops", &["batch", "context", "steps", "max-batch-tokens", "kv-tokens", "max-context"]),
    ] {
        for option in options {
            let args = ["bench", bench, "-m", "tiny-llama", &format!("--{option}"), "0"];
            refused_with(&args, &format!("--{option}: expected at least 1, got 0"));
        }
    }
    // The token of the step and one before it.
    let args = ["bench", "ops", "-m", "tiny-llama", "--context", "1"];
    refused_with(&args, "--context: expected at least 2, got 1");
}

#[test]
fn a_batch_that_does_not_fit_is_refused_with_both_sizes() {
    let args =
        ["bench", "throughput", "-m", "tiny-llama", "--kv", "fp8", "--batch", "3", "--kv-tokens", "512"];
    refused_with(
        &args,
        "a batch of 3 sequences of 255 tokens needs 768 tokens of KV cache, 576.00 KiB; --kv-tokens gives 512: \
         give more, or lower --batch",
    );
    if !cfg!(target_os = "linux") {
        return;
    }
    let too_large = ["bench", "latency", "-m", "tiny-llama", "--backend", "cpu", "--kv", "bf16", "--batch"];
    refused(
        &[&too_large[..], &["1000000000"]].concat(),
        &[
            "1000000000 sequences of 255 tokens needs 256,000,000,000 tokens of KV cache, 357.63 TiB; ",
            " of memory are free beside the weights: lower --batch or the lengths",
        ],
    );
    let most = usize::MAX.to_string();
    refused(&[&too_large[..], &[&most]].concat(), &["sequences of 255 tokens needs", "lower --batch"]);
    let ops = ["bench", "ops", "-m", "tiny-llama", "--backend", "cpu", "--kv-tokens", &most];
    refused(&ops, &["a batch of 1 sequences of 256 tokens needs", "lower --batch"]);
}

#[test]
fn a_model_by_name_needs_a_gpu() {
    refused_with(
        &["bench", "throughput", "--preset", "falcon-180b", "--backend", "cpu"],
        "--backend: expected cuda with --preset falcon-180b, got cpu",
    );
    let doctor = &json_lines(&["doctor", "--json"])[0];
    if !doctor["gpus"].as_array().unwrap().is_empty() {
        return;
    }
    for bench in ["throughput", "latency", "ops"] {
        for backend in ["auto", "cuda"] {
            let args = ["bench", bench, "--preset", "llama-2-70b", "--backend", backend];
            let line = if cfg!(feature = "cuda") {
                "no NVIDIA driver found (libcuda.so.1); install the driver or use the CPU backend"
            } else {
                "this binary was built without CUDA; build it with `--features cuda`"
            };
            refused_with(&args, line);
        }
    }
}

#[test]
fn a_model_must_be_named() {
    refused(&["bench", "throughput", "-m", "no/such/folder"], &["no/such/folder", "tiny-llama"]);
    refused(&["bench", "ops", "-m", "no/such/folder", "--synthetic"], &["no/such/folder", "tiny-llama"]);
}
