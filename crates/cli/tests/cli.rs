//! The command as its users run it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed expectation fails the test"
)]

mod common;

use common::{json_lines, refused, stdout};
use std::path::Path;

/// A copy of the embedded Llama's folder, to be damaged.
fn tiny_llama() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny-llama");
    for entry in std::fs::read_dir(source).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    folder
}

fn edit_config(folder: &Path, edit: impl FnOnce(&mut serde_json::Value)) {
    let path = folder.join("config.json");
    let mut config = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    edit(&mut config);
    std::fs::write(path, config.to_string()).unwrap();
}

fn model(folder: &tempfile::TempDir) -> &str {
    folder.path().to_str().unwrap()
}

#[test]
fn both_embedded_models_speak() {
    for model in ["tiny-llama", "tiny-falcon"] {
        let text = stdout(&["generate", "-m", model, "--prompt", "KING RICHARD", "--max-tokens", "48"]);
        let words = text.split_whitespace().filter(|word| word.len() > 1).count();
        assert!(words >= 5, "{model} said {text:?}");
    }
}

#[test]
fn without_a_model_the_embedded_one_speaks_and_greedy_repeats() {
    let args = ["generate", "--prompt", "ROMEO:", "--max-tokens", "16"];
    let text = stdout(&args);
    assert!(text.len() > 10, "{text:?}");
    assert_eq!(text, stdout(&args));
}

#[test]
fn json_has_what_it_says() {
    let args =
        ["generate", "--prompt", "ROMEO:", "--max-tokens", "8", "--json", "--logprobs", "--ignore-eos"];
    let objects = json_lines(&args);
    assert_eq!(objects.len(), 1);
    let object = &objects[0];
    assert_eq!(object["token_ids"].as_array().unwrap().len(), 8);
    assert_eq!(object["logprobs"].as_array().unwrap().len(), 8);
    assert!(object["logprobs"].as_array().unwrap().iter().all(|x| x.as_f64().unwrap() <= 0.0));
    assert_eq!(object["finish_reason"], "length");
    assert_eq!(object["timings"]["generated_tokens"], 8);
    assert!(object["text"].as_str().unwrap().len() > 3);
}

#[test]
fn a_file_of_prompts_gives_what_each_gives_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("prompts.jsonl");
    let prompts =
        ["ROMEO:", "What say you to", "First Citizen:\nBefore we proceed any further, hear me", "A"];
    let lines: Vec<String> =
        prompts.iter().map(|prompt| serde_json::json!({ "prompt": prompt }).to_string()).collect();
    std::fs::write(&path, lines.join("\n") + "\n{\"token_ids\": [5, 6, 7], \"max_tokens\": 3}\n").unwrap();
    // So few pages that not all can run at once, and some go out to the host.
    let file = path.to_str().unwrap();
    let args = [
        "generate",
        "--prompt-file",
        file,
        "--max-tokens",
        "80",
        "--json",
        "--ignore-eos",
        "--kv-tokens",
        "256",
        "--kv-host-tokens",
        "1024",
    ];
    let batched = json_lines(&args);
    assert_eq!(batched.len(), 5);
    for (prompt, object) in prompts.iter().zip(&batched) {
        let alone =
            json_lines(&["generate", "--prompt", prompt, "--max-tokens", "80", "--json", "--ignore-eos"]);
        assert_eq!(object["token_ids"], alone[0]["token_ids"], "{prompt:?}");
    }
    assert_eq!(batched[4]["token_ids"].as_array().unwrap().len(), 3);
}

#[test]
fn a_seed_repeats_and_seeds_differ() {
    let run = |seed: &str| {
        stdout(&[
            "generate",
            "--prompt",
            "JULIET:",
            "--max-tokens",
            "24",
            "--temperature",
            "1",
            "--seed",
            seed,
        ])
    };
    assert_eq!(run("7"), run("7"));
    assert_ne!(run("7"), run("8"));
}

#[test]
fn a_stop_string_ends_the_text_before_it() {
    let args = ["generate", "--prompt", "ROMEO:", "--max-tokens", "64", "--json", "--ignore-eos"];
    let whole = json_lines(&args)[0]["text"].as_str().unwrap().to_owned();
    let middle = whole.char_indices().nth(whole.chars().count() / 2).unwrap().0;
    let stop: String = whole[middle..].chars().take(4).collect();
    let object = &json_lines(&[&args[..], &["--stop", &stop]].concat())[0];
    assert_eq!(object["finish_reason"], "stop");
    assert_eq!(object["text"].as_str().unwrap(), &whole[..whole.find(&stop).unwrap()]);
}

#[test]
fn token_ids_need_no_tokenizer() {
    let folder = tiny_llama();
    std::fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    let args = [
        "generate",
        "-m",
        model(&folder),
        "--token-ids",
        "5,6,7",
        "--max-tokens",
        "4",
        "--json",
        "--ignore-eos",
    ];
    let object = &json_lines(&args)[0];
    assert_eq!(object["token_ids"].as_array().unwrap().len(), 4);
    assert!(object["text"].is_null());
    refused(&["generate", "-m", model(&folder), "--prompt", "a"], &["tokenizer.json", "--token-ids"]);
}

