//! Disks that run full, become read-only or fail when they are told to.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Start, outputs, skip, until};

/// A small disk in memory. Anyone who drops it takes it away.
pub(crate) struct Disk {
    place: PathBuf,
}

impl Disk {
    /// A disk of so many MiB at this place; `None`, and a word why, where nothing can be mounted.
    pub(crate) fn mount(place: &Path, mebibytes: usize) -> Option<Self> {
        std::fs::create_dir(place).unwrap();
        let size = format!("size={mebibytes}m");
        let mount =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(place).output();
        match mount {
            Ok(output) if output.status.success() => Some(Self { place: place.to_owned() }),
            Ok(output) => skipped(&String::from_utf8_lossy(&output.stderr)),
            Err(error) => skipped(&error.to_string()),
        }
    }

    fn filler(&self) -> PathBuf {
        self.place.join("filler")
    }

    /// Takes all room that is left.
    pub(crate) fn fill(&self) {
        let mut filler = File::create(self.filler()).unwrap();
        for chunk in [&[1; 65_536][..], &[1; 512][..]] {
            let error = loop {
                if let Err(error) = filler.write_all(chunk) {
                    break error;
                }
            };
            assert_eq!(error.kind(), ErrorKind::StorageFull);
        }
    }

    /// Gives the room back.
    pub(crate) fn free(&self) {
        std::fs::remove_file(self.filler()).unwrap();
    }

    /// Makes it read-only or not, once nobody has a file open that does not fit that.
    #[track_caller]
    pub(crate) fn is_read_only(&self, read_only: bool) {
        let how = if read_only { "remount,ro" } else { "remount,rw" };
        until(how, || {
            let output = Command::new("mount").args(["-o", how]).arg(&self.place).output().unwrap();
            if output.status.success() { Ok(()) } else { Err(outputs(&output).2) }
        });
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let output = Command::new("umount").arg("-l").arg(&self.place).output();
        if !output.as_ref().is_ok_and(|output| output.status.success()) {
            eprintln!("{} stays mounted: {output:?}", self.place.display());
        }
    }
}

/// Operations on a node's files that fail from outside: the library `../shared/iofault.c`.
pub(crate) struct Faults {
    library: PathBuf,
    control: PathBuf,
}

impl Faults {
    /// The library, built in this directory; `None`, and a word why, where there is none.
    pub(crate) fn build(dir: &Path) -> Option<Self> {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/iofault.c");
        if !source.is_file() {
            return skipped(&format!("{} is not there", source.display()));
        }
        let library = dir.join("iofault.so");
        let mut compiler = Command::new("cc");
        compiler.args(["-O1", "-shared", "-fPIC", "-o"]).arg(&library).arg(&source).arg("-ldl");
        match compiler.output() {
            Ok(output) if output.status.success() => {
                Some(Self { library, control: dir.join("iofault.rules") })
            }
            Ok(output) => skipped(&String::from_utf8_lossy(&output.stderr)),
            Err(error) => skipped(&error.to_string()),
        }
    }

    /// A node that has them in this directory, which is its own.
    pub(crate) fn under(&self, node: Start, dir: &Path) -> Start {
        let path = |path: &Path| path.to_str().unwrap().to_owned();
        node.data_dir(dir)
            .env("LD_PRELOAD", &path(&self.library))
            .env("IOFAULT_DIR", &path(dir))
            .env("IOFAULT_CTL", &path(&self.control))
    }

    /// From now on these operations fail with EIO, and no others.
    pub(crate) fn fail(&self, operations: &[&str]) {
        let rules: String = operations.iter().map(|what| format!("{what} 5 100\n")).collect();
        let new = self.control.with_extension("new");
        std::fs::write(&new, rules).unwrap();
        std::fs::rename(new, &self.control).unwrap();
    }
}

fn skipped<T>(why: &str) -> Option<T> {
    skip("disk", why);
    None
}
