//! The control socket between the hook and the sidecar: where it is, and how each side finds it
//! without configuration.

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf, absolute};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::socket::{
    self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr, UnixCredentials, getsockopt,
    sockopt,
};
use nix::sys::stat::{Mode, fchmod};

use crate::cli::address::{AdminAddress, MAX_SOCKET_PATH, socket_path};
use crate::cli::options::Options;
use crate::envoy::transport::{PeerCheck, connect_unix};

const FILE_NAME: &str = "shutdown-manager.sock";

/// In every container, also with a read-only root, and shared by no other pod.
const FALLBACK_FOLDER: &str = "/dev/shm";

/// A process that listens but is stopped lets connections in until its backlog is full.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// The same, where the frontend waits for it.
const REBIND_TIMEOUT: Duration = Duration::from_millis(20);

/// Checking a path and binding there takes microseconds. A process that takes 2 s for it may not
/// keep a sidecar from starting.
const LOCK_ATTEMPTS: u32 = 400;
const LOCK_RETRY: Duration = Duration::from_millis(5);

/// Where a sidecar listens: at the first path that can be written.
pub fn sidecar_paths(configured: Option<&Path>, admin: &AdminAddress) -> Vec<PathBuf> {
    paths(configured, &[Some(admin)])
}

/// Where a hook looks for its sidecar: as its own options say, and then where a sidecar without
/// options listens, since people set the admin address of one of the two.
pub fn hook_paths(configured: Option<&Path>, admin: Option<&AdminAddress>) -> Vec<PathBuf> {
    paths(configured, &[admin, Some(&Options::default().admin_address)])
}

/// The configured path alone; else beside each admin socket, and then in the fallback folder.
fn paths(configured: Option<&Path>, admin: &[Option<&AdminAddress>]) -> Vec<PathBuf> {
    if let Some(path) = configured {
        return vec![path.to_owned()];
    }
    let beside = admin.iter().flatten().filter_map(|admin| match admin {
        AdminAddress::Unix(path) => Some(path.with_file_name(FILE_NAME)),
        AdminAddress::Abstract(_) | AdminAddress::Tcp(..) => None,
    });
    let mut paths = Vec::new();
    for path in beside.chain([Path::new(FALLBACK_FOLDER).join(FILE_NAME)]) {
        if !paths.contains(&path) {
            paths.push(path);
        }
    }
    paths
}

/// The address with its folder resolved, so that hook and sidecar have one spelling of one socket,
/// whatever link or working directory each of them uses. The socket itself need not be there yet.
///
/// # Errors
/// A clause that fits behind "is", when no absolute path to it fits into a socket's address.
pub fn resolve_admin(address: &AdminAddress) -> Result<AdminAddress, &'static str> {
    let AdminAddress::Unix(path) = address else { return Ok(address.clone()) };
    let checked =
        |path: PathBuf| path.to_str().ok_or("a path that is not UTF-8").and_then(socket_path);
    let path = absolute(path).map_err(|_| "relative to a working directory that is gone")?;
    let resolved = resolve_folder(&path).map(checked);
    let path = match resolved {
        Some(Ok(path)) => path,
        _ => checked(path)?,
    };
    Ok(AdminAddress::Unix(path))
}

/// The path with the deepest of its folders that is there resolved.
fn resolve_folder(path: &Path) -> Option<PathBuf> {
    path.ancestors().skip(1).find_map(|folder| {
        let rest = path.strip_prefix(folder).ok()?;
        Some(folder.canonicalize().ok()?.join(rest))
    })
}

/// The file of a bound socket, which is removed when this is dropped.
#[derive(Debug)]
pub struct SocketFile {
    pub path: PathBuf,
    inode: AtomicU64,
}

impl SocketFile {
    pub fn remove(&self) {
        if self.is_there() {
            let _ = fs::remove_file(&self.path);
        }
    }

    /// Whether it is still this process's own: another program may have removed it, and the next sidecar
    /// may have bound its own socket there.
    fn is_there(&self) -> bool {
        let own = self.inode.load(Ordering::Relaxed);
        fs::symlink_metadata(&self.path).is_ok_and(|file| file.ino() == own)
    }

