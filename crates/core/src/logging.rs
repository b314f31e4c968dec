//! Structured logs on standard error.

use tracing_subscriber::EnvFilter;

/// Starts logging at `level` (`error`, `warn`, `info`, `debug`, `trace`; upstream's `warning`, `fatal` and `panic` are
/// understood, anything else means `info`). `RUST_LOG` overrides it; `LOG_FORMAT=json` prints one JSON object a line.
/// A second call does nothing, so that tests and programs that host several components may call it freely.
pub fn init(level: &str) {
    let level = match level.to_ascii_lowercase().as_str() {
        "error" | "fatal" | "panic" => "error",
        "warn" | "warning" => "warn",
        "debug" => "debug",
        "trace" => "trace",
        _ => "info",
    };
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new(format!("{level},sqlx=warn,h2=warn,hyper=warn,tower=warn")));
    // A message that cannot be written (the log is on a full disk) is lost; complaining about that on the same
    // standard error would panic and take the task down that wanted to say something.
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).log_internal_errors(false);
    let json = std::env::var("LOG_FORMAT").is_ok_and(|format| format == "json");
    let done = if json { builder.json().try_init() } else { builder.with_ansi(false).try_init() };
    drop(done);
}
