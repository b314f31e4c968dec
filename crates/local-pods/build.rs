//! The init process starts, twice, in every pod: what its start takes, each task takes.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let is = |name: &str, value: &str| std::env::var(name).is_ok_and(|found| found.split(',').any(|one| one == value));
    let static_runtime = is("CARGO_CFG_TARGET_FEATURE", "crt-static");
    if is("CARGO_CFG_TARGET_OS", "linux") && is("CARGO_CFG_TARGET_ENV", "gnu") && !static_runtime {
        // At a fixed address there are no addresses to be corrected before the first instruction.
        println!("cargo:rustc-link-arg-bins=-no-pie");
    }
}