    /// Listens at the same path again if the file was removed: a start script that empties the folder of
    /// Envoy's admin socket takes it along.
    ///
    /// # Errors
    /// When another process listens there, or the path cannot be written.
    pub fn bind_if_removed(&self) -> io::Result<Option<UnixListener>> {
        if self.is_there() {
            return Ok(None);
        }
        let (listener, inode) = listen(&self.path, REBIND_TIMEOUT)?;
        self.inode.store(inode, Ordering::Relaxed);
        Ok(Some(listener))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Binds the control socket at the first of the paths that can be written, for its own user alone
/// (0600). A stale one is replaced.
///
/// # Errors
/// A sentence, when another sidecar listens at a path, or none of them can be written.
pub fn bind(paths: &[PathBuf]) -> Result<(UnixListener, SocketFile), String> {
    let mut reasons = Vec::new();
    for path in paths {
        let _lock = lock_folder(path);
        match listen(path, CONNECT_TIMEOUT) {
            Ok((listener, inode)) => {
                return Ok((listener, SocketFile { path: path.clone(), inode: inode.into() }));
            }
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                return Err(format!(
                    "another shutdown-manager listens at {}; stop it, or give each its own \
                     --control-socket",
                    path.display()
                ));
            }
            Err(error) => {
                let owner = fs::symlink_metadata(path).map(|file| file.uid());
                let owner = owner.map_or(String::new(), |user| format!(", a file of user {user}"));
                reasons.push(format!("{}{owner}: {error}", path.display()));
            }
        }
    }
    Err(format!(
        "cannot bind the control socket ({}); set --control-socket to a writable path of at most \
         {MAX_SOCKET_PATH} bytes",
        reasons.join("; ")
    ))
}

/// Sidecars that start together bind one after the other, so that none removes what another has
/// just bound. The folder is locked: no file is left behind, and the kernel unlocks it when a
/// process dies. A folder that cannot be opened is not locked: `listen` reports it.
fn lock_folder(path: &Path) -> Option<File> {
    let folder = File::open(path.parent()?).ok()?;
    for _ in 0..LOCK_ATTEMPTS {
        if !matches!(folder.try_lock(), Err(TryLockError::WouldBlock)) {
            break;
        }
        thread::sleep(LOCK_RETRY);
    }
    Some(folder)
}

/// The listener, which does not block, and its file's inode.
/// A process that has not let a connection in after `timeout` listens all the same.
fn listen(path: &Path, timeout: Duration) -> io::Result<(UnixListener, u64)> {
    if let Ok(file) = fs::symlink_metadata(path) {
        if !file.file_type().is_socket() {
            return Err(io::Error::other("there is a file that is not a socket"));
        }
        match connect_unix(path, timeout).map_err(|error| (error.kind(), error)) {
            Err((ErrorKind::ConnectionRefused, _)) => fs::remove_file(path)?,
            // Its owner has just removed it.
            Err((ErrorKind::NotFound, _)) => {}
            // A process listens, even if it is too busy to accept.
            Ok(_) | Err((ErrorKind::TimedOut, _)) => return Err(ErrorKind::AddrInUse.into()),
            Err((_, error)) => return Err(error),
        }
    }
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    // The file will have the mode that the socket has, less the umask, which is another thread's too.
    fchmod(&fd, Mode::S_IRUSR | Mode::S_IWUSR)?;
    socket::bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    socket::listen(&fd, Backlog::MAXALLOWABLE)?;
    Ok((fd.into(), fs::symlink_metadata(path)?.ino()))
}

/// A connection to the first of the paths where a sidecar listens that may be believed, and that path.
///
/// # Errors
/// A clause with the reason for each path.
pub fn find(paths: &[PathBuf], check: PeerCheck) -> Result<(PathBuf, OwnedFd), String> {
    let mut reasons = Vec::new();
    for path in paths {
        let connected = connect_unix(path, CONNECT_TIMEOUT);
        let reason = match connected.and_then(|stream| check(&stream).map(|()| stream)) {
            Ok(stream) => return Ok((path.clone(), stream)),
            Err(error) if error.kind() == ErrorKind::NotFound => "no such socket".to_owned(),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                "nothing listens".to_owned()
            }
            Err(error) => error.to_string(),
        };
        reasons.push(format!("{}: {reason}", path.display()));
    }
    Err(reasons.join("; "))
}

/// For a hook that was given a path: the process that listens must be of its own user, or root's. Where
/// others can write, they could listen in the sidecar's place and report that all is drained.
///
/// # Errors
/// A clause that says whose it is.
pub fn is_of_user(stream: &OwnedFd) -> io::Result<()> {
    let peer = getsockopt(stream, sockopt::PeerCredentials)?.uid();
    let own = UnixCredentials::new().uid();
    if peer == own || peer == 0 {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "a process of user {peer} listens, and this hook, of user {own}, believes its own user and \
         root alone"
    )))
}

