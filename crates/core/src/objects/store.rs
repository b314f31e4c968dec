//! One open bucket: uploads, downloads, small objects, listings.

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::error::Error;
use super::open::Opener;
use super::patience::Patience;
use super::remote::{Remote, Service};
use super::session::Session;
use super::uri::Uri;
use super::{download, local, remote, upload};

/// Objects that are read into memory as a whole must be smaller.
const MAX_IN_MEMORY: u64 = 256 << 20;

/// What a transfer moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transfer {
    /// Number of files.
    pub files: u64,
    /// Sum of their sizes.
    pub bytes: u64,
}

impl std::ops::AddAssign for Transfer {
    fn add_assign(&mut self, other: Self) {
        self.files += other.files;
        self.bytes += other.bytes;
    }
}

/// One stored object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Key below the address that was listed; empty for the object at the address itself.
    pub name: String,
    /// Size in bytes.
    pub size: u64,
}

#[derive(Clone, Debug)]
pub(super) enum Backend {
    /// Objects are files below this directory.
    Directory(PathBuf),
    /// A service behind the object_store crate.
    Service(Remote),
}

/// An open bucket. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    backend: Backend,
    bucket: String,
}

impl Store {
    /// Opens the bucket of `uri`. With `dir`, every bucket is the directory `dir/<bucket>`; otherwise `file://` is the
    /// local file system and the other schemes are reached as `session` and the address's options say. Secrets are
    /// read from the pod's namespace. Apart from that no connection is made.
    ///
    /// # Errors
    /// [`Error::Uri`], [`Error::Credentials`], [`Error::Settings`] or [`Error::NotBuilt`].
    pub async fn open(uri: &str, session: Option<&Session>, dir: Option<&Path>) -> Result<Self, Error> {
        Opener { dir: dir.map(Path::to_owned), ..Opener::default() }.open(uri, session).await
    }

    /// A bucket on any object_store implementation, for example the in-memory one.
    #[must_use]
    pub fn with_service(bucket: &str, service: Arc<dyn Service>) -> Self {
        let remote = Remote { service, bucket: bucket.to_owned(), patience: Patience::default() };
        Self { backend: Backend::Service(remote), bucket: bucket.to_owned() }
    }

    /// The same bucket, whose operations are repeated for so long when a service cannot be reached.
    #[must_use]
    pub fn with_patience(mut self, patience: Patience) -> Self {
        if let Backend::Service(remote) = &mut self.backend {
            remote.patience = patience;
        }
        self
    }

    pub(super) fn directory(bucket: &str, dir: PathBuf) -> Self {
        Self { backend: Backend::Directory(dir), bucket: bucket.to_owned() }
    }

    /// Scheme and bucket, for example `minio://mlpipeline`.
    #[must_use]
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// Whether `uri` lies in this bucket.
    #[must_use]
    pub fn covers(&self, uri: &str) -> bool {
        Uri::parse(uri).is_ok_and(|uri| uri.bucket_url() == self.bucket)
    }

    /// The key of an address in this bucket, without trailing slashes; `..` is refused.
    fn key(&self, uri: &str) -> Result<String, Error> {
        let parsed = Uri::parse(uri)?;
        if parsed.bucket_url() != self.bucket {
            return Err(Error::OtherBucket { uri: uri.to_owned(), bucket: self.bucket.clone() });
        }
        let key = parsed.key.trim_matches('/');
        if key.is_empty() {
            return Err(Error::EmptyKey(uri.to_owned()));
        }
        safe(key)?;
        Ok(key.to_owned())
    }

    /// Stores the file `from` at `uri`, or every file below the directory `from` at `uri/<relative path>`. Symbolic
    /// links are followed. An empty directory stores nothing.
    ///
    /// # Errors
    /// [`Error::MissingFile`] when there is nothing at `from`; otherwise what reading or storing failed with. What was
    /// stored before the failure stays.
    pub async fn upload(&self, from: &Path, uri: &str) -> Result<Transfer, Error> {
        let key = self.key(uri)?;
        match &self.backend {
            Backend::Directory(dir) => local::copy_tree(from, &dir.join(&key)).await,
            Backend::Service(service) => upload::upload(service, &key, from).await,
        }
    }

    /// Makes the directory for what will be stored at `uri`, where objects are files: it need not be made later.
    ///
    /// # Errors
    /// When it cannot be made.
    pub async fn prepare(&self, uri: &str) -> Result<(), Error> {
        let Backend::Directory(dir) = &self.backend else { return Ok(()) };
        let object = dir.join(self.key(uri)?);
        let Some(parent) = object.parent().map(Path::to_owned) else { return Ok(()) };
        local::blocking(move || std::fs::create_dir_all(&parent).map_err(Error::file("create directory", &parent)))
            .await
    }

