//! Starts a private server, prints its port and ends it when the standard input ends.
//!
//! `cargo run -p kfp-testdb --example serve mariadb` (or `postgres`)

use std::io::Read as _;

use kfp_testdb::Engine;

fn main() {
    let engine = match std::env::args().nth(1).as_deref() {
        Some("mariadb") => Engine::MariaDb,
        Some("postgres") => Engine::Postgres,
        other => {
            eprintln!("mariadb or postgres, not {other:?}");
            std::process::exit(2);
        }
    };
    let Some(server) = engine.start() else { std::process::exit(1) };
    println!("{}", server.port());
    // The end of the input is all that matters.
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}
