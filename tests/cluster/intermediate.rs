//! An intermediate authority that issues by day, while the root's key is on a host where no node runs.

use std::path::Path;

use crate::enrolment::{invited, line};
use crate::kit::{Cluster, copy_files, full, linked, until};
use crate::revocation::carried;

fn carry(from: &Path, to: &Path, files: &[&str]) {
    for file in files {
        std::fs::copy(from.join("ca").join(file), to.join("ca").join(file)).unwrap();
    }
}

#[test]
fn nodes_of_an_intermediate_join_those_of_the_root_and_are_out_when_it_is_revoked() {
    let cluster = Cluster::new();
    let root = cluster.certs();
    ["a", "b"].iter().for_each(|name| cluster.issue(name));
    let [of_a, of_b] = ["a", "b"].map(|name| carried(&cluster, name, &format!("host-of-{name}")));
    [&of_a, &of_b].iter().for_each(|to| carry(&root, to, &["tokens"]));
    let a = cluster.node("a").certs(&of_a).start();
    let b = cluster.node("b").certs(&of_b).join(a.listen()).start();
    linked(&[&a, &b]);

    let cert = |words: &[&str], certs: &Path| {
        let certs = certs.to_str().unwrap();
        cluster.print(&[&["cert"], words, &["--certs", certs]].concat())
    };
    cert(&["request", "--authority"], &of_b);
    let request = cluster.path("request");
    std::fs::copy(of_b.join("ca/request"), &request).unwrap();
    let made = cert(&["sign", "--authority", request.to_str().unwrap()], &root);
    let serial = made.lines().find_map(|line| line.strip_prefix("serial")).unwrap().trim();
    let answer = cluster.path("request.answer");
    let told = cert(&["accept", answer.to_str().unwrap()], &of_b);
    assert!(told.contains(serial), "{told}");
    let shown = cert(&["show"], &of_b);
    assert!(shown.contains("(intermediate)"), "{shown}");
    a.logged("trust_changed", &[]);

    // By hand, and by an invitation that a node without a key passes on.
    cert(&["issue", &full("c"), "--host", "web.example"], &of_b);
    let of_c = cluster.path("host-of-c");
    std::fs::create_dir_all(of_c.join("ca")).unwrap();
    carry(&of_b, &of_c, &["cert.pem"]);
    copy_files(&of_b.join(full("c")), &of_c.join(full("c")));
    let c = cluster.node("c").certs(&of_c).join(a.listen()).start();
    let line = line(&b, &[]);
    let (before, hash) = (line.split('@').next().unwrap(), line.split('#').nth(1).unwrap());
    let at_a = format!("{before}@{}#{hash}", a.listen());
    let d = invited(&cluster, "d", &at_a).start();
    linked(&[&a, &b, &c, &d]);

    // As the command says: the lists come first, and go back afterwards.
    let told = cert(&["revoke", serial], &root);
    assert!(told.contains(&format!("serial {serial}")), "{told}");
    carry(&root, &of_a, &["trust", "crl.pem", "tokens"]);
    for gone in ["c", "d"] {
        for node in [&a, &b] {
            node.sees_as(gone, "offline", |row| row["reason"] == "revoked");
        }
    }
    linked(&[&a, &b]);
    let refused = b.ask(&["invite"]).unwrap_err();
    assert!(refused.contains("its time is over"), "{refused}");
    // What starts now knows, too.
    assert_eq!((a.terminate(), c.terminate()), (Some(0), Some(0)));
    let a = cluster.node("a").certs(&of_a).join(b.listen()).start();
    linked(&[&a, &b]);
    let _c = cluster.node("c").certs(&of_c).join(a.listen()).launch();
    until("refusal of who is out", || {
        let ways = ["xpando_connections_refused_total", "xpando_dial_failures_total"];
        let ways = ways.into_iter().flat_map(|way| ["revoked", "untrusted"].map(|why| (way, why)));
        let refused = |(way, why)| [&a, &b].iter().any(|node| node.counter(way, why) > 0);
        if ways.clone().any(refused) { Ok(()) } else { Err("nobody".to_owned()) }
    });
    assert!([a.row("c"), a.row("d")].iter().all(|row| row["status"] != "online"));
}
