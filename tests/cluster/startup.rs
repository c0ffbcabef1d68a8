//! What a node says when it cannot start, and that it keeps running when it can.

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::thread;

use crate::kit::{Cluster, free_address, linked};

#[test]
fn bad_names_are_bad_usage() {
    let cluster = Cluster::new();
    let long = format!("{}@127.0.0.1", "n".repeat(64));
    let longer = format!("a@{}", "h".repeat(300));
    for (name, words) in [
        ("", "has no '@'"),
        ("a", "has no '@'"),
        ("@127.0.0.1", "must have 1 to 63 characters"),
        ("a@", "neither a host name nor an IP address"),
        ("a b@127.0.0.1", "(found ' ')"),
        ("a/b@127.0.0.1", "(found '/')"),
        ("../a@127.0.0.1", "(found '/')"),
        ("a@127.0.0.1/x", "neither a host name nor an IP address"),
        ("a@b c", "neither a host name nor an IP address"),
        (&long, "must have 1 to 63 characters"),
        (&longer, "is too long"),
    ] {
        let output = cluster.run(&["--name", name]);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{name:?}: {text}");
        assert!(text.contains(words), "{name:?}: {text}");
    }
    let output = cluster.run(&[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--name"));
    assert!(fs::read_dir(cluster.path("run")).unwrap().next().is_none(), "nothing was started");
}

#[test]
fn bad_options_are_bad_usage() {
    let cluster = Cluster::new();
    for (flag, value) in [
        ("--join", "no where"),
        ("--join", "0.0.0.0:4697"),
        ("--join", "a:0"),
        ("--join", "::1:4697"),
        ("--listen", "127.0.0.1"),
        ("--advertise", "127.0.0.1:99999"),
        ("--log-format", "xml"),
    ] {
        let output = cluster.run(&["--name", "a@127.0.0.1", flag, value]);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{flag} {value}: {text}");
        assert!(text.contains(flag), "{flag} {value}: {text}");
    }
}

#[test]
fn a_seed_where_nobody_listens_is_tried_again() {
    let cluster = Cluster::new();
    let nobody = free_address();
    let a = cluster.node("a").join(nobody).start();
    let at = nobody.to_string();
    a.logged("no node answers", &[("message", &at), ("message", "connection refused")]);
    let b = cluster.node("b").join(a.listen()).start();
    linked(&[&a, &b]);
    assert_eq!(a.count_logged("no node answers", &[]), 1, "said once, not at each try");
}

#[test]
fn a_seed_that_is_the_node_itself_is_ignored() {
    let cluster = Cluster::new();
    let itself = free_address();
    let a = cluster.node("a").listen(itself).join(itself).start();
    a.logged("seed_is_myself", &[("message", &itself.to_string())]);
    let b = cluster.node("b").join(itself).start();
    linked(&[&a, &b]);
    assert_eq!(a.status().unwrap()["peers"].as_array().unwrap().len(), 1, "it is not its own peer");
}

#[test]
fn a_seed_that_is_no_node_is_tried_again() {
    let cluster = Cluster::new();
    let echo = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let at = echo.local_addr().unwrap();
    thread::spawn(move || {
        for mut stream in echo.incoming().map_while(Result::ok) {
            let mut buffer = [0; 4096];
            // Until the node has had enough of it.
            while let Ok(length @ 1..) = stream.read(&mut buffer) {
                if stream.write_all(&buffer[..length]).is_err() {
                    break;
                }
            }
        }
    });
    let a = cluster.node("a").join(at).start();
    a.logged("no node answers", &[("message", &at.to_string()), ("message", "TLS")]);
    let b = cluster.node("b").join(a.listen()).start();
    linked(&[&a, &b]);
}

#[test]
fn a_seed_of_another_cluster_is_refused_by_both() {
    let cluster = Cluster::new();
    let other = cluster.path("other-certs");
    let x = cluster.node("x").certs(&other).start();
    let a = cluster.node("a").join(x.listen()).start();
    let at = x.listen().to_string();
    let [ours, theirs] = [&a, &x].map(|node| node.status().unwrap()["cluster"].clone());
    let [ours, theirs] = [&ours, &theirs].map(|id| id.as_str().unwrap());
    let says = |theirs, ours, certs: &Path| {
        let certs = certs.display();
        format!("belongs to another cluster (authority {theirs}; ours is {ours}, from {certs})")
    };
    let seen = says(theirs, ours, &cluster.certs());
    a.logged("no node answers", &[("message", &at), ("message", &seen)]);
    let seen = says(ours, theirs, &other);
    let refused = [("from", "127.0.0.1"), ("cause", "other_cluster"), ("detail", seen.as_str())];
    x.logged("connection refused", &refused);
    x.counts("xpando_connections_refused_total", "other_cluster", 2);
    assert_eq!(x.count_logged("connection refused", &[]), 1, "once a minute");
    assert_eq!(x.status().unwrap()["peers"].as_array().unwrap().len(), 0);
}

#[test]
fn a_port_that_is_taken_is_named() {
    let cluster = Cluster::new();
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let at = taken.local_addr().unwrap();
    let ended = cluster.node("a").listen(at).ends();
    ended.fails_with(1, &[&format!("cannot listen on {at}"), "--listen"]);
}

#[test]
fn without_listen_a_loopback_node_takes_the_next_free_port() {
    let cluster = Cluster::new();
    let a = cluster.node("a").default_port().start();
    let b = cluster.node("b").default_port().start();
    let [of_a, of_b] = [&a, &b].map(|node| node.listen().port());
    assert!((4697..=5697).contains(&of_a) && of_b > of_a, "{of_a}, {of_b}");
}

#[test]
fn a_data_directory_that_cannot_be_one_is_named() {
    let cluster = Cluster::new();
    let file = cluster.path("occupied");
    fs::write(&file, "a file").unwrap();
    for place in [file.clone(), file.join("below")] {
        let ended = cluster.node("a").data_dir(&place).ends();
        ended.fails_with(1, &[&place.display().to_string(), "not usable", "--data-dir"]);
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "a file");
}

#[test]
fn a_damaged_store_is_set_aside() {
    let cluster = Cluster::new();
    let a = cluster.node("a").start();
    let data_dir = a.data_dir.clone();
    assert_eq!(a.terminate(), Some(0));
    fs::write(data_dir.join("node.redb"), "rubbish".repeat(1000)).unwrap();
    let a = cluster.node("a").start();
    let line = a.logged("store was damaged", &[]);
    let (_, aside) = line["message"].as_str().unwrap().split_once("kept as ").unwrap();
    assert!(fs::read_to_string(aside).unwrap().starts_with("rubbish"));
}

#[test]
fn damaged_identity_files_are_named_and_left_alone() {
    let cluster = Cluster::new();
    let _leaf = cluster.print(&["cert", "issue", "a@127.0.0.1", "--certs", "certs"]);
    for file in ["a@127.0.0.1/cert.pem", "a@127.0.0.1/key.pem", "ca/cert.pem"] {
        let path = cluster.certs().join(file);
        let sound = fs::read(&path).unwrap();
        let half = &sound[..sound.len() / 2];
        for damage in [b"rubbish".as_slice(), b"", half] {
            fs::write(&path, damage).unwrap();
            cluster.node("a").ends().fails_with(1, &[&path.display().to_string(), "damaged"]);
            assert_eq!(fs::read(&path).unwrap(), damage, "{file}");
        }
        fs::write(&path, sound).unwrap();
    }
    cluster.node("a").start();
}

#[test]
fn a_key_that_others_can_read_is_refused_with_the_remedy() {
    let cluster = Cluster::new();
    cluster.print(&["cert", "issue", "a@127.0.0.1", "--certs", "certs"]);
    let key = cluster.certs().join("a@127.0.0.1/key.pem");
    fs::set_permissions(&key, Permissions::from_mode(0o644)).unwrap();
    let remedy = format!("chmod 600 {}", key.display());
    cluster.node("a").ends().fails_with(1, &["0644", &remedy]);
    fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();
    cluster.node("a").start();
}

#[test]
fn an_expired_certificate_ends_the_start_where_nobody_can_renew_it() {
    use xpando_node::internals::io::clock::wall;
    use xpando_node::internals::io::identity::{Authority, Validity};
    let cluster = Cluster::new();
    let past = wall() - std::time::Duration::from_secs(60);
    let validity =
        Validity { not_before: past - std::time::Duration::from_secs(60), not_after: past };
    let authority = Authority::open(&cluster.certs()).unwrap();
    authority.issue(&cluster.certs(), &"a@127.0.0.1".parse().unwrap(), validity).unwrap();
    fs::remove_file(cluster.certs().join("ca/key.pem")).unwrap();
    cluster.node("a").ends().fails_with(1, &["a@127.0.0.1/cert.pem", "expired at"]);
}

#[test]
fn a_node_runs_once_per_data_directory() {
    let cluster = Cluster::new();
    let mut a = cluster.node("a").start();
    cluster.node("a").ends().fails_with(1, &["already running"]);
    assert!(a.runs());
    let status = a.status().unwrap();
    assert_eq!(status["incarnation"], 1, "the second start has changed nothing");
    assert!(cluster.print(&["ps"]).contains("running"));
}

#[test]
fn on_another_host_than_loopback_no_identity_is_invented() {
    let cluster = Cluster::without_authority();
    let node = || cluster.node("a@10.1.2.3");
    node().ends().fails_with(1, &["xpando-node cert init --certs"]);
    assert!(!cluster.certs().join("ca").exists());
    cluster.print(&["cert", "init", "--certs", "certs"]);
    node().ends().fails_with(1, &["xpando-node cert issue a@10.1.2.3"]);
    cluster.print(&["cert", "issue", "a@10.1.2.3", "--certs", "certs"]);
    let a = node().start();
    assert_eq!(a.status().unwrap()["name"], "a@10.1.2.3");
}
