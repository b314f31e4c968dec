//! The mount tree of a container.
//!
//! The pod's private root directory becomes `/`. The host's top-level directories appear in it
//! read-only, except `/proc` and the places that belong to the pod; `/dev` is private and shows the
//! host's devices. Then come the mounts
//! of the specification, in order.

use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt as _, symlink};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statvfs::{FsFlags, statvfs};

use super::{Bind, Spec};

/// Where the host's root hangs while the tree is built. Containers of a pod share their root directory and may start
/// together; a common place would vanish for one when another removes it.
fn old() -> PathBuf {
    Path::new("/").join(format!(".host-{}", std::process::id()))
}

/// Host directories never shown: private ones of the pod, and those that only the host needs.
const PRIVATE: [&str; 7] = ["tmp", "run", "lost+found", "minio", "s3", "gcs", "oci"];
/// Kept writable: devices and process information are not files of anybody.
const WRITABLE: [&str; 2] = ["dev", "proc"];
const NONE: Option<&str> = None;

type Result<T> = std::result::Result<T, String>;

fn at<'a, E: std::fmt::Display>(what: &'a str, path: &'a Path) -> impl FnOnce(E) -> String + 'a {
    move |e| format!("{what} {}: {e}", path.display())
}

/// Builds the tree and makes it this process's root.
pub(super) fn enter(spec: &Spec) -> Result<()> {
    let slash = Path::new("/");
    mount(NONE, slash, NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE).map_err(at("make private", slash))?;
    let root = spec.root.as_path();
    mount(Some(root), root, NONE, MsFlags::MS_BIND, NONE).map_err(at("mount the private root", root))?;
    let outside = root.join(old().strip_prefix("/").unwrap_or(slash));
    std::fs::create_dir_all(&outside).map_err(at("make", &outside))?;
    nix::unistd::pivot_root(root, &outside).map_err(at("enter the private root", root))?;
    std::env::set_current_dir("/").map_err(at("enter", slash))?;
    show_host()?;
    protect_host();
    share_resolver();
    private_shared_memory();
    for bind in &spec.binds {
        place(bind)?;
    }
    umount2(&old(), MntFlags::MNT_DETACH).map_err(at("leave", &old()))?;
    let _ = std::fs::remove_dir(old());
    Ok(())
}

fn show_host() -> Result<()> {
    for entry in std::fs::read_dir(old()).map_err(at("list", Path::new("/")))? {
        let entry = entry.map_err(at("list", Path::new("/")))?;
        let name = entry.file_name();
        let Some(text) = name.to_str() else { continue };
        if PRIVATE.contains(&text) || text.starts_with("kfp") || text.starts_with('.') {
            continue;
        }
        let Ok(kind) = entry.file_type() else { continue };
        let target = Path::new("/").join(&name);
        if kind.is_symlink() {
            if let Ok(to) = std::fs::read_link(entry.path()) {
                let _ = symlink(to, &target);
            }
        } else if text == "dev" {
            devices(&entry.path(), &target)?;
        } else if kind.is_dir() {
            match std::fs::create_dir(&target) {
                Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(at("make", &target)(e)),
                _ => {}
            }
            mount(Some(entry.path().as_path()), &target, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE)
                .map_err(at("show", &target))?;
        }
    }
    Ok(())
}

/// Shows the host's character devices in a private directory, so that a container can be given files of its own
/// there. Disks and terminals of the host are no business of a container.
fn devices(from: &Path, target: &Path) -> Result<()> {
    std::fs::create_dir_all(target).map_err(at("make", target))?;
    // In memory, as in other containers; where the kernel refuses, on disk. The size is for what a container writes.
    let _ = mount(Some("tmpfs"), target, Some("tmpfs"), MsFlags::MS_NOSUID, Some("mode=755,size=64m"));
    for entry in std::fs::read_dir(from).map_err(at("list", from))?.flatten() {
        let name = entry.file_name();
        let (Some(text), Ok(kind)) = (name.to_str(), entry.file_type()) else { continue };
        let to = target.join(&name);
        if kind.is_symlink() {
            if let Ok(link) = std::fs::read_link(entry.path()) {
                let _ = symlink(link, &to);
            }
            continue;
        }
        let terminal = text.strip_prefix("tty").is_some_and(|rest| !rest.is_empty()) || text.starts_with("vcs");
        let made = if kind.is_dir() {
            std::fs::create_dir_all(&to)
        } else if kind.is_char_device() && !terminal {
            std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(&to).map(drop)
        } else {
            continue;
        };
        made.map_err(at("make", &to))?;
        if text == "shm" {
            continue;
        }
        // What cannot be shown is missing in the container, which is better than no container.
        let _ = mount(Some(entry.path().as_path()), &to, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE);
    }
    Ok(())
}

/// Makes every mount shown so far read-only, except those listed in [`WRITABLE`]. A mount that
/// refuses stays as it is: the tree is complete without, only less protected.
fn protect_host() {
    let Ok(table) = std::fs::read_to_string("/proc/self/mountinfo") else { return };
    for (path, options) in table.lines().filter_map(mount_point) {
        let Ok(relative) = path.strip_prefix("/") else { continue };
        let Some(top) = relative.components().next().and_then(|c| c.as_os_str().to_str()) else { continue };
        if WRITABLE.contains(&top) || path.starts_with(old()) || options.split(',').any(|o| o == "ro") {
            continue;
        }
        let _ = mount(NONE, &path, NONE, flags_of(&options) | MsFlags::MS_RDONLY, NONE);
    }
}