#[test]
fn chat_goes_through_the_template() {
    let object =
        &json_lines(&["generate", "--chat", "--prompt", "Who is there?", "--max-tokens", "4", "--json"])[0];
    let plain = &json_lines(&["generate", "--prompt", "Who is there?", "--max-tokens", "4", "--json"])[0];
    assert_ne!(object["timings"]["prompt_tokens"], plain["timings"]["prompt_tokens"]);
}

#[test]
fn unknown_architectures_are_named() {
    let folder = tiny_llama();
    edit_config(folder.path(), |config| {
        config["model_type"] = "mamba".into();
        config["architectures"] = serde_json::json!(["MambaForCausalLM"]);
    });
    refused(&["generate", "-m", model(&folder), "--prompt", "a"], &["mamba", "falcon", "llama"]);
}

#[test]
fn a_missing_shard_is_named() {
    let folder = tiny_llama();
    std::fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    refused(&["generate", "-m", model(&folder), "--prompt", "a"], &["model.safetensors"]);
    let index = serde_json::json!({
        "metadata": {}, "weight_map": { "model.norm.weight": "model-00002-of-00002.safetensors" }
    });
    std::fs::write(folder.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    refused(
        &["generate", "-m", model(&folder), "--prompt", "a"],
        &["model-00002-of-00002.safetensors", "fetch the missing shard"],
    );
}

#[test]
fn a_tokenizer_of_another_model_is_refused() {
    let folder = tiny_llama();
    let path = folder.path().join("tokenizer.json");
    let mut tokenizer: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    tokenizer["model"]["vocab"]["a token too many"] = 70000.into();
    std::fs::write(path, tokenizer.to_string()).unwrap();
    refused(&["generate", "-m", model(&folder), "--prompt", "a"], &["tokenizer.json", "vocab_size"]);
}

#[test]
fn a_prompt_that_cannot_fit_is_refused_with_both_numbers() {
    let prompt = "word ".repeat(5000);
    refused(&["generate", "--prompt", &prompt], &["prompt tokens", "context of"]);
    refused(&["generate", "--prompt", "a", "--max-tokens", "1000000"], &["max_tokens", "context of"]);
    refused(
        &["generate", "--prompt", "a", "--max-tokens", "100", "--kv-tokens", "64"],
        &["KV cache", "max_tokens"],
    );
}

#[test]
fn a_missing_gpu_is_named() {
    let report = &json_lines(&["doctor", "--json"])[0];
    if report["gpus"].as_array().unwrap().is_empty() {
        let remedy = if cfg!(feature = "cuda") { "use the CPU backend" } else { "--features cuda" };
        refused(&["generate", "--backend", "cuda", "--prompt", "a"], &[remedy]);
    }
}

#[test]
fn a_reader_that_has_gone_ends_the_command_quietly() {
    use std::process::{Command, Stdio};
    for args in [&["plan", "--preset", "falcon-180b"][..], &["generate", "--prompt", "a"], &["doctor"]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_peregrine"));
        let mut child = command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !errors.contains("panicked"), "{args:?}: {errors}");
    }
}

#[test]
fn other_mistakes_are_one_line_too() {
    refused(&["generate", "-m", "no/such/folder", "--prompt", "a"], &["no/such/folder", "tiny-llama"]);
    refused(&["generate", "--prompt", "a", "--temperature", "-1"], &["temperature"]);
    refused(&["generate", "--prompt", "a", "--top-p", "2"], &["top_p"]);
    refused(&["generate", "--token-ids", "99999"], &["99999", "vocabulary"]);
    refused(&["generate", "--prompt-file", "no/such/file"], &["no/such/file"]);
    refused(&["plan", "-m", "tiny-llama", "--memory", "0"], &["memory"]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("prompts.jsonl");
    std::fs::write(&path, "{\"prompt\": \"a\"}\n{\"promt\": \"b\"}\n").unwrap();
    refused(&["generate", "--prompt-file", path.to_str().unwrap()], &["line 2", "promt"]);
}

#[test]
fn plan_adds_up() {
    let plan = &json_lines(&["plan", "--preset", "falcon-180b", "--json"])[0];
    let parts = plan["parts"].as_array().unwrap().iter();
    let sum: u64 = parts.map(|part| part["bytes"].as_u64().unwrap()).sum();
    assert_eq!(plan["weight_bytes"].as_u64(), Some(sum));
    // 177.6 G weights at 4.156 bits and a bf16 embedding: 87 to 88 GiB. KV: 80 layers of 2 x 8 heads of 64 bytes.
    assert!((86.5..88.5).contains(&(sum as f64 / f64::from(1 << 30))), "{sum}");
    assert_eq!(plan["kv_bytes_per_token"], 80 * 1024);
    let llama = &json_lines(&["plan", "--preset", "llama-2-70b", "--json"])[0];
    assert_eq!(llama["kv_bytes_per_token"], 2 * 80 * 8 * 128);
    assert!(stdout(&["plan", "-m", "tiny-falcon"]).contains("KV cache"));
}

#[test]
fn doctor_answers() {
    let report = &json_lines(&["doctor", "--json"])[0];
    assert_eq!(report["built_with_cuda"], cfg!(feature = "cuda"));
    assert_eq!(report["backends"].as_array().unwrap().last().unwrap(), "cpu");
    assert!(stdout(&["doctor"]).contains("built with CUDA"));
}
