//! The control socket between the hook and the sidecar: where it is, and how each side finds it
//! without a word from the user.

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt};
use nix::sys::stat::{Mode, umask};

use crate::cli::address::AdminAddress;
use crate::cli::options::Options;
use crate::envoy::transport::connect_unix;

const NAME: &str = "shutdown-manager.sock";

/// In every container, also with a read-only root, and shared by no other pod.
const LAST_PLACE: &str = "/dev/shm";

/// A process that listens but is stopped lets connections in until its backlog is full.
const CONNECT: Duration = Duration::from_secs(2);

/// Finding out who is at a place, and taking it, lasts microseconds. Nobody who takes 2 s for it may
/// keep a sidecar from starting.
const TURNS: u32 = 400;
const TURN: Duration = Duration::from_millis(5);

/// Where a sidecar listens: the first place that can be written.
#[must_use]
pub fn sidecar_places(told: Option<&Path>, admin: &AdminAddress) -> Vec<PathBuf> {
    match told {
        Some(path) => vec![path.to_owned()],
        None => unique(&[beside(admin), Some(Path::new(LAST_PLACE).join(NAME))]),
    }
}

/// Where a hook looks: its own options first, and then the places of a sidecar without options,
/// since people give the admin address to one of the two.
#[must_use]
pub fn hook_places(told: Option<&Path>, admin: Option<&AdminAddress>) -> Vec<PathBuf> {
    match told {
        Some(path) => vec![path.to_owned()],
        None => unique(&[
            admin.and_then(beside),
            beside(&Options::default().admin_address),
            Some(Path::new(LAST_PLACE).join(NAME)),
        ]),
    }
}

fn beside(admin: &AdminAddress) -> Option<PathBuf> {
    match admin {
        AdminAddress::Unix(path) => Some(path.with_file_name(NAME)),
        AdminAddress::Tcp(..) => None,
    }
}

fn unique(places: &[Option<PathBuf>]) -> Vec<PathBuf> {
    let mut list: Vec<PathBuf> = Vec::new();
    for place in places.iter().flatten() {
        if !list.contains(place) {
            list.push(place.clone());
        }
    }
    list
}

/// The file of a bound socket, which goes when this is dropped.
#[derive(Debug)]
pub struct SocketFile {
    /// Where it is.
    pub path: PathBuf,
    inode: AtomicU64,
}

impl SocketFile {
    /// Removes the socket's file.
    pub fn remove(&self) {
        // A successor may have put its own socket there.
        let own = self.inode.load(Ordering::Relaxed);
        if fs::symlink_metadata(&self.path).is_ok_and(|file| file.ino() == own) {
            let _ = fs::remove_file(&self.path);
        }
    }

    /// Listens at the same place again, where nobody does any more.
    ///
    /// # Errors
    /// When somebody does, or the place cannot be written.
    pub fn bind_again(&self) -> io::Result<UnixListener> {
        let (listener, inode) = listen(&self.path)?;
        self.inode.store(inode, Ordering::Relaxed);
        Ok(listener)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        self.remove();
    }
}

/// The control socket and, beside it, that of the sidecar's own server, which the doors ask.
#[derive(Debug)]
pub struct Sockets {
    /// The control socket.
    pub control: UnixListener,
    /// The server's.
    pub server: UnixListener,
    /// Their files.
    pub files: [SocketFile; 2],
}

/// Binds both sockets at the first of the places that can be written, for their own user alone
/// (0600). Stale ones are replaced. It sets the process's umask for a moment, so no other thread
/// should be creating files.
///
/// # Errors
/// A sentence, when another sidecar answers at a place, or none of them can be written.
pub fn bind(places: &[PathBuf]) -> Result<Sockets, String> {
    let mut reasons = Vec::new();
    for path in places {
        let _turn = turn(path);
        let bound = bind_at(path)
            .and_then(|control| Ok((control, bind_at(&path.with_added_extension("server"))?)));
        match bound {
            Ok(((control, control_file), (server, server_file))) => {
                return Ok(Sockets { control, server, files: [control_file, server_file] });
            }
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                return Err(format!(
                    "another shutdown-manager answers at {}; stop it, or give each its own \
                     --control-socket",
                    path.display()
                ));
            }
            Err(error) => reasons.push(format!("{}: {error}", path.display())),
        }
    }
    Err(format!(
        "there is no place for the control socket ({}); set --control-socket to a path that can \
         be written, of 100 bytes or less",
        reasons.join("; ")
    ))
}

/// Sidecars that start together take turns, so that none removes what another has just bound. It is
/// the folder that is locked: nothing is left behind, and the kernel ends the turn of a process
/// that dies.
fn turn(path: &Path) -> Option<File> {
    let folder = File::open(path.parent()?).ok()?;
    for _ in 0..TURNS {
        if !matches!(folder.try_lock(), Err(TryLockError::WouldBlock)) {
            break;
        }
        thread::sleep(TURN);
    }
    Some(folder)
}

fn bind_at(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    let (listener, inode) = listen(path)?;
    Ok((listener, SocketFile { path: path.to_owned(), inode: inode.into() }))
}

