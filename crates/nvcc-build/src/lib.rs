//! Compiles a crate's CUDA kernels to sm_90a cubins from its build script.
//!
//! ```no_run
//! // in the `main` of build.rs
//! nvcc_build::compile(&["kernels/x_sm90.cu"]);
//! ```
//!
//! Each `NAME.cu` becomes `$OUT_DIR/NAME.cubin`, to be embedded with `include_bytes!`. nvcc is, in this order: `$NVCC`,
//! what scripts/get-nvcc.sh put under `.cuda/` of the checkout, `nvcc` on the PATH, `/usr/local/cuda/bin/nvcc`.
//! `$PEREGRINE_CUBIN_DIR` names a folder of prebuilt cubins to embed instead. The build fails where a kernel spills
//! registers: a spill is a silent loss of speed.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::{Command, exit};

/// The one line a user sees where there is no compiler.
const NO_NVCC: &str =
    "no CUDA compiler (nvcc) found: run scripts/get-nvcc.sh, or set NVCC to yours (13.0 or newer)";

/// Compiles `sources`, paths relative to the crate, or ends the build with one line that says what to do.
pub fn compile(sources: &[&str]) {
    compile_allowing_spills(sources, 0);
}

/// The same for kernels that may store or load up to `bytes` bytes of spilled registers each: where a measurement has shown
/// that more threads are worth it.
pub fn compile_allowing_spills(sources: &[&str], bytes: u64) {
    println!("cargo::rerun-if-changed=kernels");
    println!("cargo::rerun-if-env-changed=NVCC");
    println!("cargo::rerun-if-env-changed=PEREGRINE_CUBIN_DIR");
    for source in sources {
        if let Err(message) = compile_one(Path::new(source), bytes) {
            eprintln!("error: {message}");
            println!("cargo::error={message}");
            exit(1);
        }
    }
}

fn compile_one(source: &Path, allowed_spills: u64) -> Result<(), String> {
    let name = source.file_stem().unwrap_or_default().to_string_lossy().into_owned() + ".cubin";
    let cubin = env_path("OUT_DIR")?.join(&name);
    if let Some(folder) = std::env::var_os("PEREGRINE_CUBIN_DIR") {
        let prebuilt = PathBuf::from(folder).join(&name);
        println!("cargo::rerun-if-changed={}", prebuilt.display());
        return match std::fs::copy(&prebuilt, &cubin) {
            Ok(_) => Ok(()),
            Err(error) => Err(format!("PEREGRINE_CUBIN_DIR: {}: {error}", prebuilt.display())),
        };
    }
    let mut command = nvcc()?;
    command.args(["-cubin", "-std=c++17", "-O3", "-gencode=arch=compute_90a,code=sm_90a"]);
    command.args(["--ptxas-options=-v", "-Werror=all-warnings", "-lineinfo"]);
    for (variable, include) in std::env::vars_os() {
        // Every dependency with `links` and an `include` key, `device` among them.
        if variable.to_str().is_some_and(|name| name.starts_with("DEP_") && name.ends_with("_INCLUDE")) {
            println!("cargo::rerun-if-changed={}", Path::new(&include).display());
            command.arg("-I").arg(include);
        }
    }
    let output =
        command.arg("-o").arg(&cubin).arg(source).output().map_err(|error| format!("nvcc: {error}"))?;
    let report = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("nvcc failed on {}:\n{report}", source.display()));
    }
    match spills(&report, allowed_spills) {
        Some(line) => Err(format!("{} spills registers: {line}", source.display())),
        None => Ok(()),
    }
}

/// The first line of ptxas' report that counts more than `allowed` spilled bytes.
fn spills(report: &str, allowed: u64) -> Option<&str> {
    report.lines().map(str::trim).find(|line| {
        line.split(',').any(|part| {
            let mut words = part.split_whitespace();
            let bytes = words.next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
            bytes > allowed && part.contains("spill")
        })
    })
}

/// The compiler, with what cc adds from the environment.
fn nvcc() -> Result<Command, String> {
    let path = find_nvcc().ok_or(NO_NVCC)?;
    let tool = cc::Build::new()
        .cuda(true)
        .no_default_flags(true)
        .warnings(false)
        .compiler(&path)
        .try_get_compiler()
        .map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(tool.to_command())
}

fn find_nvcc() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("NVCC") {
        return Some(PathBuf::from(path));
    }
    let checkout = env_path("CARGO_MANIFEST_DIR").ok()?;
    let fetched = checkout.ancestors().map(|folder| folder.join(".cuda/nvidia/cu13/bin/nvcc"));
    let on_path = std::env::var_os("PATH").unwrap_or_default();
    let on_path: Vec<PathBuf> = std::env::split_paths(&on_path).map(|folder| folder.join("nvcc")).collect();
    fetched.chain(on_path).chain([PathBuf::from("/usr/local/cuda/bin/nvcc")]).find(|path| path.is_file())
}

fn env_path(name: &str) -> Result<PathBuf, String> {
    std::env::var_os(name)
        .map(PathBuf::from)
        .ok_or_else(|| format!("{name} is not set: call this from a build script"))
}

#[cfg(test)]
mod tests {
    use super::spills;

    #[test]
    fn a_spill_is_found_and_its_absence_too() {
        let clean = "    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads";
        let spilled = "    8 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads";
        assert_eq!(spills(clean, 0), None);
        assert_eq!(spills(&format!("ptxas info\n{spilled}"), 0), Some(spilled.trim()));
        assert_eq!(spills(spilled, 11), Some(spilled.trim()));
        assert_eq!(spills(spilled, 12), None);
    }
}
