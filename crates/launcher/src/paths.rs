//! Where things lie in the task's file system.
//!
//! A task expects its artifacts at fixed absolute paths (`/minio/bucket/key`, `/tmp/kfp/outputs/x`, ...). Where a pod
//! has no file system of its own, all of them are moved below one directory, the root. The SDK computes an artifact's
//! path from its URI alone, and takes a URI of unknown scheme as the path itself; so below a root the user's program
//! is given local paths as URIs, and URIs that it hands back are translated again.

use std::path::{Path, PathBuf};

use kfp_core::objects::{local_path, workspace_path};
use serde_json::{Map, Value, json};

use crate::spec::Artifact;

/// First components of the absolute paths that belong to the task.
const OURS: [&str; 10] = [
    "gcs",
    "minio",
    "s3",
    "oci",
    "kfp",
    "kfp-launcher",
    "kfp-workspace",
    "tmp/kfp",
    "tmp/kfp_outputs",
    "dev/termination-log",
];

/// The task's view of its paths.
#[derive(Clone, Debug, Default)]
pub struct Paths {
    root: Option<PathBuf>,
}

impl Paths {
    /// Paths below `root`, or as they are.
    #[must_use]
    pub fn new(root: Option<PathBuf>) -> Self {
        Self { root }
    }

    /// Moves an absolute path of the task below the root; other paths are left alone.
    #[must_use]
    pub fn place(&self, path: impl Into<PathBuf>) -> PathBuf {
        let path = path.into();
        match (&self.root, path.strip_prefix("/")) {
            (Some(root), Ok(inner)) if !path.starts_with(root) && OURS.iter().any(|ours| inner.starts_with(ours)) => {
                root.join(inner)
            }
            _ => path,
        }
    }

    /// Where an artifact lies, or is to be written; `None` for schemes without a local form. A custom path wins.
    #[must_use]
    pub fn artifact(&self, artifact: &Artifact) -> Option<PathBuf> {
        if !artifact.custom_path.is_empty() {
            return Some(self.place(&artifact.custom_path));
        }
        if artifact.in_workspace() {
            return workspace_path(&artifact.uri).map(|path| self.place(path));
        }
        local_path(&artifact.uri).map(|path| self.place(path))
    }

    /// The ExecutorInput as the user's program gets it.
    #[must_use]
    pub fn for_user(&self, mut input: Value) -> Value {
        for group in ["inputs", "outputs"] {
            // Not by indexing, which would insert what is missing.
            let lists = input.pointer_mut(&format!("/{group}/artifacts")).and_then(Value::as_object_mut);
            for (_, list) in lists.into_iter().flatten() {
                list.get_mut("artifacts")
                    .and_then(Value::as_array_mut)
                    .into_iter()
                    .flatten()
                    .for_each(|artifact| self.localize(artifact));
            }
        }
        if let Some(outputs) = input.get_mut("outputs").and_then(Value::as_object_mut) {
            self.replace(outputs, "outputFile");
            for (_, parameter) in outputs.get_mut("parameters").and_then(Value::as_object_mut).into_iter().flatten() {
                if let Some(parameter) = parameter.as_object_mut() {
                    self.replace(parameter, "outputFile");
                }
            }
        }
        input
    }

    fn replace(&self, object: &mut Map<String, Value>, key: &str) {
        if let Some(Value::String(path)) = object.get_mut(key) {
            *path = self.place(path.as_str()).to_string_lossy().into_owned();
        }
    }