/// The listener and its file's inode.
fn listen(path: &Path) -> io::Result<(UnixListener, u64)> {
    if let Ok(file) = fs::symlink_metadata(path) {
        if !file.file_type().is_socket() {
            return Err(io::Error::other("there is a file that is not a socket"));
        }
        match connect_unix(path, CONNECT) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path)?,
            // Its owner has just left.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            // Somebody listens, even if they are too busy to answer.
            Ok(_) => return Err(ErrorKind::AddrInUse.into()),
            Err(error) if error.kind() == ErrorKind::TimedOut => {
                return Err(ErrorKind::AddrInUse.into());
            }
            Err(error) => return Err(error),
        }
    }
    let before = umask(Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(path);
    umask(before);
    let listener = listener?;
    Ok((listener, fs::symlink_metadata(path)?.ino()))
}

/// The first of the places where a sidecar listens. With `only_seen`, only one whose process this
/// one can see: a socket that two pods share must not drain the neighbour's Envoy.
///
/// # Errors
/// A clause that says for each place why it is not one.
pub fn find(places: &[PathBuf], only_seen: bool) -> Result<PathBuf, String> {
    let mut reasons = Vec::new();
    for path in places {
        let reason = match connect_unix(path, CONNECT) {
            Ok(stream) if only_seen && !is_seen(&stream) => {
                "its sidecar is in another container or pod; name it with --control-socket if it \
                 is the right one"
                    .to_owned()
            }
            Ok(_) => return Ok(path.clone()),
            Err(error) if error.kind() == ErrorKind::NotFound => "no such socket".to_owned(),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                "nobody listens".to_owned()
            }
            Err(error) => error.to_string(),
        };
        reasons.push(format!("{}: {reason}", path.display()));
    }
    Err(reasons.join("; "))
}

/// The kernel shows a process outside this PID namespace as 0.
fn is_seen(stream: &OwnedFd) -> bool {
    getsockopt(stream, sockopt::PeerCredentials).is_ok_and(|peer| peer.pid() != 0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn paths(places: &[PathBuf]) -> Vec<&str> {
        places.iter().map(|path| path.to_str().unwrap()).collect()
    }

    #[test]
    fn both_sides_find_each_other_when_one_of_them_is_told_the_admin_address() {
        let unix = AdminAddress::parse("/run/envoy/admin.sock").unwrap();
        let tcp = AdminAddress::parse("localhost:19000").unwrap();
        let default = Options::default().admin_address;
        let shm = "/dev/shm/shutdown-manager.sock";
        assert_eq!(paths(&sidecar_places(None, &default)), ["/admin/shutdown-manager.sock", shm]);
        assert_eq!(paths(&sidecar_places(None, &unix)), ["/run/envoy/shutdown-manager.sock", shm]);
        assert_eq!(paths(&sidecar_places(None, &tcp)), [shm]);
        assert_eq!(paths(&hook_places(None, None)), ["/admin/shutdown-manager.sock", shm]);
        assert_eq!(
            paths(&hook_places(None, Some(&unix))),
            ["/run/envoy/shutdown-manager.sock", "/admin/shutdown-manager.sock", shm]
        );
        assert_eq!(paths(&hook_places(None, Some(&tcp))), ["/admin/shutdown-manager.sock", shm]);
        let told = Path::new("/x.sock");
        assert_eq!(paths(&sidecar_places(Some(told), &unix)), ["/x.sock"]);
        assert_eq!(paths(&hook_places(Some(told), Some(&unix))), ["/x.sock"]);
    }

    #[test]
    fn a_socket_is_its_owners_alone_and_goes_with_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let bound = bind(std::slice::from_ref(&path)).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(find(std::slice::from_ref(&path), true), Ok(path.clone()));
        drop(bound);
        assert!(!path.exists());
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "what a killed process leaves behind");
        let error = find(std::slice::from_ref(&path), false).unwrap_err();
        assert!(error.ends_with("nobody listens"), "{error}");
        let bound = bind(std::slice::from_ref(&path)).unwrap();
        let error = bind(std::slice::from_ref(&path)).unwrap_err();
        assert!(error.starts_with("another shutdown-manager answers at "), "{error}");
        assert!(find(&[path], false).is_ok(), "it is still there");
        drop(bound);
    }

    #[test]
    fn a_successors_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let old = bind(std::slice::from_ref(&path)).unwrap();
        for file in &old.files {
            fs::rename(&file.path, file.path.with_added_extension("moved")).unwrap();
        }
        let new = bind(std::slice::from_ref(&path)).unwrap();
        drop(old);
        assert!(new.files.iter().all(|file| file.path.exists()));
        drop(new);
    }

    #[test]
    fn the_next_place_is_taken_where_the_first_cannot_be_written() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "x").unwrap();
        let too_long = folder.path().join("a".repeat(120));
        let last = folder.path().join("s");
        let bad = [folder.path().join("none/s"), file.join("s"), file.clone(), too_long];
        let places: Vec<PathBuf> = bad.iter().cloned().chain([last.clone()]).collect();
        assert_eq!(bind(&places).unwrap().files[0].path, last);
        assert_eq!(fs::read(&file).unwrap(), b"x", "a file is never removed");
        let error = bind(&bad).unwrap_err();
        assert!(error.contains("set --control-socket"), "{error}");
        for place in &bad {
            assert!(error.contains(place.to_str().unwrap()), "{error}");
        }
    }
}
