//! Runs the command as its users do.
#![allow(dead_code, reason = "each test file uses its part")]

use std::process::{Command, Output};

pub fn peregrine(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_peregrine")).args(args).output().unwrap()
}

#[track_caller]
pub fn stdout(args: &[&str]) -> String {
    let output = peregrine(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
pub fn json_lines(args: &[&str]) -> Vec<serde_json::Value> {
    stdout(args).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// One line that names the thing and the remedy, exit code 2, no backtrace.
#[track_caller]
pub fn refused(args: &[&str], parts: &[&str]) {
    let output = peregrine(args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{args:?}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.starts_with("error: "), "{stderr}");
    for part in parts {
        assert!(stderr.contains(part), "{args:?}: expected {part:?} in {stderr:?}");
    }
}

/// The same, where the line is known.
#[track_caller]
pub fn refused_with(args: &[&str], line: &str) {
    let stderr = String::from_utf8(peregrine(args).stderr).unwrap();
    refused(args, &[]);
    assert_eq!(stderr, format!("error: {line}\n"), "{args:?}");
}
