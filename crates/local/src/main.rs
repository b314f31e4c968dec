//! kfp-local.

const BLOCKING_THREADS: usize = 16;

fn main() {
    // Entering namespaces needs a process with a single thread, so this comes first.
    if let Some(code) = kfp_local_pods::pod_init_main(std::env::args_os()) {
        std::process::exit(code);
    }
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
    runtime.block_on(async {
        let shutdown = kfp_core::shutdown::on_signal()?;
        kfp_local::run(command, shutdown).await
    })
}
