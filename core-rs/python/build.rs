//! Stamps the extension with its cargo profile and a hash of every Rust source, so that Python can
//! tell a stale or debug build (`qbtc._core.build_info()`).

use std::{
    env, fs,
    path::{Path, PathBuf},
};

fn main() {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR").unwrap()).join("../..");
    let mut files = vec![root.join("Cargo.toml"), root.join("Cargo.lock")];
    collect(&root.join("core-rs"), &mut files);
    files.sort();
    // FNV-1a over relative names and contents; `qbtc.core.build` computes the same in Python.
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for file in &files {
        println!("cargo::rerun-if-changed={}", file.display());
        let name = file.strip_prefix(&root).unwrap().to_string_lossy().replace('\\', "/");
        let content = fs::read(file).unwrap_or_default();
        for byte in name.bytes().chain([0]).chain(content).chain([0]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    println!("cargo::rerun-if-changed={}", root.join("core-rs").display());
    println!("cargo::rustc-env=QBTC_SOURCE_HASH={hash:016x}");
    println!("cargo::rustc-env=QBTC_PROFILE={}", env::var("PROFILE").unwrap());
}

/// Every `.rs` and `Cargo.toml` below `dir`.
fn collect(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|e| e == "rs") || path.ends_with("Cargo.toml") {
            files.push(path);
        }
    }
}
