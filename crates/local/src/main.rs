//! kfp-local.

use std::os::unix::process::CommandExt as _;

const BLOCKING_THREADS: usize = 16;
/// How long file work that nothing waits for may take when all else has stopped.
const LAST_GRACE: std::time::Duration = std::time::Duration::from_secs(1);

/// Most heaps that glibc makes. By default it is eight for each processor, and what threads free in one of them is of
/// no use to the others, which costs a quarter of the memory here.
const HEAPS: (&str, &str) = ("MALLOC_ARENA_MAX", "2");

/// Starts this program anew where the number of heaps is not set: glibc reads it before the program begins.
fn limit_heaps() {
    if !cfg!(target_env = "gnu") || std::env::var_os(HEAPS.0).is_some() {
        return;
    }
    let mut words = std::env::args_os();
    if let (Ok(program), Some(name)) = (std::env::current_exe(), words.next()) {
        // Comes back only when it fails, and then things go on as they are.
        let _ = std::process::Command::new(program).arg0(name).args(words).env(HEAPS.0, HEAPS.1).exec();
    }
}

fn main() {
    // Entering namespaces needs a process with a single thread, so this comes first.
    if let Some(code) = kfp_local_pods::pod_init_main(std::env::args_os()) {
        std::process::exit(code);
    }
    limit_heaps();
    let words: Vec<String> = std::env::args().skip(1).collect();
    let command = kfp_local::parse(&words).unwrap_or_else(|stop| stop.exit());
    kfp_core::logging::init(command.log_level());
    // One sentence, whatever RUST_BACKTRACE says: these errors are for the user, not about the program.
    let code = serve(command).unwrap_or_else(|error| {
        eprintln!("kfp-local: {error:#}");
        1
    });
    std::process::exit(code)
}

fn serve(command: kfp_local::Command) -> anyhow::Result<i32> {
    // Threads keep memory for themselves; file work is short, so few of them do for many pods.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().max_blocking_threads(BLOCKING_THREADS).build()?;
    let code = runtime.block_on(async {
        let shutdown = kfp_core::shutdown::on_signal()?;
        kfp_local::run(command, shutdown).await
    });
    // What still runs on a thread waits for somebody else: a Python environment that another process builds.
    runtime.shutdown_timeout(LAST_GRACE);
    code
}
