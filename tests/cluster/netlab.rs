//! Nodes on hosts of their own: each in a network namespace of the laboratory `../shared/netlab`,
//! with multicast, cut cables, one-way links and bad lines. Where there is no laboratory (no root, no
//! namespaces, or a plain clone), each test says so and shows nothing.
//!
//! `XPANDO_NETLAB` names another place of the laboratory. Hosts have numbers from 1, and `n1` is the
//! node on host 1.

use std::env;
use std::path::PathBuf;
use std::process::{self, Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::kit::{Cluster, Node, Start, during, linked, now, row};

/// How long all nodes are watched on bad lines.
const BAD_LINES: Duration = Duration::from_secs(45);
/// How long a cut is watched for harm to those whom it does not concern.
const CALM: Duration = Duration::from_secs(3);
const SILENT: (&str, &str) = ("xpando_heartbeat_verdicts_total", "silent");

/// A laboratory of one test alone, and the cluster in it. Whoever drops it takes it down.
struct Lab {
    cluster: Cluster,
    place: PathBuf,
    name: String,
    size: usize,
    /// The address of a host but for its number, which comes last.
    subnet: &'static str,
}

impl Lab {
    /// A laboratory of so many hosts; `None`, and a word why, where there can be none.
    fn of(size: usize) -> Option<Self> {
        Self::up(size, "10.77.0.", &[])
    }

    fn up(size: usize, subnet: &'static str, more: &[&str]) -> Option<Self> {
        static LABS: AtomicU32 = AtomicU32::new(0);
        let place = match laboratory() {
            Ok(place) => place,
            Err(reason) => {
                eprintln!("SKIPPED: no network laboratory ({reason})");
                return None;
            }
        };
        let owner = process::id().to_string();
        let name = format!("xpando_{owner}_{}", LABS.fetch_add(1, Ordering::Relaxed));
        let lab = Self { cluster: Cluster::new(), place, name, size, subnet };
        // With fixed neighbours a cut is silence, and never "no route to host".
        let up = ["up", &size.to_string(), "--static-arp", "--owner", &owner];
        lab.does(&[&up, more].concat());
        Some(lab)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.place);
        command.args(["--lab", &self.name]);
        command
    }

    /// One call of the laboratory, which must succeed; what it prints.
    #[track_caller]
    fn does(&self, args: &[&str]) -> String {
        let output = self.command().args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", reason(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    fn address(&self, host: usize) -> String {
        format!("{}{host}", self.subnet)
    }

    /// The node on a host, on its default port, with a certificate of its own.
    fn node(&self, host: usize) -> Start {
        let name = format!("n{host}@{}", self.address(host));
        self.cluster.issue(&name);
        let mut exec = self.command();
        exec.env_clear().args(["exec", &host.to_string()]);
        self.cluster.node(&name).through(exec).default_port()
    }

    /// A node on each host, all started at once and linked.
    #[track_caller]
    fn mesh(&self, how: impl Fn(Start) -> Start) -> Mesh {
        let starts: Vec<Start> = (1..=self.size).map(|host| how(self.node(host))).collect();
        let start = now();
        let mesh = Mesh { nodes: starts.into_iter().map(Start::launch).collect() };
        mesh.linked();
        eprintln!("{} hosts: {:?} from the first start to a full mesh", self.size, start.elapsed());
        mesh
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // A laboratory that stays behind is one that `netlab gc` finds: its owner is gone.
        drop(self.command().arg("down").output());
    }
}

/// Where the laboratory is, if it works here.
fn laboratory() -> Result<PathBuf, String> {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/netlab");
    let place = env::var_os("XPANDO_NETLAB").map_or_else(|| PathBuf::from(beside), PathBuf::from);
    if !place.is_file() {
        return Err(format!("{} is not there", place.display()));
    }
    match Command::new(&place).args(["with", "1", "--", "true"]).output() {
        Ok(output) if output.status.success() => Ok(place),
        Ok(output) => Err(reason(&output)),
        Err(error) => Err(format!("{}: {error}", place.display())),
    }
}

/// The laboratory's own word for why a call failed, in one line.
fn reason(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    if said.is_empty() { output.status.to_string() } else { said }
}

/// The nodes of a laboratory.
struct Mesh {
    nodes: Vec<Node>,
}

impl Mesh {
    fn on(&self, host: usize) -> &Node {
        &self.nodes[host - 1]
    }

    #[track_caller]
    fn linked(&self) {
        linked(&self.nodes.iter().collect::<Vec<_>>());
    }

