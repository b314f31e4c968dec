//! Containers run from their images by podman or docker.
//!
//! Limits: the containers of a pod share volumes and `/tmp`, nothing else; they use the machine's network; resource
//! limits and security contexts are not applied. They run as root inside, or with docker as the user of this process,
//! because they write to the data directory. Output parameters are found below `/tmp` and the pod's volumes only, so
//! what an image has in its `/tmp` is not seen. Drivers, the copying of the launcher and importers need no image.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::container::Launch;
use crate::kubelet::Kubelet;
use crate::options::Runner;
use crate::spec::{Container, Pod};
use crate::volumes::Mounted;

/// Label of every container, with the data directory.
const LABEL: &str = "kfp-local";
/// Seconds for one call of the client that only looks or removes.
const TIMEOUT: &str = "60";

/// The engine's client, if there is an engine.
pub(crate) fn program(runner: Runner) -> Option<&'static str> {
    match runner {
        Runner::Process => None,
        Runner::Podman => Some("podman"),
        Runner::Docker => Some("docker"),
    }
}

/// Name of a container, unique on the machine.
pub(crate) fn name(pod: &Pod, container: &Container) -> String {
    format!("kfp-local-{}-{}", pod.metadata.uid, container.name)
}

/// The command that runs a container to its end, attached.
pub(crate) fn command(
    program: &str,
    kubelet: &Kubelet,
    pod: &Pod,
    container: &Container,
    env: &BTreeMap<String, String>,
    mounts: &[Mounted],
) -> Launch {
    let root = kubelet.dirs.pod(&pod.metadata.uid).join("root");
    let mut argv: Vec<String> = [program, "run", "--rm", "--network=host"].map(String::from).into();
    let mut option = |name: &str, value: String| argv.extend([name.to_string(), value]);
    option("--name", name(pod, container));
    option("--label", format!("{LABEL}={}", kubelet.dirs.data.display()));
    option("--pull", pull_policy(container).into());
    option("--user", if program == "podman" { "0:0".into() } else { own_user() });
    let kubeconfig = kubelet.dirs.kubeconfig();
    let account = kubelet.dirs.data.join("pod-shared/serviceaccount").join(&pod.metadata.namespace);
    option("-v", format!("{}:/tmp", root.join("tmp").display()));
    option("-v", format!("{}:/var/run/secrets/kubernetes.io/serviceaccount:ro", account.display()));
    option("-v", format!("{}:/kfp-kubeconfig:ro", kubeconfig.display()));
    option("-e", "KUBECONFIG=/kfp-kubeconfig".into());
    for bind in kubelet.dirs.common.iter().filter(|b| !b.read_only) {
        option("-v", format!("{0}:{0}", bind.target.display()));
    }
    for mount in mounts {
        let mode = if mount.read_only { ":ro" } else { "" };
        option("-v", format!("{}:{}{mode}", mount.place.display(), mount.path.display()));
    }
    for (key, value) in env {
        option("-e", format!("{key}={value}"));
    }
    if !container.working_dir.is_empty() {
        option("-w", container.working_dir.clone());
    }
    let expand = |words: &[String]| words.iter().map(|w| crate::env::expand(w, env)).collect::<Vec<_>>();
    let command = expand(&container.command);
    if let Some(first) = command.first() {
        option("--entrypoint", first.clone());
    }
    argv.push(container.image.clone());
    argv.extend(command.into_iter().skip(1));
    argv.extend(expand(&container.args));
    Launch { program: argv, env: Vec::new(), input: Vec::new() }
}

fn pull_policy(container: &Container) -> &'static str {
    match container.image_pull_policy.as_str() {
        "Always" => "always",
        "Never" => "never",
        _ => "missing",
    }
}

fn own_user() -> String {
    format!("{}:{}", nix::unistd::geteuid(), nix::unistd::getegid())
}

/// Whether an exit code may come from the client instead of the container.
pub(crate) fn may_be_its_own(code: i32) -> bool {
    (125..=127).contains(&code)
}

/// The client's explanation at the end of a log, if there is one.
pub(crate) fn failure(log: &str) -> String {
    let own = |line: &&str| line.starts_with("Error: ") || line.starts_with("docker: ");
    log.lines().rev().find(own).unwrap_or_default().to_string()
}

/// Seconds after which a container whose client was killed is looked for again: the engine may still have been
/// making it, and makes it although nobody waits for it any more.
const LATE: [u64; 4] = [0, 2, 10, 30];

/// Removes a container, running or not, without waiting for that.
pub(crate) fn remove(program: &str, name: &str) {
    tokio::spawn(removal(program, name));
}

/// As [`remove`], also when it does not exist yet.
pub(crate) fn remove_unfinished(program: &str, name: &str) {
    let removals = LATE.map(|seconds| (seconds, removal(program, name)));
    tokio::spawn(async move {
        for (seconds, removal) in removals {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            removal.await;
        }
    });
}

fn removal(program: &str, name: &str) -> impl Future<Output = ()> + Send + use<> {
    let mut command = tokio::process::Command::new("timeout");
    command.args([TIMEOUT, program, "rm", "-f", name]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let name = name.to_string();
    async move {
        if let Err(error) = command.status().await {
            tracing::warn!(%error, container = name, "cannot remove a container");
        }
    }
}

/// Removes what a server that was killed left running.
///
/// # Errors
/// A sentence that says why the engine cannot be asked.
pub(crate) fn remove_left(program: &str, data: &Path) -> Result<usize, String> {
    let ask = |words: &[&str]| {
        let output = Command::new("timeout").args([TIMEOUT, program]).args(words).stdin(Stdio::null()).output();
        let output = output.map_err(|e| format!("start {program}: {e}"))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(format!("{program} {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
    };
    let filter = format!("label={LABEL}={}", data.display());
    let listed = ask(&["ps", "-a", "-q", "--filter", &filter])?;
    let left: Vec<&str> = listed.split_whitespace().collect();
    if !left.is_empty() {
        ask(&[["rm", "-f"].as_slice(), &left].concat())?;
    }
    Ok(left.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clients_own_errors_are_found() {
        let log = "hello\nError: crun: executable file `nope` not found in $PATH: No such file or directory\n";
        assert!(failure(log).contains("`nope`"));
        assert_eq!(failure("hello\n"), "");
        assert!(may_be_its_own(127) && !may_be_its_own(1));
    }

    #[test]
    fn an_engine_that_is_not_there_is_named() {
        let error = remove_left("no-such-engine", Path::new("/x")).unwrap_err();
        assert!(error.contains("no-such-engine"), "{error}");
    }
}
