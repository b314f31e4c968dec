//! How long reading and compiling takes: `cargo bench -p kfp-compiler`.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kfp_compiler::{Options, Package, compile};

fn sizes(c: &mut Criterion) {
    for group in [
        &["chain-100", "chain-1000", "chain-4000"][..],
        &["fan-out-100", "fan-out-1000", "fan-out-4000"],
        &["nested-100"],
    ] {
        let mut bench = c.benchmark_group(group[0].rsplit_once('-').unwrap().0);
        bench.sample_size(10).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
        for name in group {
            let text = common::generated(name).unwrap();
            let package = Package::from_text(text.as_bytes()).unwrap();
            let size: u64 = name.rsplit_once('-').unwrap().1.parse().unwrap();
            bench.throughput(Throughput::Elements(size));
            bench.bench_with_input(BenchmarkId::new("parse", size), &text, |b, text| {
                b.iter(|| Package::from_text(black_box(text.as_bytes())).unwrap());
            });
            bench.bench_with_input(BenchmarkId::new("compile", size), &package, |b, package| {
                b.iter(|| compile(black_box(package), &Options::default()).unwrap());
            });
        }
        bench.finish();
    }
}

fn references(c: &mut Criterion) {
    let all = common::references();
    if all.is_empty() {
        eprintln!("SKIPPED: no reference pipelines; set KFP_CONFORMANCE_DIR");
        return;
    }
    let once = |(name, bytes): &(String, Vec<u8>)| {
        let package = Package::parse(black_box(bytes), name).unwrap();
        compile(&package, &Options::default()).unwrap()
    };
    let mut times: Vec<(Duration, &str)> = all
        .iter()
        .map(|one| {
            let best = (0..5).map(|_| {
                let begin = Instant::now();
                black_box(once(one));
                begin.elapsed()
            });
            (best.min().unwrap(), one.0.as_str())
        })
        .collect();
    times.sort();
    let (median, largest) = (times[times.len() / 2], times[times.len() - 1]);
    println!(
        "{} references, read and compiled: median {:?}, slowest {:?} ({})",
        all.len(),
        median.0,
        largest.0,
        largest.1
    );
    let mut bench = c.benchmark_group("references");
    bench.sample_size(10).throughput(Throughput::Elements(all.len() as u64));
    bench.bench_function("all", |b| b.iter(|| all.iter().map(once).for_each(|workflow| drop(black_box(workflow)))));
    bench.finish();
}

criterion_group!(benches, references, sizes);
criterion_main!(benches);
