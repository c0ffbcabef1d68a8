//! A node's trail as its operators see it, while the node runs and after it.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use xpando_node::internals::gateway::admin::{Answer, Request};
use xpando_node::internals::io::sockets;
use xpando_node::internals::node::bench::{Flooded, Order};
use xpando_node::internals::proto::event::{Page, Query};

use super::{Cluster, Node, PATIENCE, outputs};

/// The lines of JSON that a subcommand prints, which must succeed.
#[track_caller]
fn objects(output: &Output) -> Vec<Value> {
    let (code, out, err) = outputs(output);
    assert_eq!(code, Some(0), "{err}");
    out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The numbers of events.
#[track_caller]
pub(crate) fn numbers(events: &[Value]) -> Vec<u64> {
    events.iter().map(|event| event["seq"].as_u64().unwrap_or_else(|| panic!("{event}"))).collect()
}

/// What a verification says of a sound trail: its last event, and the last one that is signed.
#[track_caller]
fn sound(output: &Output) -> (u64, u64) {
    let (code, out, err) = outputs(output);
    assert_eq!(code, Some(0), "{err}");
    let number = |line: &str, before: &str, after: &str| {
        let (_, rest) = line.split_once(before)?;
        rest.split_once(after)?.0.parse().ok()
    };
    let last = out.lines().find_map(|line| number(line, " to ", " are as they were written"));
    let last = last.unwrap_or_else(|| panic!("{out}"));
    (last, out.lines().find_map(|line| number(line, "after ", " are not")).unwrap_or(last))
}

impl Node {
    /// `events` with these arguments and JSON.
    #[track_caller]
    pub(crate) fn events(&self, args: &[&str]) -> Vec<Value> {
        objects(&self.run(&[&["events", "--json"], args].concat(), &[]))
    }

    /// `events export`.
    #[track_caller]
    pub(crate) fn exported(&self) -> Vec<Value> {
        objects(&self.run(&["events", "export"], &[]))
    }

    /// `events verify` of a sound trail: its last event, and the last one that is signed.
    #[track_caller]
    pub(crate) fn verified(&self) -> (u64, u64) {
        sound(&self.run(&["events", "verify"], &[]))
    }

    /// One page of what `events export` prints; `None` when the node ends meanwhile.
    pub(crate) fn stored(&self, after: u64) -> Option<Page> {
        let query = Query { after: Some(after), ..Query::default() };
        let mut socket = sockets::connect(&self.data_dir).ok()?;
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let request = serde_json::to_string(&Request::Export(query)).unwrap();
        socket.write_all(format!("{request}\n").as_bytes()).ok()?;
        let mut line = String::new();
        BufReader::new(socket).read_line(&mut line).ok()?;
        let answer = serde_json::from_str(&line).ok()?;
        let Answer::Ok(page) = answer else { panic!("{}: {answer:?}", self.name) };
        Some(page)
    }

    /// Has the node note events as fast as it stores them, and does not wait for that.
    pub(crate) fn floods(&self, time: Duration) -> Flooding {
        let (to, order) = (format!("xpando:bench@{}", self.name), Order::Flood(time));
        let mut program = Command::new(super::PROGRAM);
        program.env_clear().args(["call", "--timeout", "60", &to, "-"]);
        program.arg("--data-dir").arg(&self.data_dir);
        program.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = program.spawn().unwrap();
        let order = serde_json::to_vec(&order).unwrap();
        child.stdin.take().unwrap().write_all(&order).unwrap();
        Flooding(Some(child))
    }
}

/// The numbers of the events that floods noted, as they are stored.
pub(crate) fn flooded(stored: &[Value]) -> Vec<u64> {
    let changes = stored.iter().filter(|it| it["event"] == "link_changed");
    let numbers =
        changes.filter_map(|it| it["from"].as_str()?.strip_suffix("@flood")?.parse().ok());
    numbers.collect()
}

/// A flood of events that was ordered.
pub(crate) struct Flooding(Option<Child>);

impl Flooding {
    /// What it came to.
    #[track_caller]
    pub(crate) fn over(mut self) -> Flooded {
        let output = self.0.take().unwrap().wait_with_output().unwrap();
        assert!(output.status.success(), "{:?}", outputs(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Whether it goes on.
    pub(crate) fn runs(&mut self) -> bool {
        self.0.as_mut().is_some_and(|child| child.try_wait().unwrap().is_none())
    }
}

impl Drop for Flooding {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            // One that has ended with its node needs no end.
            child.kill().unwrap_or(());
            drop(child.wait());
        }
    }
}

/// The data directory of a node that does not run.
pub(crate) struct Left<'a> {
    cluster: &'a Cluster,
    pub(crate) dir: PathBuf,
}

impl<'a> Left<'a> {
    pub(crate) fn by(cluster: &'a Cluster, dir: &Path) -> Self {
        Self { cluster, dir: dir.to_owned() }
    }

    /// A subcommand about it.
    pub(crate) fn run(&self, args: &[&str]) -> Output {
        let mut program = self.cluster.command();
        program.env("XPANDO_CERTS", self.cluster.certs());
        program.args(args).arg("--data-dir").arg(&self.dir).output().unwrap()
    }

    /// [`Node::events`].
    #[track_caller]
    pub(crate) fn events(&self, args: &[&str]) -> Vec<Value> {
        objects(&self.run(&[&["events", "--json"], args].concat()))
    }

    /// [`Node::exported`].
    #[track_caller]
    pub(crate) fn exported(&self) -> Vec<Value> {
        objects(&self.run(&["events", "export"]))
    }

    /// [`Node::verified`].
    #[track_caller]
    pub(crate) fn verified(&self) -> (u64, u64) {
        sound(&self.run(&["events", "verify"]))
    }
}
