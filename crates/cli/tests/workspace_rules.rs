//! Rules of the workspace that cargo itself does not check: which crate may depend on which, where dependencies
//! come from, and under which licences.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed expectation fails the test"
)]

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};

/// Rows of the house, from the top. A crate depends only on crates of lower rows, never on its neighbours.
const ROWS: &[&[&str]] = &[
    &["benches"],
    &["cli"],
    &["engine"],
    &["models"],
    &["fp8", "awq-gemm", "gqa-attention", "kv-cache", "layers", "sampling", "checkpoint"],
    &["device"],
];

/// Crates that stand beside the rows: for build scripts and tests only.
const TOOLS: &[&str] = &["nvcc-build", "op-test"];

/// Every licence a dependency may be used under.
const LICENCES: &[&str] = &[
    "MIT",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

fn metadata() -> Metadata {
    MetadataCommand::new()
        .other_options(["--offline".into(), "--locked".into()])
        .exec()
        .expect("cargo metadata")
}

fn row(name: &str) -> usize {
    ROWS.iter()
        .position(|row| row.contains(&name))
        .unwrap_or_else(|| panic!("{name} has no row: give it one"))
}

/// Whether crate `from` may have an edge of `kind` to crate `to`.
fn allowed(from: &str, to: &str, kind: DependencyKind) -> bool {
    match (TOOLS.contains(&from), TOOLS.contains(&to)) {
        (false, false) => row(from) < row(to),
        (false, true) => match to {
            "nvcc-build" => kind == DependencyKind::Build,
            _ => kind == DependencyKind::Development,
        },
        // op-test compares and guards the elements that device defines.
        (true, false) => from == "op-test" && to == "device",
        (true, true) => false,
    }
}

#[test]
fn dependencies_point_down() {
    let metadata = metadata();
    let members = metadata.workspace_packages();
    let names: Vec<&str> = members.iter().map(|package| package.name.as_str()).collect();
    let mut wrong = Vec::new();
    for package in &members {
        for dependency in package.dependencies.iter().filter(|d| names.contains(&d.name.as_str())) {
            if !allowed(&package.name, &dependency.name, dependency.kind) {
                wrong.push(format!("{} -> {} ({:?})", package.name, dependency.name, dependency.kind));
            }
        }
    }
    assert!(wrong.is_empty(), "edges against ARCHITECTURE.md: {wrong:#?}");
}

#[test]
fn the_rule_refuses_what_it_should() {
    let (normal, development) = (DependencyKind::Normal, DependencyKind::Development);
    assert!(allowed("cli", "engine", normal));
    assert!(!allowed("engine", "cli", normal));
    assert!(!allowed("fp8", "layers", normal));
    assert!(!allowed("fp8", "layers", development));
    assert!(!allowed("models", "op-test", normal));
    assert!(!allowed("device", "models", normal));
}

#[test]
fn dependencies_come_from_the_registry_under_known_licences() {
    let mut wrong = Vec::new();
    for package in metadata().packages.iter().filter(|package| package.source.is_some()) {
        let source = package.source.as_ref().map(ToString::to_string).unwrap_or_default();
        if source != "registry+https://github.com/rust-lang/crates.io-index" {
            wrong.push(format!("{} comes from {source}", package.name));
        }
        // SPDX expressions of dependencies are flat: any one of the alternatives suffices, all of a conjunction.
        let licence = package.license.clone().unwrap_or_default().replace('/', " OR ");
        let known = licence.split(" AND ").all(|part| {
            part.trim_matches(['(', ')'])
                .split(" OR ")
                .any(|name| LICENCES.contains(&name.trim().trim_matches(['(', ')'])))
        });
        if !known {
            wrong.push(format!("{} is under {licence:?}", package.name));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
