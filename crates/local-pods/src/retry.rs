//! Attempts of one task share their scratch.
//!
//! On a cluster each attempt has a file system of its own. A pipeline written for local execution may count its
//! attempts in a file below `/tmp`, and there is only this machine. So `/tmp` and the working directory of a failed
//! attempt become those of the next one; whatever this platform itself keeps there begins anew. All other pods, and
//! all other directories, stay private.

use std::path::Path;

use crate::api::{Api, resources::PODS};
use crate::kubelet::is_over;
use crate::recovery;
use crate::spec::Pod;

/// Annotation with the identifier of the Retry node whose attempt the pod is, set by the engine.
pub(crate) const PARENT: &str = "workflows.argoproj.io/retry-parent";
/// Label with the name of the pod's Workflow.
pub(crate) const WORKFLOW: &str = "workflows.argoproj.io/workflow";
/// What moves on, below the pod's root.
const SCRATCH: [&str; 2] = ["tmp", "kfp-work"];
/// What does not: outputs of the attempt before must not pass for those of this one.
const OUTPUTS: [&str; 3] = ["tmp/kfp", "tmp/kfp_outputs", "tmp/outputs"];

/// Identities of the other attempts of a pod's task.
pub(crate) fn earlier_attempts(api: &dyn Api, pod: &Pod) -> Vec<String> {
    let meta = &pod.metadata;
    let Some(parent) = meta.annotations.get(PARENT) else { return Vec::new() };
    let workflow = meta.labels.get(WORKFLOW).map(String::as_str);
    let attempts = api.list(&PODS).0.into_iter().filter(|other| {
        other.namespace() == meta.namespace
            && other.label(WORKFLOW) == workflow
            && other.uid() != Some(meta.uid.as_str())
            && is_over(other)
            && match other.parse() {
                Ok(other) => other["metadata"]["annotations"][PARENT] == parent.as_str(),
                Err(error) => {
                    tracing::warn!(pod = %meta.name, %error, "cannot read a pod that may be an attempt before this one");
                    false
                }
            }
    });
    attempts.filter_map(|other| other.uid().map(str::to_owned)).collect()
}

/// Moves the scratch of an earlier attempt into the root of this one. Only the last attempt still has it.
pub(crate) fn take_over(pods: &Path, earlier: &[String], root: &Path) -> std::io::Result<()> {
    for name in SCRATCH {
        let to = root.join(name);
        for uid in earlier {
            let from = pods.join(uid).join("root").join(name);
            if to.exists() || !from.is_dir() {
                continue;
            }
            std::fs::create_dir_all(root)?;
            match std::fs::rename(&from, &to) {
                // Its pod was deleted in this moment.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                moved => moved?,
            }
        }
    }
    OUTPUTS.iter().for_each(|name| recovery::remove(&root.join(name)));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scratch_moves_on_and_outputs_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let pods = dir.path();
        for path in ["a/root/tmp/outputs", "a/root/tmp/own", "a/root/kfp-work", "a/root/minio"] {
            std::fs::create_dir_all(pods.join(path)).unwrap();
        }
        let root = pods.join("b/root");
        take_over(pods, &["gone".into(), "a".into()], &root).unwrap();
        assert!(root.join("tmp/own").is_dir() && root.join("kfp-work").is_dir());
        assert!(!root.join("tmp/outputs").exists() && !root.join("minio").exists());
        assert!(!pods.join("a/root/tmp").exists());
    }
}
