//! Messages through the command line: said, asked for, and followed as they come.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, UNIX_EPOCH};

use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde_json::Value;
use xpando_node::internals::io::clock;
use xpando_node::internals::node::bench::{Ledger, Order};

use super::{Node, full, until};

/// How many seconds what is ordered may take: a test ends long before.
const LONG: &str = "900";

/// Milliseconds since 1970.
pub(crate) fn wall() -> u64 {
    let since = clock::wall().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(since.as_millis()).unwrap()
}

/// What a process said and how it ended: exit code, standard output, standard error.
pub(crate) fn outputs(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn run(mut program: Command, input: &[u8]) -> Output {
    program.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = program.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    thread::scope(|scope| {
        // Who refuses early does not read to the end.
        scope.spawn(move || stdin.write_all(input).unwrap_or(()));
        child.wait_with_output().unwrap()
    })
}

impl Node {
    fn tool(&self, args: &[&str]) -> Command {
        let mut program = Command::new(super::PROGRAM);
        program.env_clear().args(args).arg("--data-dir").arg(&self.data_dir);
        program
    }

    /// Runs a subcommand at this node, with this on its standard input.
    pub(crate) fn run(&self, args: &[&str], input: &[u8]) -> Output {
        run(self.tool(args), input)
    }

    /// `publish`: subscribers here, and other nodes that it went to.
    #[track_caller]
    pub(crate) fn publish(&self, topic: &str, payload: &[u8]) -> (usize, usize) {
        let (code, out, err) = outputs(&self.run(&["publish", topic, "-"], payload));
        assert_eq!(code, Some(0), "{err}");
        let numbers: Vec<_> = out.split(' ').filter_map(|word| word.parse().ok()).collect();
        let [here, there] = numbers[..] else { panic!("{out:?}") };
        (here, there)
    }

    /// Waits until what this node publishes goes to so many others.
    #[track_caller]
    pub(crate) fn reaches(&self, topic: &str, nodes: usize) {
        until(&format!("{nodes} nodes that want {topic} on {}", self.name), || {
            match self.publish(topic, b"") {
                (_, there) if there == nodes => Ok(()),
                spread => Err(format!("{spread:?}")),
            }
        });
    }

    /// Has the echo of a node reply. The exit code and both outputs otherwise.
    pub(crate) fn echo(&self, at: &str) -> Result<(), (Option<i32>, String, String)> {
        let output = self.run(&["call", &format!("xpando:echo@{}", full(at)), "-"], b"hello");
        if output.stdout == b"hello" { Ok(()) } else { Err(outputs(&output)) }
    }

    /// Orders a load or a count at this node; who joins the thread has the result.
    pub(crate) fn ordered<T>(&self, order: &Order) -> JoinHandle<T>
    where
        T: DeserializeOwned + Send + 'static,
    {
        let (to, order) =
            (format!("xpando:bench@{}", self.name), serde_json::to_vec(order).unwrap());
        let tool = self.tool(&["call", "--timeout", LONG, &to, "-"]);
        thread::spawn(move || {
            let output = run(tool, &order);
            assert!(output.status.success(), "{}: {:?}", to, outputs(&output));
            // What has nothing to tell says nothing.
            let reply = if output.stdout.is_empty() { b"null" } else { &output.stdout[..] };
            serde_json::from_slice(reply).unwrap()
        })
    }

    /// Likewise, and waits for the result.
    #[track_caller]
    pub(crate) fn order<T: DeserializeOwned + Send + 'static>(&self, order: &Order) -> T {
        self.ordered(order).join().unwrap()
    }

    /// Keeps a ledger of the numbered messages on these topics, from now on.
    #[track_caller]
    pub(crate) fn check(&self, pattern: &str) {
        self.order::<()>(&Order::Check(pattern.to_owned()));
    }

    /// The ledger.
    #[track_caller]
    pub(crate) fn ledger(&self) -> Ledger {
        self.order(&Order::Checked)
    }

    /// Follows what a subcommand prints, from its first line on.
    #[track_caller]
    pub(crate) fn follow(&self, args: &[&str]) -> Follow {
        let follow = self.follow_quietly(args);
        until(&format!("answer to {args:?}"), || match follow.lines().len() {
            0 => Err("nothing".to_owned()),
            _ => Ok(()),
        });
        follow
    }

    /// Likewise one that may have nothing to print yet.
    pub(crate) fn follow_quietly(&self, args: &[&str]) -> Follow {
        let mut child =
            self.tool(args).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = Arc::<Mutex<Vec<(u64, Value)>>>::default();
        let (out, heard) = (BufReader::new(child.stdout.take().unwrap()), lines.clone());
        thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                let line = serde_json::from_str(&line).unwrap_or(Value::String(line));
                heard.lock().push((wall(), line));
            }
        });
        Follow { child, lines }
    }
}

/// A subcommand that goes on; it ends with this value.
pub(crate) struct Follow {
    child: Child,
    lines: Arc<Mutex<Vec<(u64, Value)>>>,
}

impl Follow {
    /// What it has printed, and when: its JSON, or the line as text.
    pub(crate) fn lines(&self) -> Vec<(u64, Value)> {
        self.lines.lock().clone()
    }

    /// The messages of `subscribe --json`: topic, publisher, and payload or base64.
    pub(crate) fn messages(&self) -> Vec<Value> {
        let lines = self.lines().into_iter().map(|(_, line)| line);
        lines.filter(|line| line.get("subscribed").is_none()).collect()
    }

    /// When `watch --json` told these events about a peer.
    pub(crate) fn events(&self, names: &[&str], peer: &str) -> Vec<u64> {
        let fits = |line: &Value| {
            names.iter().any(|name| line["event"] == *name) && line["peer"] == full(peer).as_str()
        };
        self.lines().into_iter().filter(|(_, line)| fits(line)).map(|(at, _)| at).collect()
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        // One that has ended with its node needs no end.
        self.child.kill().unwrap_or(());
        drop(self.child.wait());
    }
}

/// The most memory that a node has until `work` is done, in KiB above what it has now.
pub(crate) fn grows<T: Send>(node: &Node, work: impl FnOnce() -> T + Send) -> (u64, T) {
    let (before, mut most) = (node.memory(), 0);
    thread::scope(|scope| {
        let work = scope.spawn(work);
        while !work.is_finished() {
            most = most.max(node.memory().saturating_sub(before));
            thread::sleep(Duration::from_millis(20));
        }
        (most, work.join().unwrap())
    })
}
