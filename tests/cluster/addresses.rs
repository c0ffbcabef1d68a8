//! Addresses that nodes on other machines cannot use: of a node's own name, and as it is told to advertise them.

use std::fs;
use std::process::Command;

use crate::kit::{Cluster, skip};

/// Makes a machine with these addresses, whose own name is 127.0.1.1, and becomes the program.
const MACHINE: &str = r#"
set -e
ip link set lo up
number=0
for address in $ADDRESSES; do
    ip link add "d$number" type veth peer name "p$number"
    ip link set "p$number" up
    ip address add "$address" dev "d$number"
    ip link set "d$number" up
    number=$((number + 1))
done
mount --bind "$HOSTS" /etc/hosts
exec "$0" "$@"
"#;
const NAME: &str = "a@debian.example";

/// A machine of its own, as Debian sets it up; `None` where there can be none.
fn debian(cluster: &Cluster, addresses: &str) -> Option<Command> {
    let hosts = cluster.path("hosts");
    fs::write(&hosts, "127.0.0.1 localhost\n127.0.1.1 debian.example\n").unwrap();
    let machine = || {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--net", "sh", "-c", MACHINE]);
        command.env("ADDRESSES", addresses).env("HOSTS", &hosts);
        command
    };
    let works = machine().arg("true").output().is_ok_and(|output| output.status.success());
    if !works {
        skip("namespaces", "no network and mount namespaces on this machine");
    }
    works.then(machine)
}

#[test]
fn a_host_whose_name_leads_to_loopback_is_reached_at_its_own_address() {
    let cluster = Cluster::new();
    cluster.issue(NAME);
    let Some(machine) = debian(&cluster, "10.9.8.7/24") else { return };
    let a = cluster.node(NAME).default_port().through(machine).start();
    assert_eq!(a.listen().to_string(), "10.9.8.7:4697");
    a.logged(
        "no address that other machines can use",
        &[("is", "127.0.1.1"), ("chosen", "10.9.8.7"), ("message", "--listen ADDR:PORT")],
    );
}

#[test]
fn where_nothing_tells_the_address_the_remedy_is_named() {
    let cluster = Cluster::new();
    cluster.issue(NAME);
    let Some(machine) = debian(&cluster, "10.9.8.7/24 10.9.9.7/24") else { return };
    let ended = cluster.node(NAME).default_port().through(machine).ends();
    ended.fails_with(1, &["127.0.1.1", "--listen ADDR:PORT", "10.9.8.7, 10.9.9.7"]);
    let Some(machine) = debian(&cluster, "") else { return };
    let everywhere = cluster.node(NAME).listen(([0, 0, 0, 0], 4697).into());
    everywhere.through(machine).ends().fails_with(1, &["127.0.1.1", "--advertise ADDR:PORT"]);
}

#[test]
fn an_address_that_nobody_can_dial_is_not_advertised() {
    let cluster = Cluster::new();
    for address in ["224.0.0.1:4697", "255.255.255.255:4697", "[fe80::1]:4697", "[ff02::1]:4697"] {
        let ended = cluster.node("a").arg("--advertise").arg(address).ends();
        ended.fails_with(1, &["others cannot dial", address, "--advertise ADDR:PORT"]);
    }
    cluster.issue("b@10.9.8.7");
    let b = cluster.node("b@10.9.8.7").start(); // on loopback, as a tunnel may have it
    b.logged("told an address that does not lead here", &[("address", "127.0.0.1")]);
    let a = cluster.node("a").start();
    assert_eq!(a.count_logged("told an address", &[]), 0, "its name is on loopback");
}
