//! Containers run from their images by podman or docker.
//!
//! Limits: each container is started on its own (no shared network namespace), the machine's
//! network is used, the pod's volumes are bind-mounted, and private directories exist only as far
//! as the image and the volumes have them. Output parameters are read from a `/tmp` shared with
//! the host, so images whose `/tmp` has contents do not see them.

use std::collections::BTreeMap;

use crate::container::Launch;
use crate::kubelet::Kubelet;
use crate::options::Runner;
use crate::spec::{Container, Pod};
use crate::volumes::Mounted;

/// Name of the engine's program.
pub(crate) fn program(runner: Runner) -> &'static str {
    if runner == Runner::Docker { "docker" } else { "podman" }
}

/// Name of a container, unique on the machine.
pub(crate) fn name(pod: &Pod, container: &Container) -> String {
    format!("kfp-local-{}-{}", pod.metadata.uid, container.name)
}

/// The command that runs a container to its end, attached.
pub(crate) fn command(
    kubelet: &Kubelet,
    pod: &Pod,
    container: &Container,
    env: &BTreeMap<String, String>,
    mounts: &[Mounted],
) -> Launch {
    let root = kubelet.dirs.pod(&pod.metadata.uid).join("root");
    let mut argv: Vec<String> =
        [program(kubelet.options.runner), "run", "--rm", "--init", "--network=host"].map(String::from).into();
    let mut option = |name: &str, value: String| argv.extend([name.to_string(), value]);
    option("--name", name(pod, container));
    option("--label", format!("kfp-local={}", kubelet.dirs.data.display()));
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
