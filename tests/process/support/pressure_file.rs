//! The file of `--injected-resource`, in a directory of its own.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::envoy::Envoy;
use super::sidecar::Sidecar;
use super::{temp_dir, wait_value};

#[derive(Debug)]
pub struct PressureFile(TempDir);

impl PressureFile {
    pub fn new() -> Self {
        Self(temp_dir("pressure"))
    }

    pub fn path(&self) -> PathBuf {
        self.0.path().join("pressure")
    }

    pub fn option(&self) -> String {
        injected_resource(&self.path())
    }

    #[track_caller]
    pub fn read(&self) -> String {
        fs::read_to_string(self.path()).expect("read the file")
    }

    #[track_caller]
    pub fn wait(&self, value: &str) {
        let read = || fs::read_to_string(self.path()).ok();
        wait_value("the file", read, |now| now.as_deref() == Some(&format!("{value}\n")));
    }

    /// A sidecar that writes it, and has done so.
    #[track_caller]
    pub fn beside(&self, envoy: &Envoy, args: &[&str]) -> Sidecar {
        let sidecar = Sidecar::builder().beside(envoy).arg(self.option()).args(args).start();
        self.wait("0.00");
        sidecar
    }
}

/// The option, with this file.
pub fn injected_resource(path: &Path) -> String {
    format!("--injected-resource={}", path.display())
}
