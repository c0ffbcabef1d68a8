//! Wall clocks that jump while nodes run: what happened may be dated wrongly, nothing else changes.
//! The clock that measures time goes on as ever.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio_tungstenite::tungstenite::{self, Message};
use xpando_node::internals::io::clock;

use crate::kit::{Cluster, Node, Start, during, linked, row, skip, until};

/// Longer than a doubt and its verdict take.
const CALM: Duration = Duration::from_secs(10);

/// The library that has a process see another time; `None`, and a word, where it is not installed.
pub(crate) fn libfaketime() -> Option<PathBuf> {
    let multiarch =
        std::fs::read_dir("/usr/lib").ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let folders = multiarch.chain(["/usr/lib", "/usr/lib64", "/usr/local/lib"].map(PathBuf::from));
    let found = folders.map(|lib| lib.join("faketime/libfaketime.so.1")).find(|lib| lib.is_file());
    if found.is_none() {
        skip("faketime", "libfaketime is not installed");
    }
    found
}

/// The wall clock of one node.
pub(crate) struct Wall(PathBuf);

impl Wall {
    pub(crate) fn of(cluster: &Cluster, name: &str) -> Self {
        let wall = Self(cluster.path(&format!("{name}.wall")));
        wall.set(0);
        wall
    }

    /// Sets it to so many hours before or after the true time.
    pub(crate) fn set(&self, hours: i64) {
        let new = self.0.with_extension("new");
        std::fs::write(&new, format!("{:+}\n", hours * 3600)).unwrap();
        std::fs::rename(new, &self.0).unwrap();
    }

    pub(crate) fn shown_to(&self, node: Start, library: &Path) -> Start {
        let path = |path: &Path| path.to_str().unwrap().to_owned();
        node.env("LD_PRELOAD", &path(library))
            .env("FAKETIME_TIMESTAMP_FILE", &path(&self.0))
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .env("NO_FAKE_STAT", "1")
    }
}

/// Waits until the times that a node tells are so many hours off.
#[track_caller]
pub(crate) fn tells(node: &Node, hours: i64) {
    until(&format!("clock of {} {hours} h off", node.name), || {
        let status = node.status()?;
        let heard = row(&status, "a").and_then(|row| row["last_heard"].as_str());
        let heard = OffsetDateTime::parse(heard.unwrap_or_default(), &Rfc3339);
        let off = heard.map_err(|error| error.to_string())? - clock::utc(clock::wall());
        let right = (off.whole_seconds() - hours * 3600).abs() < 60;
        if right { Ok(()) } else { Err(format!("{off}")) }
    });
}

/// Ends nodes in peace: killed ones would leave the library's shared memory behind.
pub(crate) fn end(nodes: [Node; 2]) {
    for node in nodes {
        assert_eq!(node.terminate(), Some(0));
    }
}

/// How each node sees each.
fn views(nodes: [&Node; 3]) -> Vec<Value> {
    let peers = |node: &Node| ["a", "b", "c"].map(|peer| node.row(peer)).to_vec();
    nodes.into_iter().flat_map(peers).collect()
}

#[test]
fn a_wall_clock_that_jumps_by_an_hour_changes_no_link() {
    let Some(library) = libfaketime() else { return };
    let cluster = Cluster::new();
    let [of_b, of_c] = ["b", "c"].map(|name| Wall::of(&cluster, name));
    let a = cluster.node("a").start();
    let b = of_b.shown_to(cluster.node("b").join(a.listen()), &library).start();
    let c = of_c.shown_to(cluster.node("c").join(a.listen()), &library).start();
    linked(&[&a, &b, &c]);
    let before = views([&a, &b, &c]);
    for (hours_b, hours_c) in [(1, -1), (-1, 1), (0, 0)] {
        of_b.set(hours_b);
        of_c.set(hours_c);
        tells(&b, hours_b);
        tells(&c, hours_c);
        during(CALM, || assert_eq!(views([&a, &b, &c]), before, "nothing happened"));
        for node in [&a, &b, &c] {
            for harm in ["peer_suspected", "link_lost", "paused"] {
                assert_eq!(node.count_logged(harm, &[]), 0, "{}: {harm}", node.name);
            }
        }
    }
    end([b, c]);
}

#[test]
fn a_joined_client_ends_with_its_token_when_the_clock_passes_that() {
    let Some(library) = libfaketime() else { return };
    let cluster = Cluster::new();
    let wall = Wall::of(&cluster, "a");
    let a = wall.shown_to(cluster.node("a"), &library).start();
    let args = ["token", "create", "--sub", "x", "--ttl", "1h", "--certs", "certs"];
    let token = cluster.print(&args);
    let stream = TcpStream::connect(a.http()).unwrap();
    // Shorter than any wake-up that a quiet client gets.
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let address = format!("ws://{}/socket/websocket?vsn=2.0.0&token={}", a.http(), token.trim());
    let (mut socket, _answer) = tungstenite::client(address, stream).unwrap();
    socket.send(Message::text(r#"["1","1","room:1","phx_join",{}]"#)).unwrap();
    let mut next = |event: &str| loop {
        let text = socket.read().unwrap().into_text().unwrap();
        let frame: Value = serde_json::from_str(&text).unwrap();
        if frame[3] == event {
            return frame;
        }
    };
    assert_eq!(next("phx_reply")[4]["status"], "ok");
    wall.set(2);
    assert_eq!(next("phx_error")[4]["reason"], "token expired");
    assert_eq!(a.terminate(), Some(0));
}

/// Certificates are valid from an hour before they were made, so such clocks still agree on them.
#[test]
fn nodes_whose_wall_clocks_are_an_hour_apart_link_anew() {
    let Some(library) = libfaketime() else { return };
    let cluster = Cluster::new();
    let [of_b, of_c] = ["b", "c"].map(|name| Wall::of(&cluster, name));
    let a = cluster.node("a").start();
    let b = of_b.shown_to(cluster.node("b").join(a.listen()), &library).start();
    let c = of_c.shown_to(cluster.node("c").join(a.listen()), &library).start();
    linked(&[&a, &b, &c]);
    of_b.set(1);
    of_c.set(-1);
    tells(&b, 1);
    tells(&c, -1);
    a.kill();
    for node in [&b, &c] {
        node.sees("a", "offline");
    }
    let a = cluster.node("a").start();
    linked(&[&a, &b, &c]);
    end([b, c]);
}
