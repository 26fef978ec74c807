//! Tells dependent build scripts where the shared kernel headers lie.

fn main() {
    let root = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    println!("cargo::rerun-if-changed=kernels/include");
    println!("cargo::metadata=include={root}/kernels/include");
}