    /// Every pair of hosts, in both orders.
    fn pairs(&self) -> Vec<(usize, usize)> {
        let hosts = 1..=self.nodes.len();
        hosts
            .clone()
            .flat_map(|a| hosts.clone().map(move |b| (a, b)))
            .filter(|(a, b)| a != b)
            .collect()
    }

    /// Where one node stands with another: the same value means that nothing happened in between.
    #[track_caller]
    fn standing(&self, (of, with): (usize, usize)) -> Value {
        let row = self.on(of).row(&self.on(with).name);
        json!([row["name"], row["status"], row["reason"], row["incarnation"], row["since"]])
    }

    #[track_caller]
    fn standings(&self, pairs: &[(usize, usize)]) -> Vec<Value> {
        pairs.iter().map(|pair| self.standing(*pair)).collect()
    }

    /// The processes and their lives.
    #[track_caller]
    fn lives(&self) -> Vec<(u32, Value)> {
        let life = |node: &Node| (node.pid(), node.status().unwrap()["incarnation"].clone());
        self.nodes.iter().map(life).collect()
    }

    /// Cuts by a call of the laboratory, until exactly the pairs that `concerned` names are
    /// unreachable for each other; does what `then` wants to see; heals by another call, until the
    /// mesh is full. Nobody restarts, and for all other pairs nothing happens.
    #[track_caller]
    fn mends(
        &self,
        lab: &Lab,
        calls: [&[&str]; 2],
        concerned: impl Fn(usize, usize) -> bool,
        then: impl FnOnce(),
    ) {
        let (cut, kept): (Vec<_>, Vec<_>) =
            self.pairs().into_iter().partition(|(a, b)| concerned(*a, *b));
        let (lives, before) = (self.lives(), self.standings(&kept));
        let start = now();
        lab.does(calls[0]);
        for (of, with) in &cut {
            let peer = &self.on(*with).name;
            self.on(*of).sees_as(peer, "offline", |row| row["reason"] == "unreachable");
        }
        eprintln!("{:?}: unreachable everywhere after {:?}", calls[0], start.elapsed());
        let apart = self.standings(&cut);
        during(CALM, || {
            assert_eq!(self.standings(&kept), before, "who is not concerned stays linked");
            assert_eq!(self.standings(&cut), apart, "who is cut off stays so");
        });
        then();
        let start = now();
        lab.does(calls[1]);
        self.linked();
        eprintln!("{:?}: a full mesh after {:?}", calls[1], start.elapsed());
        assert_eq!(self.lives(), lives, "nobody restarted");
        assert_eq!(self.standings(&kept), before, "who was not concerned kept its links");
    }
}

/// Whether a pair is these two hosts, in either order.
fn between(one: usize, other: usize) -> impl Fn(usize, usize) -> bool {
    move |a, b| [(one, other), (other, one)].contains(&(a, b))
}

#[test]
fn hosts_find_each_other_by_multicast_alone() {
    let Some(lab) = Lab::of(3) else { return };
    let mesh = lab.mesh(Start::beacons);
    for (of, with) in mesh.pairs() {
        let row = mesh.on(of).row(&mesh.on(with).name);
        assert_eq!(row["address"], format!("{}:4697", lab.address(with)), "{row}");
    }
}

#[test]
fn one_seed_is_enough_for_a_full_mesh_of_hosts() {
    let Some(lab) = Lab::of(4) else { return };
    let mesh = lab.mesh(|node| node.join("10.77.0.1:4697"));
    for node in &mesh.nodes {
        assert_eq!(node.counter("xpando_beacons_received_total", "accepted"), 0, "no beacons");
    }
}

#[test]
fn hosts_with_ipv6_addresses_form_a_mesh() {
    let Some(lab) = Lab::up(3, "fd77::", &["--ipv6"]) else { return };
    let mesh = lab.mesh(|node| node.join("[fd77::1]:4697"));
    assert!(mesh.nodes.iter().all(|node| node.listen().is_ipv6()));
    mesh.mends(&lab, [&["cut", "1", "2"], &["heal"]], between(1, 2), || {});
}

#[test]
fn a_cut_is_unreachable_on_its_two_ends_whom_the_third_still_hears() {
    let Some(lab) = Lab::of(3) else { return };
    let mesh = lab.mesh(Start::beacons);
    mesh.mends(&lab, [&["cut", "1", "2"], &["heal"]], between(1, 2), || {
        for (of, with) in [(1, 2), (2, 1)] {
            // The kernel would have needed longer, and leaves no evidence.
            let row = mesh.on(of).row(&mesh.on(with).name);
            let evidence = &row["evidence"];
            assert_eq!(evidence["heard_by"], json!([mesh.on(3).name]), "{row}");
            assert_eq!(evidence["confirmed_by"], json!([]), "{row}");
            assert!(evidence["phi"].as_f64().unwrap() >= 8.0, "{row}");
            assert_eq!(evidence["broken"], "way_back", "nothing arrives: {row}");
            assert!(evidence["unacknowledged_bytes"].as_u64().unwrap() > 0, "{row}");
            assert_eq!(row["reached_by"], json!([mesh.on(3).name]), "{row}");
            assert_eq!(mesh.on(of).counter(SILENT.0, SILENT.1), 1);
        }
        assert_eq!(mesh.on(3).counter(SILENT.0, SILENT.1), 0);
    });
}

