//! `peregrine doctor`: what this binary and this machine can do.

use crate::args;
use crate::error::Result;
use crate::output::{print_json, print_line};
use crate::table::{bytes, table};
use device::gpu::{GpuInfo, Probe, probe};
use serde::Serialize;
use std::path::PathBuf;

#[derive(Serialize)]
struct Report {
    version: &'static str,
    built_with_cuda: bool,
    driver_cuda_version: Option<String>,
    gpus: Vec<Gpu>,
    nvcc: Option<PathBuf>,
    backends: Vec<&'static str>,
    hints: Vec<String>,
}

#[derive(Serialize)]
struct Gpu {
    ordinal: usize,
    name: String,
    compute_capability: String,
    memory_bytes: u64,
    supported: bool,
}

pub fn run(args: &args::Doctor) -> Result<()> {
    let report = report(probe(), find_nvcc());
    if args.json {
        return print_json(&report);
    }
    let mut rows = vec![
        ["peregrine".to_owned(), report.version.to_owned()],
        ["built with CUDA".to_owned(), yes_no(report.built_with_cuda)],
        ["driver".to_owned(), report.driver_cuda_version.map_or("none".to_owned(), |v| format!("CUDA {v}"))],
    ];
    for gpu in &report.gpus {
        let supported = if gpu.supported { "" } else { ", not supported" };
        let text =
            format!("{} ({}), {}{supported}", gpu.name, gpu.compute_capability, bytes(gpu.memory_bytes));
        rows.push([format!("GPU {}", gpu.ordinal), text]);
    }
    rows.push(["nvcc".to_owned(), report.nvcc.map_or("none".to_owned(), |path| path.display().to_string())]);
    rows.push(["backends".to_owned(), report.backends.join(", ")]);
    print_line(table(["", ""], rows))?;
    for hint in &report.hints {
        print_line(format_args!("\nhint: {hint}"))?;
    }
    Ok(())
}

fn report(probe: Probe, nvcc: Option<PathBuf>) -> Report {
    let mut hints = Vec::new();
    let gpus = match probe.gpus {
        Ok(gpus) => gpus,
        Err(device::Error::BuiltWithoutCuda) => {
            let first = if nvcc.is_some() { "" } else { "run scripts/get-nvcc.sh, then " };
            hints.push(format!("to use a GPU, {first}build with `--features cuda`"));
            Vec::new()
        }
        Err(error) => {
            hints.push(error.to_string());
            Vec::new()
        }
    };
    let usable = gpus.iter().any(|gpu| gpu.check_supported().is_ok());
    hints.extend(gpus.iter().filter_map(|gpu| gpu.check_supported().err()).map(|error| error.to_string()));
    Report {
        version: env!("CARGO_PKG_VERSION"),
        built_with_cuda: probe.built_with_cuda,
        driver_cuda_version: probe.driver_cuda_version.map(|(major, minor)| format!("{major}.{minor}")),
        gpus: gpus.into_iter().map(Gpu::from).collect(),
        nvcc,
        backends: if usable { vec!["cuda", "cpu"] } else { vec!["cpu"] },
        hints,
    }
}

impl From<GpuInfo> for Gpu {
    fn from(gpu: GpuInfo) -> Self {
        let supported = gpu.check_supported().is_ok();
        let (major, minor) = gpu.compute_capability;
        Self {
            ordinal: gpu.ordinal,
            name: gpu.name,
            compute_capability: format!("{major}.{minor}"),
            memory_bytes: gpu.total_memory,
            supported,
        }
    }
}

/// Where the build would find the compiler, as seen from the current folder.
fn find_nvcc() -> Option<PathBuf> {
    let fetched = std::env::current_dir().unwrap_or_default().join(".cuda/nvidia/cu13/bin/nvcc");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path: Vec<PathBuf> = std::env::split_paths(&path).map(|folder| folder.join("nvcc")).collect();
    let named = std::env::var_os("NVCC").map(PathBuf::from);
    let usual = PathBuf::from("/usr/local/cuda/bin/nvcc");
    named.into_iter().chain([fetched]).chain(on_path).chain([usual]).find(|path| path.is_file())
}

fn yes_no(value: bool) -> String {
    if value { "yes" } else { "no" }.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(compute_capability: (i32, i32)) -> GpuInfo {
        GpuInfo {
            ordinal: 0,
            name: "NVIDIA A".to_owned(),
            compute_capability,
            multiprocessors: 1,
            total_memory: 1,
        }
    }

    #[test]
    fn each_lack_has_its_hint() {
        let hints = |gpus| {
            let probe = Probe { built_with_cuda: true, driver_cuda_version: Some((13, 0)), gpus };
            let hints = report(probe, None).hints;
            assert!(hints.len() <= 1, "{hints:?}");
            hints.concat()
        };
        assert_eq!(hints(Ok(vec![gpu((9, 0))])), "");
        assert!(hints(Ok(vec![gpu((8, 0))])).contains("compute capability 8.0"));
        assert!(hints(Err(device::Error::NoDriver)).contains("libcuda.so.1"));
        assert!(hints(Err(device::Error::BuiltWithoutCuda)).contains("scripts/get-nvcc.sh"));
    }
}
