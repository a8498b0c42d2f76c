//! A memory cgroup, as a container has one.

use std::path::{Path, PathBuf};
use std::{fs, io, process};

use crate::support::prelude::*;

/// The names of the files, which differ between the two versions.
type Files = [&'static str; 4];
const V1: Files = [
    "memory/memory.limit_in_bytes",
    "memory.limit_in_bytes",
    "memory.max_usage_in_bytes",
    "memory.oom_control",
];
const V2: Files = ["cgroup.controllers", "memory.max", "memory.peak", "memory.events"];

/// A group. Dropping it removes it.
#[derive(Debug)]
pub struct Group {
    path: PathBuf,
    files: Files,
}

impl Group {
    /// One of this many bytes.
    ///
    /// # Errors
    /// Where none can be made.
    pub fn new(limit: u64) -> io::Result<Self> {
        let root = Path::new("/sys/fs/cgroup");
        let files = if root.join(V1[0]).exists() { V1 } else { V2 };
        let above = root.join(files[0]).parent().map(Path::to_owned).unwrap_or_default();
        let path = above.join(format!("shutdown-manager-test-{}", process::id()));
        fs::create_dir(&path)?;
        let group = Self { path, files };
        fs::write(group.path.join(files[1]), limit.to_string())?;
        // Where sockets have an account of their own, it is kept from the first limit on.
        let _none = fs::write(group.path.join("memory.kmem.tcp.limit_in_bytes"), limit.to_string());
        Ok(group)
    }

    /// The shell's words that make a command a member.
    pub fn enter(&self) -> String {
        format!("echo $$ > {}/cgroup.procs; exec \"$@\"", self.path.display())
    }

    /// How often the kernel has killed a member for its memory.
    pub fn kills(&self) -> usize {
        let text = self.read(self.files[3]);
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        line.expect("a count").parse().expect("a number")
    }

    /// The peak memory in bytes, and that of sockets where it is counted apart: else 0.
    pub fn peak(&self) -> [u64; 2] {
        [self.files[2], "memory.kmem.tcp.max_usage_in_bytes"]
            .map(|name| self.read(name).parse().unwrap_or_default())
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path.join(name)).unwrap_or_default().trim_end().to_owned()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let gone = try_wait_for(PATIENCE, || fs::remove_dir(&self.path).ok());
        if gone.is_none() {
            eprintln!("{} is left", self.path.display());
        }
    }
}
