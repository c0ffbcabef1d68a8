//! One process: how it is started, asked, signalled, and cleared away.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::{PATIENCE, now, row, until};

/// Log lines shown of each node when a test fails.
const SHOWN: usize = 80;

/// A node that is about to start.
pub(crate) struct Start {
    program: Command,
    pub(crate) name: String,
    certs: Option<PathBuf>,
    data_dir: PathBuf,
    listen: Option<String>,
    beacons: bool,
    bench: bool,
    args: Vec<String>,
}

impl Start {
    pub(super) fn new(program: Command, dir: &Path, name: &str) -> Self {
        let host = name.split_once('@').map_or("", |(_, host)| host);
        let listen = if host == "::1" { "[::1]:0" } else { "127.0.0.1:0" };
        Self {
            program,
            name: name.to_owned(),
            certs: Some(dir.join("certs")),
            data_dir: dir.join(name.replace('/', "_")),
            listen: Some(listen.to_owned()),
            beacons: false,
            bench: true,
            args: Vec::new(),
        }
    }

    /// As a machine that joins by an invitation, and starts then. What runs the program is said before.
    pub(crate) fn invited(mut self, line: &str) -> Self {
        self.program.args(["join", line, "--start"]);
        self
    }

    /// With a `--join`.
    pub(crate) fn join(self, address: impl ToString) -> Self {
        let address = address.to_string();
        self.arg("--join").arg(&address)
    }

    /// With beacons.
    pub(crate) fn beacons(mut self) -> Self {
        self.beacons = true;
        self
    }

    /// Without the service of benchmarks, as an operator starts it.
    pub(crate) fn without_bench(mut self) -> Self {
        self.bench = false;
        self
    }

    pub(crate) fn listen(mut self, address: SocketAddr) -> Self {
        self.listen = Some(address.to_string());
        self
    }

    /// Listening where the program itself decides.
    pub(crate) fn default_port(mut self) -> Self {
        self.listen = None;
        self
    }

    pub(crate) fn certs(mut self, certs: &Path) -> Self {
        self.certs = Some(certs.to_owned());
        self
    }

    /// With its certificates where the program itself decides.
    pub(crate) fn without_certs(mut self) -> Self {
        self.certs = None;
        self
    }

    pub(crate) fn data_dir(mut self, data_dir: &Path) -> Self {
        self.data_dir = data_dir.to_owned();
        self
    }

    pub(crate) fn arg(mut self, arg: &str) -> Self {
        self.args.push(arg.to_owned());
        self
    }

    /// With at most so many open files.
    pub(crate) fn descriptors(mut self, most: u32) -> Self {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", &format!("ulimit -n {most}; exec \"$0\" \"$@\"")]).env_clear();
        shell.arg(self.program.get_program());
        shell.envs(self.program.get_envs().filter_map(|(key, value)| Some((key, value?))));
        self.program = shell;
        self
    }

    /// Run by another command, which is to become the program: the process keeps its id.
    pub(crate) fn through(mut self, mut command: Command) -> Self {
        command.arg(self.program.get_program());
        command.envs(self.program.get_envs().filter_map(|(key, value)| Some((key, value?))));
        self.program = command;
        self
    }

    pub(crate) fn env(mut self, key: &str, value: &str) -> Self {
        self.program.env(key, value);
        self
    }

    /// Starts the process and waits until it says that it is ready.
    #[track_caller]
    pub(crate) fn start(self) -> Node {
        let node = self.launch();
        node.listen();
        node
    }

    /// Starts the process.
    pub(crate) fn launch(mut self) -> Node {
        self.program.args(["--name", &self.name, "--log-format", "json"]);
        if !self.args.iter().any(|arg| arg == "--log") {
            self.program.args(["--log", "debug"]);
        }
        self.program.arg("--data-dir").arg(&self.data_dir);
        if let Some(certs) = &self.certs {
            self.program.arg("--certs").arg(certs);
        }
        if let Some(listen) = &self.listen {
            self.program.args(["--listen", listen]);
        }
        if !self.beacons {
            self.program.arg("--no-beacon");
        }
        if self.bench {
            self.program.arg("--bench");
        }
        self.program.args(&self.args).stdin(Stdio::null()).stderr(Stdio::piped());
        let mut child = self.program.spawn().unwrap();
        let log = Log::of(child.stderr.take().unwrap());
        Node { name: self.name, data_dir: self.data_dir, child, log }
    }

    /// Starts a process that is to end by itself, and waits for that.
    #[track_caller]
    pub(crate) fn ends(self) -> Ended {
        let mut node = self.launch();
        let code = node.exit_code();
        let text = node.log.text();
        Ended { code, text }
    }
}