/// Mount point and options of one line of `mountinfo`.
fn mount_point(line: &str) -> Option<(PathBuf, String)> {
    let mut fields = line.split(' ').skip(4);
    let path = fields.next()?;
    let options = fields.next()?;
    Some((PathBuf::from(unescape(path)), options.to_string()))
}

fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

/// A user namespace may not drop the restrictions a mount already has, so they are repeated.
fn flags_of(options: &str) -> MsFlags {
    let mut flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND;
    for option in options.split(',') {
        flags |= match option {
            "nosuid" => MsFlags::MS_NOSUID,
            "nodev" => MsFlags::MS_NODEV,
            "noexec" => MsFlags::MS_NOEXEC,
            "noatime" => MsFlags::MS_NOATIME,
            "nodiratime" => MsFlags::MS_NODIRATIME,
            "relatime" => MsFlags::MS_RELATIME,
            _ => MsFlags::empty(),
        };
    }
    flags
}

fn flags_at(path: &Path) -> MsFlags {
    let mut flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND;
    let Ok(now) = statvfs(path) else { return flags };
    let now = now.flags();
    for (has, add) in [
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
        (FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
    ] {
        if now.contains(has) {
            flags |= add;
        }
    }
    flags
}

/// In a mount namespace of its own, lets this process write below a read-only mount.
///
/// # Errors
/// When the kernel refuses; nothing has changed then.
pub(crate) fn remount_writable(path: &Path) -> std::io::Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
    mount(NONE, path, NONE, flags_at(path), NONE)?;
    Ok(())
}

/// Name resolution often lives in `/run`, which is private: show the one directory it needs.
fn share_resolver() {
    let Ok(target) = std::fs::read_link("/etc/resolv.conf") else { return };
    let target = Path::new("/etc").join(target);
    let text = target.to_string_lossy().replace("/etc/../", "/");
    let (Some(dir), true) = (Path::new(&text).parent(), text.starts_with("/run/")) else { return };
    let bind = Bind { source: dir.into(), target: dir.into(), read_only: true };
    let _ = place(&bind);
}

fn private_shared_memory() {
    let path = Path::new("/dev/shm");
    if path.is_dir() {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        let _ = mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some("mode=1777"));
    }
}

/// A process list of the new PID namespace. Inside another container the kernel may refuse it;
/// the host's list then stays, where `/proc/self` is right all the same.
pub(super) fn fresh_proc() {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let _ = mount(Some("proc"), "/proc", Some("proc"), flags, NONE);
}

fn place(bind: &Bind) -> Result<()> {
    let source = old().join(bind.source.strip_prefix("/").unwrap_or(&bind.source));
    let is_dir = std::fs::metadata(&source).map_err(at("find", &bind.source))?.is_dir();
    let target = bind.target.as_path();
    if !target.exists() {
        make_target(target, is_dir)?;
    }
    mount(Some(source.as_path()), target, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE)
        .map_err(at("mount", target))?;
    if bind.read_only {
        let flags = flags_at(target) | MsFlags::MS_RDONLY;
        mount(NONE, target, NONE, flags, NONE).map_err(at("make read-only", target))?;
    }
    Ok(())
}

fn make_target(target: &Path, is_dir: bool) -> Result<()> {
    let (dir, parent) = if is_dir { (target, None) } else { (target.parent().unwrap_or(target), Some(target)) };
    let make = || {
        std::fs::create_dir_all(dir)?;
        parent.map_or(Ok(()), |file| std::fs::File::create(file).map(drop))
    };
    match make() {
        Ok(()) => return Ok(()),
        Err(e) if matches!(e.kind(), ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied) => {}
        Err(e) => return Err(at("make the mount point", target)(e)),
    }
    // Below a directory of the host nothing can be made: replace the nearest existing directory
    // by a private one that shows the same entries.
    let existing = dir.ancestors().find(|a| a.is_dir()).unwrap_or(Path::new("/"));
    mirror(&existing.canonicalize().map_err(at("find", existing))?)?;
    make().map_err(at("make the mount point", target))
}

fn mirror(dir: &Path) -> Result<()> {
    let copy = Path::new("/.mirror").join(dir.strip_prefix("/").unwrap_or(dir));
    std::fs::create_dir_all(&copy).map_err(at("make", &copy))?;
    for entry in std::fs::read_dir(dir).map_err(at("list", dir))? {
        let entry = entry.map_err(at("list", dir))?;
        let (from, to) = (entry.path(), copy.join(entry.file_name()));
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_symlink() {
            if let Ok(link) = std::fs::read_link(&from) {
                let _ = symlink(link, &to);
            }
            continue;
        }
        let made = if kind.is_dir() { std::fs::create_dir_all(&to) } else { std::fs::File::create(&to).map(drop) };
        made.map_err(at("make", &to))?;
        mount(Some(from.as_path()), &to, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE).map_err(at("show", &from))?;
    }
    mount(Some(copy.as_path()), dir, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE).map_err(at("replace", dir))
}
