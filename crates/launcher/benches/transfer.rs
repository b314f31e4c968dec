//! Figures of the launcher program: size, start, memory, and throughput on large artifacts. `LAUNCHER` names another
//! binary than the one that cargo built, `GIB` the size of the artifacts.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::cast_precision_loss)]

#[path = "../../core/tests/s3_server/mod.rs"]
mod s3_server;
#[path = "../tests/support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use support::{World, component, input};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

struct Bench {
    launcher: PathBuf,
    gib: usize,
}

fn main() {
    let gib = std::env::var("GIB").ok().and_then(|text| text.parse().ok()).unwrap_or(4);
    let launcher = std::env::var_os("LAUNCHER").unwrap_or_else(|| env!("CARGO_BIN_EXE_launcher-v2").into());
    let bench = Bench { launcher: launcher.into(), gib };
    let size = std::fs::metadata(&bench.launcher).unwrap().len();
    println!("{:<44}{:>10.1} MiB", "size of the binary", size as f64 / f64::from(1 << 20));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        bench.start().await;
        bench.idle().await;
        bench.local_file().await;
        bench.local_tree().await;
        bench.s3_upload().await;
        bench.s3_tree().await;
        bench.s3_download().await;
    });
}

/// Waits until the disk has what was written: else the next to write is held back for what others wrote before.
fn settle() {
    assert!(std::process::Command::new("sync").status().unwrap().success());
}

impl Bench {
    async fn start(&self) {
        let mut times = Vec::new();
        for _ in 0..50 {
            let started = Instant::now();
            Command::new(&self.launcher).arg("--version").output().await.unwrap();
            times.push(started.elapsed());
        }
        times.sort();
        println!("{:<44}{:>10.1} ms", "start of the program (median of 50)", times[25].as_secs_f64() * 1e3);
    }

    async fn command(&self, world: &World, script: &str) -> Command {
        let mut input = input();
        input["inputs"]["artifacts"] = serde_json::json!({});
        self.command_with(world, &input, script).await
    }