    /// Fetches the object at `uri` to the file `to`, or every object below `uri/` to `to/<relative path>`. Files
    /// appear complete or not at all. Nothing stored at `uri` is no error and creates nothing.
    ///
    /// # Errors
    /// [`Error::Traversal`] for keys that would leave `to`; otherwise what reading or writing failed with.
    pub async fn download(&self, uri: &str, to: &Path) -> Result<Transfer, Error> {
        let key = self.key(uri)?;
        match &self.backend {
            Backend::Directory(dir) => match local::copy_tree(&dir.join(&key), to).await {
                Err(Error::MissingFile(_)) => Ok(Transfer::default()),
                done => done,
            },
            Backend::Service(service) => download::download(service, &key, to).await,
        }
    }

    /// Whether an object, or any object below it, is stored at `uri`.
    ///
    /// # Errors
    /// When the store refuses or cannot be reached.
    pub async fn exists(&self, uri: &str) -> Result<bool, Error> {
        let key = self.key(uri)?;
        match &self.backend {
            Backend::Directory(dir) => {
                let path = dir.join(&key);
                tokio::fs::try_exists(&path).await.map_err(Error::file("read", &path))
            }
            Backend::Service(service) => remote::exists(service, &key).await,
        }
    }

    /// Stores a small object.
    ///
    /// # Errors
    /// When the store refuses or cannot be reached.
    pub async fn put_bytes(&self, uri: &str, bytes: Bytes) -> Result<(), Error> {
        let key = self.key(uri)?;
        match &self.backend {
            Backend::Directory(dir) => local::write(&dir.join(&key), &bytes).await,
            Backend::Service(service) => remote::put(service, &key, bytes).await,
        }
    }

    /// Reads a whole object into memory (at most 256 MiB).
    ///
    /// # Errors
    /// [`Error::Missing`] when there is none.
    pub async fn get_bytes(&self, uri: &str) -> Result<Bytes, Error> {
        let key = self.key(uri)?;
        match &self.backend {
            Backend::Directory(dir) => {
                let path = dir.join(&key);
                match tokio::fs::metadata(&path).await {
                    Ok(meta) if meta.is_file() && meta.len() <= MAX_IN_MEMORY => {
                        tokio::fs::read(&path).await.map(Bytes::from).map_err(Error::file("read", &path))
                    }
                    Ok(meta) if meta.is_file() => Err(too_large(uri)),
                    Ok(_) => Err(Error::Missing(uri.to_owned())),
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(Error::Missing(uri.to_owned())),
                    Err(e) => Err(Error::file("read", &path)(e)),
                }
            }
            Backend::Service(service) => remote::get(service, &key, MAX_IN_MEMORY).await,
        }
    }

    /// The object at `uri` and all below `uri/`, ordered by key.
    ///
    /// # Errors
    /// When the store refuses or cannot be reached.
    pub async fn list(&self, uri: &str) -> Result<Vec<Entry>, Error> {
        let key = self.key(uri)?;
        match &self.backend {
            Backend::Directory(dir) => {
                let start = dir.join(&key);
                local::blocking(move || {
                    let mut entries = Vec::new();
                    let walked = local::walk(&start, &mut |file| {
                        let name = file.relative.to_string_lossy().into_owned();
                        entries.push(Entry { name, size: file.size });
                        Ok(())
                    });
                    match walked {
                        Ok(()) | Err(Error::MissingFile(_)) => {}
                        Err(error) => return Err(error),
                    }
                    entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
                    Ok(entries)
                })
                .await
            }
            Backend::Service(service) => remote::list(service, &key).await,
        }
    }
}

pub(super) fn too_large(uri: &str) -> Error {
    let reason = "object is too large to be read into memory".into();
    Error::Store { what: "read", uri: uri.to_owned(), reason, transient: false }
}

