//! A program of `examples/`, run as a node of a cluster of the kit.

use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::{Cluster, Node, PROGRAM, full, until};

/// A built example.
pub(crate) struct Example<'a> {
    cluster: &'a Cluster,
    pub(crate) path: PathBuf,
}

impl Cluster {
    /// Builds an example where this test's program was built: not every run of the tests has it built.
    pub(crate) fn example(&self, name: &str) -> Example<'_> {
        let profile = PathBuf::from(PROGRAM).parent().unwrap().to_owned();
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--locked", "--offline", "--example", name]);
        cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
        cargo.arg("--target-dir").arg(profile.parent().unwrap());
        if profile.ends_with("release") {
            cargo.arg("--release");
        }
        assert!(cargo.status().unwrap().success(), "example {name} does not build");
        Example { cluster: self, path: profile.join("examples").join(name) }
    }
}

impl Example<'_> {
    /// Starts it as a node of this name, joining at another.
    pub(crate) fn start(&self, name: &str, at: &Node, args: &[&str]) -> Running {
        let mut command = Command::new(&self.path);
        let plain = self.cluster.command();
        command.env_clear().current_dir(self.cluster.path(""));
        command.envs(plain.get_envs().filter_map(|(key, value)| Some((key, value?))));
        command.arg(self.cluster.path("")).arg(at.listen().to_string()).arg(full(name)).args(args);
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        Running { name: name.to_owned(), child }
    }
}

/// A running example. It is killed when the test drops it.
pub(crate) struct Running {
    name: String,
    child: Child,
}

impl Running {
    /// Tells it to end; what it printed.
    #[track_caller]
    pub(crate) fn stop(self) -> String {
        let pid = Pid::from_raw(self.child.id().cast_signed()).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
        self.prints()
    }

    /// Waits until it has ended well; what it printed.
    #[track_caller]
    pub(crate) fn prints(mut self) -> String {
        let status = until(&format!("end of {}", self.name), || {
            self.child.try_wait().unwrap().ok_or_else(|| "it still runs".to_owned())
        });
        assert!(status.success(), "{} ended with {status}", self.name);
        let mut printed = String::new();
        self.child.stdout.take().unwrap().read_to_string(&mut printed).unwrap();
        printed
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            // One that ended meanwhile needs no killing.
            self.child.kill().unwrap_or(());
            drop(self.child.wait());
        }
    }
}
