//! Where an artifact lies in a task's container. The SDK computes the same paths from the URI.

use std::path::{Path, PathBuf};

/// Mount point of a run's workspace volume.
pub const WORKSPACE: &str = "/kfp-workspace";

/// The absolute path of an artifact in the container: `/gcs`, `/minio` and `/s3` followed by bucket and key, and
/// `/oci/<image with / as _>/models` for images. `None` for every other scheme, which has no local form.
/// Azure's, which upstream does not have, go where a pod without a directory for them can write.
#[must_use]
pub fn local_path(uri: &str) -> Option<PathBuf> {
    let (scheme, rest) = uri.split_once("://")?;
    if rest.is_empty() || Path::new(rest).components().any(|c| matches!(c, std::path::Component::ParentDir)) {
        return None;
    }
    Some(PathBuf::from(match scheme {
        "gs" => format!("/gcs/{rest}"),
        "minio" => format!("/minio/{rest}"),
        "s3" => format!("/s3/{rest}"),
        "azblob" => format!("/tmp/kfp/azblob/{rest}"),
        "oci" => format!("/oci/{}/models", rest.replace('/', "_")),
        _ => return None,
    }))
}

/// Where the workspace holds the same artifact: `/kfp-workspace/.artifacts/minio/bucket/key`. `None` for schemes
/// without a local form and for images.
#[must_use]
pub fn workspace_path(uri: &str) -> Option<PathBuf> {
    if uri.starts_with("oci://") {
        return None;
    }
    let local = local_path(uri)?;
    let relative = local.strip_prefix("/").ok()?;
    Some(Path::new(WORKSPACE).join(".artifacts").join(relative))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_forms() {
        for (uri, path) in [
            ("gs://b/k/x", Some("/gcs/b/k/x")),
            ("azblob://container/k", Some("/tmp/kfp/azblob/container/k")),
            ("minio://b/k", Some("/minio/b/k")),
            ("s3://b/k", Some("/s3/b/k")),
            ("oci://quay.io/org/model:1", Some("/oci/quay.io_org_model:1/models")),
            ("https://example.com/x", None),
            ("file:///x", None),
            ("minio://b/../../etc/passwd", None),
            ("plain", None),
        ] {
            assert_eq!(local_path(uri), path.map(PathBuf::from), "{uri}");
        }
        assert_eq!(workspace_path("s3://b/k"), Some(PathBuf::from("/kfp-workspace/.artifacts/s3/b/k")));
        assert_eq!(workspace_path("oci://b/k"), None);
    }
}