/// Refuses keys with a `..` component: they would leave the directory that they are joined to.
pub(super) fn safe(key: &str) -> Result<(), Error> {
    let plain = |c: Component<'_>| matches!(c, Component::Normal(_) | Component::CurDir);
    if Path::new(key).components().all(plain) { Ok(()) } else { Err(Error::Traversal(key.to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::memory::InMemory;

    /// The same behaviour is expected of a directory and of a service.
    async fn stores() -> (tempfile::TempDir, Vec<Store>) {
        let dir = tempfile::tempdir().unwrap();
        let local = Store::open("minio://b/root", None, Some(&dir.path().join("store"))).await.unwrap();
        (dir, vec![local, Store::with_service("minio://b", Arc::new(InMemory::new()))])
    }

    #[tokio::test]
    async fn files_and_directories_come_back_as_they_went() {
        let (dir, stores) = stores().await;
        for (i, store) in stores.iter().enumerate() {
            let base = dir.path().join(format!("case{i}"));
            let tree = base.join("tree/sub");
            std::fs::create_dir_all(&tree).unwrap();
            std::fs::create_dir_all(base.join("tree/empty")).unwrap();
            std::fs::write(base.join("tree/a.txt"), "alpha").unwrap();
            std::fs::write(tree.join("b b#%.bin"), [0, 1, 2]).unwrap();
            std::os::unix::fs::symlink("a.txt", base.join("tree/link")).unwrap();
            let up = store.upload(&base.join("tree"), "minio://b/k/tree/").await.unwrap();
            assert_eq!(up, Transfer { files: 3, bytes: 13 });
            let down = store.download("minio://b/k/tree", &base.join("back")).await.unwrap();
            assert_eq!(down, up);
            assert_eq!(std::fs::read(base.join("back/sub/b b#%.bin")).unwrap(), [0, 1, 2]);
            assert_eq!(std::fs::read_to_string(base.join("back/link")).unwrap(), "alpha");
            let names: Vec<_> = store.list("minio://b/k/tree").await.unwrap().into_iter().map(|e| e.name).collect();
            assert_eq!(names, ["a.txt", "link", "sub/b b#%.bin"]);

            store.upload(&base.join("tree/a.txt"), "minio://b/k/one").await.unwrap();
            assert_eq!(store.get_bytes("minio://b/k/one").await.unwrap(), "alpha");
            store.download("minio://b/k/one", &base.join("deep/er/one")).await.unwrap();
            assert_eq!(std::fs::read_to_string(base.join("deep/er/one")).unwrap(), "alpha");
            assert!(store.exists("minio://b/k/one").await.unwrap());
            assert!(store.exists("minio://b/k/tree").await.unwrap());
            // "k/on" is a prefix of the key as text, but not a directory.
            assert!(!store.exists("minio://b/k/on").await.unwrap());
            assert_eq!(store.download("minio://b/k/on", &base.join("none")).await.unwrap(), Transfer::default());
            assert!(!base.join("none").exists());
        }
    }

    #[tokio::test]
    async fn overwriting_replaces_and_leaves_no_temporary_files() {
        let (dir, stores) = stores().await;
        for store in &stores {
            for text in ["first", "second"] {
                store.put_bytes("minio://b/x/y", Bytes::from(text)).await.unwrap();
            }
            assert_eq!(store.get_bytes("minio://b/x/y").await.unwrap(), "second");
            assert_eq!(store.list("minio://b/x").await.unwrap(), [Entry { name: "y".into(), size: 6 }]);
            let target = dir.path().join("down/y");
            store.download("minio://b/x/y", &target).await.unwrap();
            store.download("minio://b/x/y", &target).await.unwrap();
            assert_eq!(std::fs::read_dir(target.parent().unwrap()).unwrap().count(), 1);
            std::fs::remove_dir_all(target.parent().unwrap()).unwrap();
        }
    }

    #[tokio::test]
    async fn wrong_addresses_are_refused() {
        let (dir, stores) = stores().await;
        for store in &stores {
            let missing = dir.path().join("missing");
            let error = store.upload(&missing, "minio://b/k").await.unwrap_err();
            assert!(matches!(error, Error::MissingFile(_)), "{error}");
            assert!(matches!(store.get_bytes("minio://other/k").await, Err(Error::OtherBucket { .. })));
            assert!(matches!(store.get_bytes("minio://b/").await, Err(Error::EmptyKey(_))));
            assert!(matches!(store.get_bytes("minio://b/a/../../c").await, Err(Error::Traversal(_))));
            assert!(store.get_bytes("minio://b/none").await.unwrap_err().is_missing());
            assert!(!store.covers("minio://bb/k") && store.covers("minio://b/k"));
        }
    }

    #[tokio::test]
    async fn loops_of_links_end_with_an_error() {
        let (dir, stores) = stores().await;
        let tree = dir.path().join("tree");
        std::fs::create_dir(&tree).unwrap();
        std::os::unix::fs::symlink(&tree, tree.join("self")).unwrap();
        std::os::unix::fs::symlink(&tree, tree.join("other")).unwrap();
        let error = stores[0].upload(&tree, "minio://b/k").await.unwrap_err();
        assert!(error.to_string().contains("contains itself"), "{error}");
    }

    #[tokio::test]
    async fn large_files_go_in_parts_and_come_back_whole() {
        let (dir, stores) = stores().await;
        let file = dir.path().join("large");
        // Not a multiple of the part size, and different in every byte position of a part.
        let content: Vec<u8> = (0..(20 << 20) + 12345_u32).map(|i| (i % 251) as u8).collect();
        std::fs::write(&file, &content).unwrap();
        for store in &stores {
            let up = store.upload(&file, "minio://b/large").await.unwrap();
            assert_eq!(up.bytes, content.len() as u64);
            let back = dir.path().join("back");
            store.download("minio://b/large", &back).await.unwrap();
            assert!(std::fs::read(&back).unwrap() == content);
        }
    }

    #[tokio::test]
    async fn file_uris_are_the_local_file_system() {
        let dir = tempfile::tempdir().unwrap();
        let uri = format!("file://{}/x/y", dir.path().display());
        let store = Store::open(&uri, None, None).await.unwrap();
        store.put_bytes(&uri, Bytes::from_static(b"z")).await.unwrap();
        assert_eq!(std::fs::read(dir.path().join("x/y")).unwrap(), b"z");
    }
}