    async fn command_with(&self, world: &World, input: &serde_json::Value, script: &str) -> Command {
        let task = world.task("t").await;
        let script = format!("{script}; echo 1 > {{{{$.outputs.parameters['number'].output_file}}}}");
        let mut command = Command::new(&self.launcher);
        command
            .args(world.flags(task, input, &component()))
            .args(["sh", "-ec", &script])
            .env("KFP_POD_ROOT", world.pod(""))
            .env("AWS_ACCESS_KEY_ID", "k")
            .env("AWS_SECRET_ACCESS_KEY", "s")
            .env_remove("KUBERNETES_SERVICE_HOST")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    fn local(world: &World, mut command: Command) -> Command {
        command.env("KFP_OBJECT_STORE_DIR", world.store(""));
        command
    }

    async fn idle(&self) {
        let world = World::new(1).await;
        let started = Instant::now();
        let mut child =
            Self::local(&world, self.command(&world, "echo ready; sleep 1; echo more").await).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("ready"));
        println!(
            "{:<44}{:>10.1} ms",
            "from its start to the user's first output",
            started.elapsed().as_secs_f64() * 1e3
        );
        assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("more"));
        println!("{:<44}{:>10.1} MiB", "resident while the user's program runs", mib(&child, "VmRSS:").unwrap());
        assert!(child.wait().await.unwrap().success());
    }

    /// Runs to the end; seconds from the user's last line, and the peak of resident memory.
    async fn measure(&self, mut command: Command) -> (f64, f64) {
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (mut peak, mut started) = (0.0, Instant::now());
        let status = loop {
            tokio::select! {
                Ok(Some(line)) = lines.next_line() => if line == "now" { started = Instant::now() },
                () = tokio::time::sleep(Duration::from_millis(20)) => peak = mib(&child, "VmHWM:").unwrap_or(peak),
            }
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
        };
        assert!(status.success());
        (started.elapsed().as_secs_f64(), peak)
    }

    fn report(&self, what: &str, (seconds, peak): (f64, f64)) {
        let speed = (self.gib << 10) as f64 / seconds;
        println!("{:<44}{speed:>10.0} MiB/s{peak:>9.1} MiB resident at most", format!("{what}, {} GiB", self.gib));
    }

    async fn local_file(&self) {
        let world = World::new(9).await;
        let source = world.dir.path().join("source");
        fill(&source, self.gib << 30);
        let mut times = [Vec::new(), Vec::new()];
        // Each comes first in half of the rounds: what comes second finds a disk that is busier.
        for order in [[0, 1], [1, 0], [0, 1], [1, 0]] {
            for which in order {
                settle();
                let done = if which == 0 { Self::cp(&world, &source) } else { self.stored(&world, &source).await };
                self.report(["cp", "file to a local store"][which], done);
                times[which].push(done.0);
            }
        }
        let [cp, stored] = times.map(|times| times.iter().sum::<f64>());
        println!("{:<44}{:>10.0} %", "file to a local store beside cp", cp / stored * 100.0);
    }

    fn cp(world: &World, source: &Path) -> (f64, f64) {
        let copy = world.dir.path().join("copy");
        let started = Instant::now();
        assert!(std::process::Command::new("cp").arg(source).arg(&copy).status().unwrap().success());
        let seconds = started.elapsed().as_secs_f64();
        std::fs::remove_file(&copy).unwrap();
        (seconds, 0.0)
    }

    async fn stored(&self, world: &World, source: &Path) -> (f64, f64) {
        let script = format!("ln {} {{{{$.outputs.artifacts['model'].path}}}}; echo now", source.display());
        let done = self.measure(Self::local(world, self.command(world, &script).await)).await;
        std::fs::remove_dir_all(world.store("")).unwrap();
        std::fs::remove_dir_all(world.pod("")).unwrap();
        done
    }

    /// A directory of 1 MiB files, linked from one.
    fn tree(&self, world: &World) -> PathBuf {
        let tree = world.dir.path().join("tree");
        std::fs::create_dir(&tree).unwrap();
        fill(&tree.join("0"), 1 << 20);
        for index in 1..self.gib << 10 {
            std::fs::hard_link(tree.join("0"), tree.join(index.to_string())).unwrap();
        }
        tree
    }

    async fn local_tree(&self) {
        let world = World::new(9).await;
        let tree = self.tree(&world);
        let script = format!("ln -s {} {{{{$.outputs.artifacts['model'].path}}}}; echo now", tree.display());
        let command = self.command(&world, &script).await;
        self.report("directory of 1 MiB files to a local store", self.measure(Self::local(&world, command)).await);
    }

    async fn s3_upload(&self) {
        let (world, state) = s3_world().await;
        state.lock().unwrap().forget = true;
        let source = world.dir.path().join("source");
        fill(&source, self.gib << 30);
        let script = format!("ln {} {{{{$.outputs.artifacts['model'].path}}}}; echo now", source.display());
        self.report("file to S3 (plain HTTP)", self.measure(self.command(&world, &script).await).await);
    }

    async fn s3_tree(&self) {
        let (world, state) = s3_world().await;
        state.lock().unwrap().forget = true;
        let tree = self.tree(&world);
        let script = format!("ln -s {} {{{{$.outputs.artifacts['model'].path}}}}; echo now", tree.display());
        self.report("directory of 1 MiB files to S3", self.measure(self.command(&world, &script).await).await);
    }

    async fn s3_download(&self) {
        let (world, state) = s3_world().await;
        state.lock().unwrap().huge = self.gib << 30;
        let mut input = input();
        input["inputs"]["artifacts"]["data"]["artifacts"][0]["uri"] = serde_json::json!("minio://bucket/huge");
        let script = format!("test $(stat -c %s {{{{$.inputs.artifacts['data'].path}}}}) = {}", self.gib << 30);
        self.report("file from S3 (plain HTTP)", self.measure(self.command_with(&world, &input, &script).await).await);
    }
}

async fn s3_world() -> (World, std::sync::Arc<std::sync::Mutex<s3_server::State>>) {
    let (state, address) = s3_server::listen().await;
    let root = format!("minio://bucket/root?endpoint={address}&disable_https=true&use_path_style=true&region=x");
    (World::with_root(9, &root).await, state)
}

fn fill(path: &Path, size: usize) {
    let block: Vec<u8> = (0..1 << 20).map(|i: u32| (i % 251) as u8).collect();
    let mut file = std::fs::File::create(path).unwrap();
    for _ in 0..size >> 20 {
        std::io::Write::write_all(&mut file, &block).unwrap();
    }
}

/// A figure of a running process, in MiB.
fn mib(child: &Child, name: &str) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id()?)).ok()?;
    let line = status.lines().find(|line| line.starts_with(name))?;
    Some(line.split_whitespace().nth(1)?.parse::<f64>().ok()? / 1024.0)
}