#[test]
fn a_one_way_cut_shows_on_its_two_ends_and_nowhere_else() {
    let Some(lab) = Lab::of(3) else { return };
    let mesh = lab.mesh(Start::beacons);
    let cut = ["cut", "1", "2", "--oneway"];
    mesh.mends(&lab, [&cut, &["heal"]], between(1, 2), || {
        // Host 2 hears nothing of host 1; what it says itself still arrives there.
        for (of, with, broken, word) in [
            (1, 2, "way_there", "the way from here to it is cut; it can still be heard"),
            (2, 1, "way_back", "the way from it to here is cut, at least"),
        ] {
            let (asked, peer) = (mesh.on(of), &mesh.on(with).name);
            let row = asked.row(peer);
            assert_eq!(row["evidence"]["heard_by"], json!([mesh.on(3).name]), "{row}");
            assert_eq!(row["evidence"]["broken"], broken, "{row}");
            let why = lab.cluster.print(&["why", peer, "--name", &asked.name]);
            assert!(why.contains(word), "{why}");
            assert!(why.contains("unreachable from here, not down"), "{why}");
        }
    });
}

#[test]
fn every_split_of_three_hosts_heals() {
    let Some(lab) = Lab::of(3) else { return };
    let mesh = lab.mesh(Start::beacons);
    for (alone, others) in [(1, "2,3"), (2, "1,3"), (3, "1,2")] {
        let split = ["partition", &alone.to_string(), others];
        mesh.mends(&lab, [&split, &["heal"]], |a, b| a == alone || b == alone, || {});
    }
}

#[test]
fn a_split_of_five_hosts_heals() {
    let Some(lab) = Lab::of(5) else { return };
    let mesh = lab.mesh(Start::beacons);
    let split = ["partition", "1,2", "3-5"];
    mesh.mends(&lab, [&split, &["heal"]], |a, b| (a <= 2) != (b <= 2), || {});
}

#[test]
fn an_unplugged_host_is_unreachable_until_its_cable_is_back() {
    let Some(lab) = Lab::of(3) else { return };
    let mesh = lab.mesh(Start::beacons);
    mesh.mends(
        &lab,
        [&["unplug", "2"], &["plug", "2"]],
        |a, b| a == 2 || b == 2,
        || {
            // Whom it asked does not hear it either, or has given it up by then.
            let row = mesh.on(1).row(&mesh.on(2).name);
            assert_eq!(row["evidence"]["heard_by"], json!([]), "{row}");
        },
    );
}

#[test]
fn bad_lines_make_nobody_offline() {
    let Some(lab) = Lab::of(3) else { return };
    let mesh = lab.mesh(Start::beacons);
    let (lives, before) = (mesh.lives(), mesh.standings(&mesh.pairs()));
    lab.does(&["netem", "all", "delay", "200ms", "50ms", "loss", "20%"]);
    let (mut looks, mut worst, mut slow) = (0_u32, 0.0_f64, 0.0_f64);
    during(BAD_LINES, || {
        for (of, with) in mesh.pairs() {
            let status = mesh.on(of).status().unwrap();
            let row = row(&status, &mesh.on(with).name).unwrap();
            assert_eq!(row["status"], "online", "{row}");
            worst = worst.max(row["phi"].as_f64().unwrap());
            slow = slow.max(row["rtt_ms"].as_f64().unwrap_or(0.0));
        }
        looks += 1;
    });
    let doubts: u64 = mesh.nodes.iter().map(|node| node.counter(SILENT.0, "suspected")).sum();
    eprintln!("{looks} looks: phi up to {worst:.1}, round trips up to {slow} ms, {doubts} doubts");
    assert!(slow >= 300.0, "the lines were bad: round trips up to {slow} ms");
    for node in &mesh.nodes {
        assert_eq!(node.counter(SILENT.0, SILENT.1), 0, "{}", node.name);
        assert_eq!(node.count_logged("peer offline", &[]), 0, "{}", node.name);
    }
    assert_eq!(mesh.standings(&mesh.pairs()), before, "the links are those of the beginning");
    assert_eq!(mesh.lives(), lives);
}