/// For a hook that was given none: the process must also be visible to it, so that a socket that two
/// pods share does not drain the other pod's Envoy.
///
/// # Errors
/// A clause that says why not.
pub fn is_of_pod(stream: &OwnedFd) -> io::Result<()> {
    is_of_user(stream)?;
    // The kernel shows a process outside this PID namespace as 0.
    if getsockopt(stream, sockopt::PeerCredentials)?.pid() != 0 {
        return Ok(());
    }
    Err(io::Error::other(
        "its sidecar is in another container or pod; name it with --control-socket if it is the right \
         one",
    ))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::envoy::transport::any_peer;

    fn text(paths: &[PathBuf]) -> Vec<&str> {
        paths.iter().map(|path| path.to_str().unwrap()).collect()
    }

    #[test]
    fn hook_and_sidecar_find_each_other_when_one_of_them_has_the_admin_address() {
        let unix = AdminAddress::parse("/run/envoy/admin.sock").unwrap();
        let tcp = AdminAddress::parse("localhost:19000").unwrap();
        let default = Options::default().admin_address;
        let shm = "/dev/shm/shutdown-manager.sock";
        assert_eq!(text(&sidecar_paths(None, &default)), ["/admin/shutdown-manager.sock", shm]);
        assert_eq!(text(&sidecar_paths(None, &unix)), ["/run/envoy/shutdown-manager.sock", shm]);
        assert_eq!(text(&sidecar_paths(None, &tcp)), [shm]);
        assert_eq!(text(&hook_paths(None, None)), ["/admin/shutdown-manager.sock", shm]);
        assert_eq!(
            text(&hook_paths(None, Some(&unix))),
            ["/run/envoy/shutdown-manager.sock", "/admin/shutdown-manager.sock", shm]
        );
        assert_eq!(text(&hook_paths(None, Some(&tcp))), ["/admin/shutdown-manager.sock", shm]);
        let configured = Path::new("/x.sock");
        assert_eq!(text(&sidecar_paths(Some(configured), &unix)), ["/x.sock"]);
        assert_eq!(text(&hook_paths(Some(configured), Some(&unix))), ["/x.sock"]);
    }

    #[test]
    fn an_admin_address_has_one_spelling() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        fs::create_dir(root.join("real")).unwrap();
        symlink("real", root.join("link")).unwrap();
        let resolve = |text: &str| {
            let address = AdminAddress::parse(&text.replace('~', root.to_str().unwrap()));
            let resolved = resolve_admin(&address.unwrap());
            resolved.map(|address| address.to_string().replace(root.to_str().unwrap(), "~"))
        };
        for (text, resolved) in [
            ("~/real/s", "~/real/s"),
            ("~/link/s", "~/real/s"),
            ("~/real/../link//./s", "~/real/s"),
            ("unix:~/link/s", "~/real/s"),
            // The folder is not there yet.
            ("~/link/later/s", "~/real/later/s"),
            ("localhost:1", "localhost:1"),
        ] {
            assert_eq!(resolve(text), Ok(resolved.to_owned()), "{text}");
        }
        let cwd = std::env::current_dir().unwrap().canonicalize().unwrap();
        let relative = AdminAddress::Unix("s".into());
        assert_eq!(resolve_admin(&relative), Ok(AdminAddress::Unix(cwd.join("s"))));
        let too_long = AdminAddress::Unix("s".repeat(MAX_SOCKET_PATH).into());
        assert!(resolve_admin(&too_long).unwrap_err().contains("longer than the 107 bytes"));
        // As given, where the resolved path would be too long.
        let long = "l".repeat(100);
        fs::create_dir(root.join(&long)).unwrap();
        symlink(&long, root.join("to-long")).unwrap();
        assert_eq!(resolve("~/to-long/s"), Ok("~/to-long/s".to_owned()));
    }

    #[test]
    fn a_socket_is_for_its_user_alone_and_is_removed_with_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let bound = bind(std::slice::from_ref(&path)).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let found = find(std::slice::from_ref(&path), is_of_pod).unwrap();
        assert_eq!(found.0, path);
        drop(bound);
        assert!(!path.exists());
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "a killed process leaves its socket behind");
        let error = find(std::slice::from_ref(&path), any_peer).unwrap_err();
        assert!(error.ends_with("nothing listens"), "{error}");
        let bound = bind(std::slice::from_ref(&path)).unwrap();
        let error = bind(std::slice::from_ref(&path)).unwrap_err();
        assert!(error.starts_with("another shutdown-manager listens at "), "{error}");
        assert!(find(&[path], any_peer).is_ok(), "the socket in use was removed");
        drop(bound);
    }

    #[test]
    fn the_next_sidecars_socket_is_not_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let old = bind(std::slice::from_ref(&path)).unwrap();
        fs::rename(&path, path.with_added_extension("moved")).unwrap();
        let new = bind(std::slice::from_ref(&path)).unwrap();
        drop(old);
        assert!(new.1.path.exists());
        drop(new);
    }

    #[test]
    fn the_next_path_is_used_where_the_first_cannot_be_written() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "x").unwrap();
        let too_long = folder.path().join("a".repeat(120));
        let last = folder.path().join("s");
        let bad = [folder.path().join("none/s"), file.join("s"), file.clone(), too_long];
        let paths: Vec<PathBuf> = bad.iter().cloned().chain([last.clone()]).collect();
        assert_eq!(bind(&paths).unwrap().1.path, last);
        assert_eq!(fs::read(&file).unwrap(), b"x", "a file that is not a socket was changed");
        let error = bind(&bad).unwrap_err();
        assert!(error.contains("set --control-socket"), "{error}");
        for path in &bad {
            assert!(error.contains(path.to_str().unwrap()), "{error}");
        }
    }
}
