//! Nodes on hosts of their own: each in a network namespace of the laboratory `../shared/netlab`,
//! with multicast, cut cables, one-way links and bad lines. Where there is no laboratory (no root, no
//! namespaces, or a plain clone), each test says so and shows nothing.
//!
//! `XPANDO_NETLAB` names another place of the laboratory. Hosts have numbers from 1, and `n1` is the
//! node on host 1.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{self, Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::json;

use crate::enrolment::line;
use crate::flapping::suffers_alone;
use crate::kit::mesh::halves;
use crate::kit::{Cluster, Mesh, Node, Start, during, linked, now, row, skip, until};
use crate::revocation::carried;
use crate::splits::{between, heal, shows_on_two_edges};

/// How long all nodes are watched on bad lines.
const BAD_LINES: Duration = Duration::from_secs(60);

/// A laboratory of one test alone, and the cluster in it. Anyone who drops it takes it down.
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
        match laboratory() {
            Ok(place) => Some(Self::of_cluster(Cluster::new(), place, size, subnet, more)),
            Err(reason) => {
                skip("netlab", &reason);
                None
            }
        }
    }

    /// Another laboratory of this size, at the same time.
    fn beside(&self) -> Self {
        let cluster = self.cluster.beside();
        Self::of_cluster(cluster, self.place.clone(), self.size, self.subnet, &[])
    }

    fn of_cluster(
        cluster: Cluster,
        place: PathBuf,
        size: usize,
        subnet: &'static str,
        more: &[&str],
    ) -> Self {
        static LABS: AtomicU32 = AtomicU32::new(0);
        let owner = process::id().to_string();
        let name = format!("xpando_{owner}_{}", LABS.fetch_add(1, Ordering::Relaxed));
        let lab = Self { cluster, place, name, size, subnet };
        // With fixed neighbours a cut is silence, and never "no route to host".
        let up = ["up", &size.to_string(), "--static-arp", "--owner", &owner];
        lab.does(&[&up, more].concat());
        lab
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
        self.cluster.issue(&self.name_on(host));
        self.without_certificate(host)
    }

    fn name_on(&self, host: usize) -> String {
        format!("n{host}@{}", self.address(host))
    }

    /// Likewise, where no certificate was issued yet.
    fn without_certificate(&self, host: usize) -> Start {
        let name = self.name_on(host);
        let mut exec = self.command();
        exec.env_clear().args(["exec", &host.to_string()]);
        self.cluster.node(&name).through(exec).default_port()
    }

    /// A node on each host, all started at once and linked.
    #[track_caller]
    fn mesh(&self, how: impl Fn(Start) -> Start) -> Mesh {
        let starts: Vec<Start> = (1..=self.size).map(|host| how(self.node(host))).collect();
        Mesh::form(starts.into_iter().map(Start::launch).collect())
    }

    /// [`Mesh::mends`], where a call of the laboratory cuts, and another heals.
    #[track_caller]
    fn mends(
        &self,
        mesh: &Mesh,
        calls: [&[&str]; 2],
        concerned: impl Fn(usize, usize) -> bool,
        then: impl FnOnce(),
    ) {
        let [cut, heal] = calls.map(|call| move || drop(self.does(call)));
        mesh.mends(&calls[0].join(" "), concerned, [&cut, &heal], then);
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

#[test]
fn hosts_find_each_other_by_multicast_alone() {
    let Some(lab) = Lab::of(3) else { return };
    let mesh = lab.mesh(Start::beacons);
    for (of, with) in mesh.every_pair() {
        let row = mesh.on(of).row(&mesh.on(with).name);
        assert_eq!(row["address"], format!("{}:4697", lab.address(with)), "{row}");
    }
}

#[test]
fn three_hosts_take_three_commands() {
    let Some(lab) = Lab::of(3) else { return };
    let first = lab.node(1).start();
    let start = now();
    let line = line(&first, &["--uses", "2"]); // the first command
    let certs = |host: usize| lab.cluster.path(&format!("certs-of-{host}"));
    let others = [2, 3].map(|host| {
        let node = lab.without_certificate(host).certs(&certs(host)).invited(&line);
        let began = now();
        let node = node.start();
        first.sees(&node.name, "online");
        node.sees(&first.name, "online");
        eprintln!("{} is linked {} ms after its command", node.name, began.elapsed().as_millis());
        assert!(certs(host).join(&node.name).join("key.pem").exists());
        assert!(!certs(host).join("ca/key.pem").exists());
        node
    });
    linked(&[&first, &others[0], &others[1]]);
    eprintln!("three hosts, three commands: {} ms", start.elapsed().as_millis());
}

#[test]
fn a_node_shows_https_clients_a_certificate_of_its_host() {
    if Command::new("curl").arg("--version").output().is_err() {
        return skip("curl", "it is not installed");
    }
    let Some(lab) = Lab::of(2) else { return };
    let at = format!("{}:4000", lab.address(1));
    let node = lab.node(1).arg("--http").arg(&at).start();
    let authority = lab.cluster.certs().join("ca/cert.pem");
    let curl = |authority: Option<&Path>, url: &str| {
        let mut curl = lab.command();
        curl.args(["exec", "2", "curl", "-sS", "--max-time", "10"]);
        curl.args(authority.iter().flat_map(|path| [OsStr::new("--cacert"), path.as_os_str()]));
        let output = curl.arg(url).output().unwrap();
        (output.status.success(), reason(&output))
    };
    let url = format!("https://{at}/health/live");
    let (trusted, why) = curl(Some(&authority), &url);
    assert!(trusted, "{why}");
    let (unknown, why) = curl(None, &url);
    assert!(!unknown && why.contains("certificate"), "{why}");
    assert_eq!(node.terminate(), Some(0));
}

/// Three hosts, each with a certificate directory of its own; the first issues.
fn hosts_apart(lab: &Lab) -> Mesh {
    let certs = |host: usize| lab.cluster.path(&format!("certs-of-{host}"));
    let first = lab.node(1).start();
    let line = line(&first, &["--uses", "2"]);
    let others = [2, 3].map(|host| {
        let node = lab.without_certificate(host).certs(&certs(host)).invited(&line);
        node.start()
    });
    let [second, third] = others;
    Mesh::form(vec![first, second, third])
}

/// The authority that signed a node's certificate, and whether a rotation is under way, as a node says.
fn rotation(asked: &Node, of: &Node) -> (Option<String>, bool) {
    let status: serde_json::Value =
        serde_json::from_str(&asked.ask(&["rotate", "--json"]).unwrap()).unwrap();
    let signer = status["nodes"][&of.name]["authority"].as_str().map(str::to_owned);
    (signer, !status["rotation"].is_null())
}

#[test]
fn a_rotation_waits_for_a_host_that_is_cut_off_and_goes_on_when_it_is_back() {
    let Some(lab) = Lab::of(3) else { return };
    let mesh = hosts_apart(&lab);
    let [n1, n2, n3] = [1, 2, 3].map(|host| mesh.on(host));
    let (first, _) = rotation(n1, n3);
    // The first step reaches it, the second does not.
    for step in ["list", "certificate"] {
        lab.does(&["partition", "1,2", "3"]);
        n1.sees(&n3.name, "offline");
        n3.sees(&n1.name, "offline");
        if step == "list" {
            n1.ask(&["rotate", "authority"]).unwrap();
        }
        until("the wait for the host that is cut off", || {
            let status = n2.ask(&["rotate", "--json"]).unwrap();
            let status: serde_json::Value = serde_json::from_str(&status).unwrap();
            let waits = status["waits_for"] == json!([n3.name]);
            if waits { Ok(()) } else { Err(status.to_string()) }
        });
        lab.does(&["heal"]);
        if step == "list" {
            n3.logged("trust_changed", &[]);
        }
    }
    let ended = |node: &Node| match rotation(n1, node) {
        (Some(signer), false) if Some(&signer) != first.as_ref() => Ok(signer),
        other => Err(format!("{other:?}")),
    };
    let signers =
        [n1, n2, n3].map(|node| until("a certificate of the new authority", || ended(node)));
    assert!(signers.iter().all(|signer| *signer == signers[0]), "{signers:?}");
    linked(&[n1, n2, n3]);
}

#[test]
fn a_host_that_missed_a_forced_rotation_is_told_what_to_do_and_comes_back() {
    let Some(lab) = Lab::of(3) else { return };
    let mesh = hosts_apart(&lab);
    let [n1, n2, n3] = [1, 2, 3].map(|host| mesh.on(host));
    lab.does(&["partition", "1,2", "3"]);
    n1.sees(&n3.name, "offline");
    n1.ask(&["rotate", "authority"]).unwrap();
    let (first, _) = rotation(n1, n1);
    n1.ask(&["rotate", "--force"]).unwrap();
    // Whoever has no new certificate by then is cut off, the one that issues as well.
    for node in [n1, n2] {
        until("the new certificates", || match rotation(n1, node) {
            (signer, true) if signer != first && signer.is_some() => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }
    n1.ask(&["rotate", "--force"]).unwrap();
    until("the end", || if rotation(n1, n1).1 { Err(String::new()) } else { Ok(()) });
    lab.does(&["heal"]);
    let told = until("word of what to do", || {
        let data_dir = n3.data_dir.to_str().unwrap();
        let why = lab.cluster.print(&["why", &n1.name, "--data-dir", data_dir]);
        if why.contains("xpando-node join LINE") { Ok(why) } else { Err(why) }
    });
    assert!(told.contains(&format!("remove ca and {}/cert.pem", n3.name)), "{told}");
    // What it says, word by word.
    let mut nodes = mesh.nodes;
    let n3 = nodes.pop().unwrap();
    let (n1, n2, name) = (&nodes[0], &nodes[1], n3.name.clone());
    assert_eq!(n3.terminate(), Some(0));
    let certs = lab.cluster.path("certs-of-3");
    std::fs::remove_dir_all(certs.join("ca")).unwrap();
    std::fs::remove_file(certs.join(&name).join("cert.pem")).unwrap();
    let again = line(n1, &[]);
    let n3 = lab.without_certificate(3).certs(&certs).invited(&again).start();
    linked(&[n1, n2, &n3]);
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
    lab.mends(&mesh, [&["cut", "1", "2"], &["heal"]], between(1, 2), || {});
}

/// What TCP carried no more tells which way is cut.
#[track_caller]
fn names_the_broken_way(lab: &Lab, asked: &Node, peer: &Node, broken: &str) {
    let row = asked.row(&peer.name);
    assert_eq!(row["evidence"]["broken"], broken, "{row}");
    assert!(row["evidence"]["unacknowledged_bytes"].as_u64().unwrap() > 0, "{row}");
    let why = lab.cluster.print(&["why", &peer.name, "--name", &asked.name]);
    let word = match broken {
        "way_there" => "the way from here to it is cut; it can still be heard",
        _ => "the way from it to here is cut, at least",
    };
    assert!(why.contains(word) && why.contains("unreachable from here, not down"), "{why}");
}

#[test]
fn a_cut_of_both_ways_or_one_shows_on_two_edges_and_nowhere_else() {
    let Some(lab) = Lab::of(4) else { return }; // what one alone hears is no proof
    let mesh = lab.mesh(Start::beacons);
    let (there, back) = ("way_there", "way_back");
    let cuts: [(&[&str], [&str; 2]); 3] = [
        (&["cut", "1", "2"], [back, back]),
        (&["cut", "1", "2", "--oneway"], [there, back]),
        (&["cut", "2", "1", "--oneway"], [back, there]),
    ];
    for (cut, broken) in cuts {
        lab.mends(&mesh, [cut, &["heal"]], between(1, 2), || {
            shows_on_two_edges(&mesh);
            for ((of, with), broken) in [(1, 2), (2, 1)].into_iter().zip(broken) {
                names_the_broken_way(&lab, mesh.on(of), mesh.on(with), broken);
            }
        });
    }
}

#[test]
fn every_split_of_five_hosts_heals() {
    let Some(first) = Lab::of(5) else { return };
    let others = [(); 4].map(|()| first.beside());
    let labs = others.iter().chain([&first]);
    let splits = halves(5);
    thread::scope(|scope| {
        for (lab, splits) in labs.zip(splits.chunks(3)) {
            scope.spawn(|| {
                let mesh = lab.mesh(Start::beacons);
                let cut = |half: &[usize]| {
                    let (one, other) = (1..=5).partition(|host| half.contains(host));
                    let [one, other] = [one, other].map(|hosts: Vec<usize>| {
                        hosts.iter().map(usize::to_string).collect::<Vec<_>>().join(",")
                    });
                    lab.does(&["partition", &one, &other]);
                };
                heal(&mesh, splits, cut, || drop(lab.does(&["heal"])));
            });
        }
    });
}

#[test]
fn a_flapping_cable_harms_no_other_link_and_comes_back() {
    let Some(lab) = Lab::of(3) else { return };
    let mesh = lab.mesh(Start::beacons);
    let call = |what: &str| drop(lab.does(&[what, "1", "2"]));
    suffers_alone(&mesh, || call("cut"), || call("heal"));
}

#[test]
fn an_unplugged_host_is_unreachable_until_its_cable_is_back() {
    let Some(lab) = Lab::of(3) else { return };
    let mesh = lab.mesh(Start::beacons);
    lab.mends(
        &mesh,
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
    let pairs = mesh.every_pair();
    let (lives, before) = (mesh.lives(), mesh.standings(&pairs));
    lab.does(&["netem", "all", "delay", "200ms", "50ms", "loss", "20%"]);
    let (mut looks, mut worst, mut slow) = (0_u32, 0.0_f64, 0.0_f64);
    during(BAD_LINES, || {
        for &(of, with) in &pairs {
            let status = mesh.on(of).status().unwrap();
            let row = row(&status, &mesh.on(with).name).unwrap();
            assert_eq!(row["status"], "online", "{row}");
            worst = worst.max(row["phi"].as_f64().unwrap());
            slow = slow.max(row["rtt_ms"].as_f64().unwrap_or(0.0));
        }
        looks += 1;
    });
    let doubts = mesh.count("xpando_heartbeat_verdicts_total", "suspected");
    eprintln!("{looks} looks: phi up to {worst:.1}, round trips up to {slow} ms, {doubts} doubts");
    assert!(slow >= 300.0, "the lines were bad: round trips up to {slow} ms");
    mesh.is_unharmed();
    assert_eq!(mesh.standings(&pairs), before, "the links are those of the beginning");
    assert_eq!(mesh.lives(), lives);
}

/// What happened to a node.
fn trail(node: &Node) -> Vec<serde_json::Value> {
    let text = node.ask(&["events", "--json", "-n", "1000"]).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_host_that_was_cut_off_has_the_list_before_anything_else_of_its_first_link() {
    let Some(lab) = Lab::of(4) else { return };
    // n4 is revoked while n3 sees nobody else; the lists of the hosts are apart.
    let apart = |host: usize| {
        let name = format!("n{host}@{}", lab.address(host));
        let node = lab.node(host);
        node.certs(&carried(&lab.cluster, &name, &format!("host-{host}"))).beacons()
    };
    let starts = [lab.node(1).beacons(), apart(2), apart(3), apart(4)];
    let mesh = Mesh::form(starts.map(Start::launch).into());
    let n4 = mesh.on(4).name.clone();
    let certs = lab.cluster.certs();
    lab.does(&["partition", "1,2", "3,4"]);
    for (of, with) in [(1, 3), (3, 1), (3, 2)] {
        mesh.on(of).sees(&mesh.on(with).name, "offline");
    }
    let begin = now();
    lab.cluster.print(&["cert", "revoke", &n4, "--certs", certs.to_str().unwrap()]);
    for host in [1, 2] {
        mesh.on(host).counts("xpando_revocation_lists_total", "loaded", 0);
    }
    eprintln!("in force on the hosts that are linked after {:?}", begin.elapsed());
    assert_eq!(mesh.on(3).row(&n4)["status"], "online", "nobody could tell it");
    let (n3, seen) = (mesh.on(3), trail(mesh.on(3)).len());
    lab.does(&["heal"]);
    let online = |host: usize| n3.sees(&mesh.on(host).name, "online");
    online(1);
    let back = now();
    n3.sees_as(&n4, "offline", |row| row["reason"] == "revoked");
    eprintln!(
        "out on the host that was cut off {:?} after its first link was seen",
        back.elapsed()
    );
    let events = trail(n3).split_off(seen);
    let first = |of: &str| events.iter().position(|event| event["event"] == of);
    let (list, link) = (first("certificates_revoked").unwrap(), first("peer_online").unwrap());
    assert!(list < link, "it counts before the link does: {events:#?}");
}