    fn localize(&self, artifact: &mut Value) {
        let Ok(parsed) = serde_json::from_value::<Artifact>(artifact.clone()) else { return };
        let Some(path) = self.artifact(&parsed) else { return };
        let path = json!(path.to_string_lossy());
        let Some(object) = artifact.as_object_mut() else { return };
        if self.root.is_none() {
            // The SDK knows no path for this scheme.
            if parsed.uri.starts_with("azblob://") {
                object.insert("customPath".into(), path);
            }
        } else {
            object.insert("uri".into(), path.clone());
            object.insert("customPath".into(), path);
            if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
                metadata.remove("_kfp_workspace");
            }
        }
    }

    /// A URI from the user's program: a local path below the root becomes the address that it stands for.
    #[must_use]
    pub fn uri_from_user(&self, uri: &str) -> String {
        let inner = self.root.as_ref().and_then(|root| Path::new(uri).strip_prefix(root).ok()?.to_str());
        let Some(inner) = inner else { return uri.to_owned() };
        for (dir, scheme) in [("minio/", "minio://"), ("s3/", "s3://"), ("gcs/", "gs://")] {
            if let Some(rest) = inner.strip_prefix(dir) {
                return format!("{scheme}{rest}");
            }
        }
        uri.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn artifact(uri: &str, custom: &str, workspace: bool) -> Artifact {
        let mut artifact = Artifact { uri: uri.into(), custom_path: custom.into(), ..Artifact::default() };
        if workspace {
            artifact.metadata.insert("_kfp_workspace".into(), json!(true));
        }
        artifact
    }

    #[test]
    fn artifacts_with_and_without_root() {
        let (plain, below) = (Paths::default(), Paths::new(Some("/pods/1".into())));
        for (uri, custom, workspace, want) in [
            ("minio://b/k", "", false, "/minio/b/k"),
            ("minio://b/k", "", true, "/kfp-workspace/.artifacts/minio/b/k"),
            ("https://x/y", "/gcs/z", false, "/gcs/z"),
        ] {
            let artifact = artifact(uri, custom, workspace);
            assert_eq!(plain.artifact(&artifact), Some(PathBuf::from(want)));
            assert_eq!(below.artifact(&artifact), Some(PathBuf::from(format!("/pods/1{want}"))));
        }
        assert_eq!(plain.artifact(&artifact("https://x/y", "", false)), None);
    }

    #[test]
    fn only_the_tasks_own_paths_move_and_only_once() {
        let below = Paths::new(Some("/pods/1".into()));
        assert_eq!(below.place("/tmp/kfp/outputs/x"), PathBuf::from("/pods/1/tmp/kfp/outputs/x"));
        assert_eq!(below.place("/pods/1/minio/b"), PathBuf::from("/pods/1/minio/b"));
        assert_eq!(below.place("/home/me/data"), PathBuf::from("/home/me/data"));
        assert_eq!(below.place("/minio-data/x"), PathBuf::from("/minio-data/x"));
    }

    #[test]
    fn user_sees_paths_and_hands_back_addresses() {
        let below = Paths::new(Some("/pods/1".into()));
        let input = json!({
            "inputs": {"artifacts": {"a": {"artifacts": [
                {"uri": "minio://b/k", "metadata": {"_kfp_workspace": true, "x": 1}}, {"uri": "https://x"}]}}},
            "outputs": {"outputFile": "/minio/b/out.json", "parameters": {"p": {"outputFile": "/tmp/kfp/outputs/p"}}}
        });
        let seen = below.for_user(input.clone());
        let path = "/pods/1/kfp-workspace/.artifacts/minio/b/k";
        let want = json!({"uri": path, "customPath": path, "metadata": {"x": 1}});
        assert_eq!(seen["inputs"]["artifacts"]["a"]["artifacts"][0], want);
        assert_eq!(seen["inputs"]["artifacts"]["a"]["artifacts"][1], json!({"uri": "https://x"}));
        assert_eq!(seen["outputs"]["outputFile"], "/pods/1/minio/b/out.json");
        assert_eq!(seen["outputs"]["parameters"]["p"]["outputFile"], "/pods/1/tmp/kfp/outputs/p");
        assert_eq!(Paths::default().for_user(input.clone()), input);
        assert_eq!(below.uri_from_user("/pods/1/minio/b/k"), "minio://b/k");
        assert_eq!(below.uri_from_user("s3://b/k"), "s3://b/k");
    }
}