/// How a process ended by itself.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    /// Everything on standard error.
    pub(crate) text: String,
}

impl Ended {
    /// It ended with this code, and said all of this.
    #[track_caller]
    pub(crate) fn fails_with(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{}", self.text);
        for word in words {
            assert!(self.text.contains(word), "{word:?} is not in: {}", self.text);
        }
    }
}

/// A running process. It is killed when the test drops it.
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) data_dir: PathBuf,
    child: Child,
    log: Log,
}

impl Node {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where it accepts links, once it is ready.
    #[track_caller]
    pub(crate) fn listen(&self) -> SocketAddr {
        let ready = self.logged("node ready", &[]);
        ready["listen"].as_str().unwrap().parse().unwrap()
    }

    /// Where it serves clients, once it is ready.
    #[track_caller]
    pub(crate) fn http(&self) -> SocketAddr {
        let ready = self.logged("node ready", &[]);
        ready["http"].as_str().unwrap().parse().unwrap()
    }

    /// What the program prints of this node; otherwise its complaint.
    pub(crate) fn ask(&self, args: &[&str]) -> Result<String, String> {
        let mut program = Command::new(super::PROGRAM);
        program.env_clear().args(args).arg("--data-dir").arg(&self.data_dir);
        let output = program.output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
    }

    /// `status --json`.
    pub(crate) fn status(&self) -> Result<Value, String> {
        let text = self.ask(&["status", "--json"])?;
        serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))
    }

    /// The sides of links as the node tells them: from, to, state.
    #[track_caller]
    pub(crate) fn links(&self) -> Vec<(String, String, String)> {
        let topology: Value =
            serde_json::from_str(&self.ask(&["topology", "--json"]).unwrap()).unwrap();
        assert_eq!(topology["as_seen_by"], self.name.as_str());
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let link = |link: &Value| (text(&link["from"]), text(&link["to"]), text(&link["state"]));
        topology["links"].as_array().unwrap().iter().map(link).collect()
    }

    /// `kill ACTOR`. The answer is lost when the actor is the one that answers.
    pub(crate) fn kill_actor(&self, actor: &str) -> Result<String, String> {
        self.ask(&["kill", actor])
    }

    /// Waits until the status is as `wanted` has it.
    #[track_caller]
    pub(crate) fn shows(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        until(&format!("{what} on {}", self.name), || {
            let status = self.status()?;
            if wanted(&status) { Ok(status) } else { Err(status.to_string()) }
        })
    }

    /// Waits until a peer has this status; its row.
    #[track_caller]
    pub(crate) fn sees(&self, peer: &str, status: &str) -> Value {
        self.sees_as(peer, status, |_| true)
    }

    /// Waits until a peer has this status, and its row is as `wanted` has it.
    #[track_caller]
    pub(crate) fn sees_as(
        &self,
        peer: &str,
        status: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Value {
        let fits =
            |seen: &Value| row(seen, peer).is_some_and(|r| r["status"] == status && wanted(r));
        let seen = self.shows(&format!("{status} {peer}"), fits);
        row(&seen, peer).unwrap().clone()
    }

    /// A peer's row at this moment.
    #[track_caller]
    pub(crate) fn row(&self, peer: &str) -> Value {
        let mut row = row(&self.status().unwrap(), peer).cloned().unwrap_or(Value::Null);
        // What changes with every beat says nothing about the link.
        if let Some(fields) = row.as_object_mut() {
            let passing = ["phi", "last_heard", "last_seen", "uptime_s"];
            let passing = |key: &str| key.starts_with("rtt_") || passing.contains(&key);
            fields.retain(|key, _| !passing(key));
        }
        row
    }

    /// A counter at this moment.
    #[track_caller]
    pub(crate) fn counter(&self, name: &str, kind: &str) -> u64 {
        let (name, wanted) = (format!("{name}{{"), format!("=\"{kind}\"}} "));
        let text = self.ask(&["metrics"]).unwrap();
        let mut lines = text.lines().filter(|line| line.starts_with(&name));
        lines.find_map(|line| line.split_once(&wanted)?.1.parse().ok()).unwrap_or(0)
    }

    /// A gauge with this label at this moment.
    #[track_caller]
    pub(crate) fn gauge(&self, name: &str, label: &str) -> f64 {
        let wanted = format!("{name}{{{label}}} ");
        let text = self.ask(&["metrics"]).unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(&wanted)?.parse().ok());
        value.unwrap_or_else(|| panic!("no {wanted}in {text}"))
    }

    /// The sum of a counter over all kinds.
    #[track_caller]
    pub(crate) fn total(&self, name: &str) -> u64 {
        let text = self.ask(&["metrics"]).unwrap();
        let rows = text.lines().filter(|line| line.starts_with(&format!("{name}{{")));
        rows.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum()
    }

    /// Waits until a counter has passed `before`.
    #[track_caller]
    pub(crate) fn counts(&self, name: &str, kind: &str, before: u64) -> u64 {
        until(&format!("{name} of {kind} above {before} on {}", self.name), || {
            let count = self.counter(name, kind);
            if count > before { Ok(count) } else { Err(self.ask(&["metrics"]).unwrap_or_default()) }
        })
    }

    /// Waits for a log line about this type of event or with this message, and with these fields (whose texts may be
    /// parts).
    #[track_caller]
    pub(crate) fn logged(&self, what: &str, fields: &[(&str, &str)]) -> Value {
        match self.log.wait(|line| fits(line, what, fields)) {
            Some(line) => line,
            None => panic!("{}: no log line {what:?} with {fields:?}", self.name),
        }
    }

    /// All log lines so far, as they came.
    pub(crate) fn log_text(&self) -> String {
        let lines = self.log.lines.0.lock();
        lines.heard.iter().map(|line| format!("{line}\n")).collect()
    }

    /// How many log lines so far are such ones.
    pub(crate) fn count_logged(&self, what: &str, fields: &[(&str, &str)]) -> usize {
        let lines = self.log.lines.0.lock();
        lines.heard.iter().filter(|line| fits(line, what, fields)).count()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.pid()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// `kill -9`, and the process is gone.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM; the exit code.
    #[track_caller]
    pub(crate) fn terminate(mut self) -> Option<i32> {
        self.signal(Signal::TERM);
        self.exit_code()
    }

    /// Waits for the process to end by itself.
    #[track_caller]
    pub(crate) fn exit_code(&mut self) -> Option<i32> {
        let name = self.name.clone();
        let status = until(&format!("end of {name}"), || {
            self.child.try_wait().unwrap().ok_or_else(|| "it still runs".to_owned())
        });
        self.log.wait_for_end();
        status.code()
    }

    /// True while the process runs.
    pub(crate) fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Resident memory, in KiB.
    pub(crate) fn memory(&self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Time of a processor that it has used.
    pub(crate) fn processor(&self) -> Duration {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        let fields: Vec<&str> = text.rsplit_once(") ").unwrap().1.split(' ').collect();
        let ticks: u64 = fields[11..13].iter().map(|field| field.parse::<u64>().unwrap()).sum();
        Duration::from_millis(ticks * 10) // Linux tells it in hundredths of a second
    }

    /// Waits until the resident memory is down to this, in KiB; what it is then.
    #[track_caller]
    pub(crate) fn memory_at_most(&self, most: u64) -> u64 {
        until(&format!("memory under {most} KiB on {}", self.name), || match self.memory() {
            memory if memory <= most => Ok(memory),
            memory => Err(format!("{memory} KiB")),
        })
    }

    /// How many connections to its link port the process holds.
    pub(crate) fn open_connections(&self) -> usize {
        let port = self.listen().port();
        self.sockets("01").iter().filter(|local| **local == port).count()
    }

    /// The ports on which the process accepts TCP connections.
    pub(crate) fn listening_ports(&self) -> Vec<u16> {
        self.sockets("0A")
    }

    /// The local ports of the process's TCP sockets in one state.
    fn sockets(&self, state: &str) -> Vec<u16> {
        let mine = super::socket_inodes(self.pid());
        let sockets = super::tcp_sockets(state).into_iter();
        sockets.filter(|socket| mine.contains(&socket.inode)).map(|socket| socket.local).collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            // A process that ended meanwhile needs no killing.
            self.child.kill().unwrap_or(());
            drop(self.child.wait());
        }
        if thread::panicking() {
            eprintln!("--- {} (process {})\n{}", self.name, self.pid(), self.log.text());
        }
    }
}

