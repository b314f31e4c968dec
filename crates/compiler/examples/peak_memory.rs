//! Prints the peak memory of reading and compiling generated pipelines, each in a process of its own (Linux).
#![allow(clippy::unwrap_used)]

#[path = "../benches/common/mod.rs"]
mod common;

use kfp_compiler::{Options, Package, compile};

/// Largest resident size of this process so far, in KiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse().unwrap()
}

fn main() {
    if let Some(name) = std::env::args().nth(1) {
        let text = common::generated(&name).unwrap_or_else(|| std::fs::read_to_string(&name).unwrap());
        let before = peak();
        let package = Package::from_text(text.as_bytes()).unwrap();
        let workflow = compile(&package, &Options::default()).unwrap();
        let printed = workflow.to_string().len();
        println!(
            "{name}: input {} KiB, Workflow {} KiB, peak {} KiB above {before} KiB",
            text.len() >> 10,
            printed >> 10,
            peak() - before
        );
        return;
    }
    let references = common::references().len();
    eprintln!("{references} references are not measured here; name a file to measure it");
    for name in ["chain-1000", "chain-4000", "fan-out-1000", "fan-out-4000", "nested-100"] {
        std::process::Command::new(std::env::current_exe().unwrap()).arg(name).status().unwrap();
    }
}
