//! Where paths of a container are on this machine.

use std::path::{Component, Path, PathBuf};

/// Directories that belong to each pod alone, whatever the machine has under these names.
pub(crate) const PRIVATE: [&str; 13] = [
    "/tmp",
    "/var/tmp",
    "/minio",
    "/s3",
    "/gcs",
    "/oci",
    "/kfp",
    "/kfp-launcher",
    "/kfp-workspace",
    "/kfp-home",
    "/kfp-work",
    "/var/run/secrets",
    "/run/secrets",
];

/// Whether a top-level directory is each pod's own and nothing else but volumes is ever there.
pub(crate) fn is_pods_own(name: &str) -> bool {
    let kept = ["kfp-home", "kfp-work"];
    ["minio", "s3", "gcs", "oci"].contains(&name)
        || name.starts_with('.')
        || (name.starts_with("kfp") && !kept.contains(&name))
}

/// Maps paths inside a pod's container to paths of this machine. Needed by everything that runs in
/// the server on behalf of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Paths {
    root: PathBuf,
    /// Mount path in the container, place on the machine; longest first.
    mounts: Vec<(PathBuf, PathBuf)>,
    /// Places of this machine that containers share; never rewritten.
    shared: Vec<PathBuf>,
    /// Further private paths: what the container is said to write.
    declared: Vec<String>,
}

/// More links than this in one path are a loop, as in the kernel.
const MAX_LINKS: usize = 40;

impl Paths {
    pub(crate) fn new(root: PathBuf, mounts: impl IntoIterator<Item = (PathBuf, PathBuf)>) -> Self {
        let mut mounts: Vec<_> = mounts.into_iter().collect();
        mounts.sort_by_key(|(path, _)| std::cmp::Reverse(path.components().count()));
        Self { root, mounts, shared: Vec::new(), declared: Vec::new() }
    }

    /// Leaves these places alone in [`Paths::rewrite`].
    pub(crate) fn sharing(mut self, places: impl IntoIterator<Item = PathBuf>) -> Self {
        self.shared.extend(places);
        self
    }

    /// Takes these for private paths in [`Paths::rewrite`], too.
    pub(crate) fn declaring(mut self, paths: &[String]) -> Self {
        self.declared.extend_from_slice(paths);
        self
    }

    /// The pod's private root directory on this machine.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The place of a container's path on this machine, symbolic links not considered. Relative
    /// paths start at the container's root.
    pub fn host(&self, path: &Path) -> PathBuf {
        let path = absolute(path);
        for (mount, place) in &self.mounts {
            if let Ok(rest) = path.strip_prefix(mount) {
                return if rest.as_os_str().is_empty() { place.clone() } else { place.join(rest) };
            }
        }
        self.root.join(path.strip_prefix("/").unwrap_or(&path))
    }

    /// As [`Paths::host`], with symbolic links followed as the container would follow them, so
    /// that a link never leads to a file of this machine.
    ///
    /// # Errors
    /// More than 40 links.
    pub fn resolve(&self, path: &Path) -> std::io::Result<PathBuf> {
        let mut done = PathBuf::from("/");
        let mut todo: Vec<PathBuf> = parts(&absolute(path));
        let mut links = 0;
        while let Some(part) = todo.pop() {
            let next = done.join(&part);
            match std::fs::read_link(self.host(&next)) {
                Ok(link) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(std::io::Error::other("too many levels of symbolic links"));
                    }
                    todo.extend(parts(&absolute(&done.join(link))));
                    done = PathBuf::from("/");
                }
                Err(_) => done = next,
            }
        }
        Ok(self.host(&done))
    }

    /// Rewrites private paths that occur in a text to their places on this machine: for containers
    /// without a mount tree of their own.
    pub(crate) fn rewrite(&self, text: &str) -> String {
        let mounts = self.mounts.iter().map(|(mount, _)| mount.to_string_lossy());
        let mut prefixes: Vec<_> =
            PRIVATE.iter().map(|p| (*p).into()).chain(mounts).chain(self.declared.iter().map(|p| p.into())).collect();
        prefixes.sort_by_key(|p| std::cmp::Reverse(p.len()));
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(at) = rest.find('/') {
            let (before, after) = rest.split_at(at);
            out.push_str(before);
            let starts = !out.ends_with(|c: char| c.is_alphanumeric() || "/._-~)}".contains(c));
            let found = prefixes.iter().find(|p| {
                let ends = |tail: &str| !tail.starts_with(|c: char| c.is_alphanumeric() || "._-".contains(c));
                starts && p.len() > 1 && after.strip_prefix(p.as_ref()).is_some_and(ends)
            });
            let shared =
                self.shared.iter().map(|p| p.to_string_lossy()).find(|p| starts && after.starts_with(p.as_ref()));
            let taken = match (shared, found) {
                (Some(shared), _) => {
                    out.push_str(&shared);
                    shared.len()
                }
                (None, Some(prefix)) => {
                    out.push_str(&self.root.to_string_lossy());
                    out.push_str(prefix);
                    prefix.len()
                }
                (None, None) => {
                    out.push('/');
                    1
                }
            };
            rest = after.get(taken..).unwrap_or_default();
        }
        out.push_str(rest);
        out
    }
}