/// A field as a reader sees it.
/// Whether a log line is about this type of event or has this message, and has these fields.
fn fits(line: &Value, what: &str, fields: &[(&str, &str)]) -> bool {
    let has = |(key, part): &(&str, &str)| text(&line[*key]).contains(part);
    (line["event"] == what || has(&("message", what))) && fields.iter().all(has)
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[derive(Default)]
struct Lines {
    heard: Vec<Value>,
    ended: bool,
}

/// The lines of a process's standard error; one that is not JSON is the `message` of a line.
struct Log {
    lines: Arc<(Mutex<Lines>, Condvar)>,
}

impl Log {
    fn of(stderr: impl Read + Send + 'static) -> Self {
        let lines = Arc::new((Mutex::new(Lines::default()), Condvar::new()));
        let heard = lines.clone();
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let line = serde_json::from_str(&line).unwrap_or_else(|_| json!({"message": line}));
                heard.0.lock().heard.push(line);
                heard.1.notify_all();
            }
            heard.0.lock().ended = true;
            heard.1.notify_all();
        });
        Self { lines }
    }

    /// The first line that fits, if it comes in time.
    fn wait(&self, fits: impl Fn(&Value) -> bool) -> Option<Value> {
        let start = now();
        let mut lines = self.lines.0.lock();
        loop {
            if let Some(line) = lines.heard.iter().find(|line| fits(line)) {
                return Some(line.clone());
            }
            let left = PATIENCE.checked_sub(start.elapsed()).filter(|_| !lines.ended)?;
            self.lines.1.wait_for(&mut lines, left);
        }
    }

    fn wait_for_end(&self) {
        let mut lines = self.lines.0.lock();
        self.lines.1.wait_while_for(&mut lines, |lines| !lines.ended, PATIENCE);
    }

    fn text(&self) -> String {
        let lines = self.lines.0.lock();
        let from = lines.heard.len().saturating_sub(SHOWN);
        lines.heard[from..].iter().map(|line| format!("{}\n", plain(line))).collect()
    }
}

/// A log line without the parts that say nothing here.
fn plain(line: &Value) -> String {
    let Some(fields) = line.as_object() else { return line.to_string() };
    let noise = ["level", "message", "target"];
    let rest = fields.iter().filter(|(key, _)| !noise.contains(&key.as_str()));
    let rest: String = rest.map(|(key, value)| format!(" {key}={}", text(value))).collect();
    let level = fields.get("level").map_or_else(String::new, |level| format!("{} ", text(level)));
    format!("{level}{}{rest}", text(&line["message"]))
}
