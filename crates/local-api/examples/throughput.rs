//! Measures writes: one after the other, and many at once.

use std::time::Instant;

use kfp_local_api::resources::CONFIG_MAPS;
use kfp_local_api::{Cluster, Patch};
use serde_json::json;

const SEQUENTIAL: u32 = 2000;
const WRITERS: u32 = 64;
const EACH: u32 = 200;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::args().nth(1).ok_or("usage: throughput DIRECTORY")?;
    let cluster = Cluster::open(dir.as_ref()).await?;
    let object = |name: &str| json!({"metadata": {"name": name}, "data": {"text": "x".repeat(2000)}});
    let run = std::process::id();
    let start = Instant::now();
    for number in 0..SEQUENTIAL {
        cluster.create(&CONFIG_MAPS, "default", object(&format!("s{run}-{number}"))).await?;
    }
    println!("one writer: {:?} per write", start.elapsed() / SEQUENTIAL);
    let start = Instant::now();
    let writers = (0..WRITERS).map(|writer| {
        let cluster = cluster.clone();
        let name = format!("s{run}-{writer}");
        tokio::spawn(async move {
            let mut slowest = std::time::Duration::ZERO;
            for round in 0..EACH {
                let begun = Instant::now();
                let patch = Patch::Merge(json!({"data": {"round": round.to_string()}}));
                cluster.patch(&CONFIG_MAPS, "default", &name, patch, None).await?;
                slowest = slowest.max(begun.elapsed());
            }
            Ok::<_, kfp_local_api::ApiError>(slowest)
        })
    });
    let mut slowest = std::time::Duration::ZERO;
    for writer in writers.collect::<Vec<_>>() {
        slowest = slowest.max(writer.await??);
    }
    let elapsed = start.elapsed();
    println!(
        "{WRITERS} writers: {:.0} writes per second, {:?} each, slowest {slowest:?}",
        f64::from(WRITERS * EACH) / elapsed.as_secs_f64(),
        elapsed / EACH
    );
    cluster.close().await;
    Ok(())
}