fn absolute(path: &Path) -> PathBuf {
    let mut out = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => out.push(name),
            Component::ParentDir => {
                out.pop();
            }
            _ => {}
        }
    }
    out
}

fn parts(path: &Path) -> Vec<PathBuf> {
    let mut parts: Vec<PathBuf> = path
        .components()
        .filter_map(|c| if let Component::Normal(name) = c { Some(PathBuf::from(name)) } else { None })
        .collect();
    parts.reverse();
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(root: &Path) -> Paths {
        Paths::new(root.into(), [("/data".into(), "/volumes/d".into()), ("/data/in".into(), "/volumes/i".into())])
    }

    #[test]
    fn longest_mount_wins() {
        let p = paths(Path::new("/pod"));
        for (path, want) in [
            ("/tmp/x", "/pod/tmp/x"),
            ("/data", "/volumes/d"),
            ("/data/in/x", "/volumes/i/x"),
            ("/database", "/pod/database"),
            ("/tmp/../../etc", "/pod/etc"),
        ] {
            assert_eq!(p.host(Path::new(path)), Path::new(want), "{path}");
        }
    }

    #[test]
    fn links_stay_in_the_pod() {
        let dir = tempfile::tempdir().unwrap();
        let p = paths(dir.path());
        std::fs::create_dir(dir.path().join("tmp")).unwrap();
        for (link, to) in [("out", "/tmp/real"), ("up", "../../../etc/passwd"), ("loop", "loop")] {
            std::os::unix::fs::symlink(to, dir.path().join("tmp").join(link)).unwrap();
        }
        assert_eq!(p.resolve(Path::new("/tmp/out")).unwrap(), dir.path().join("tmp/real"));
        assert_eq!(p.resolve(Path::new("/tmp/up")).unwrap(), dir.path().join("etc/passwd"));
        assert!(p.resolve(Path::new("/tmp/loop")).is_err());
    }

    #[test]
    fn private_paths_are_rewritten_where_they_are_paths() {
        let p = paths(Path::new("/pod")).sharing(["/tmp/server".into()]);
        for (text, want) in [
            ("/tmp/out", "/pod/tmp/out"),
            ("cat </tmp/a >/data/b", "cat </pod/tmp/a >/pod/data/b"),
            ("{\"p\":\"/minio/b/k\",\"u\":\"minio://b/k\"}", "{\"p\":\"/pod/minio/b/k\",\"u\":\"minio://b/k\"}"),
            ("/home/tmp /tmpfile x/tmp /usr/tmp/", "/home/tmp /tmpfile x/tmp /usr/tmp/"),
            ("--out=/tmp", "--out=/pod/tmp"),
            ("/kfp-launcher/launch", "/pod/kfp-launcher/launch"),
            ("/pod/tmp/x", "/pod/tmp/x"),
            ("a=/tmp/server/objects/o b=/tmp/o", "a=/tmp/server/objects/o b=/pod/tmp/o"),
        ] {
            assert_eq!(p.rewrite(text), want, "{text}");
        }
    }
}
