//! What commands print when something is missing, wrong or in the way: whose fault it is, said once, with the remedy.

use std::collections::BTreeSet;
use std::process::{Output, Stdio};

use crate::kit::{Cluster, full, linked, outputs, until};

/// Commands that ask a node.
const ASKING: [&[&str]; 18] = [
    &["status"],
    &["nodes"],
    &["why", "b@127.0.0.1"],
    &["topology"],
    &["watch"],
    &["events", "--all"],
    &["top"],
    &["publish", "room:1", "x"],
    &["subscribe", "room:1"],
    &["call", "xpando:echo", "x"],
    &["metrics"],
    &["drain"],
    &["drain", "--undo"],
    &["disconnect", "b@127.0.0.1"],
    &["forget", "b@127.0.0.1"],
    &["invite"],
    &["requests"],
    &["release", "b@127.0.0.1"],
];

/// The variables that any command reads its arguments from, as its help names them.
fn variables(cluster: &Cluster) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for command in
        [&[][..], &["status"], &["events", "verify"], &["cert", "show"], &["token", "verify"]]
    {
        let help = cluster.print(&[command, &["--help"]].concat());
        let names = help.split("[env: ").skip(1).filter_map(|rest| rest.split_once('='));
        found.extend(names.map(|(name, _)| name.to_owned()));
    }
    assert!(found.len() > 15, "{found:?}");
    found
}

#[test]
fn an_empty_variable_is_unset_for_every_command() {
    let cluster = Cluster::new();
    let variables = variables(&cluster);
    let mut a = cluster.node("a");
    for variable in &variables {
        a = a.env(variable, "");
    }
    let a = a.env("NO_COLOR", "").start();
    assert_eq!(a.status().unwrap()["peers"].as_array().unwrap().len(), 0, "it joins at nobody");
    for args in [&["status"][..], &["ps"], &["events"], &["cert", "show"], &["nodes", "--json"]] {
        let mut command = cluster.command();
        command.args(args).envs(variables.iter().map(|variable| (variable, " ")));
        let (code, _, err) = outputs(&command.output().unwrap());
        assert_eq!((code, err.as_str()), (Some(0), ""), "{args:?}");
    }
}

#[test]
fn a_bad_value_names_the_variable_that_it_came_from() {
    let cluster = Cluster::new();
    let run = |variable: &str, value: &str, args: &[&str]| -> Output {
        cluster.command().env(variable, value).args(args).output().unwrap()
    };
    let node = ["--name", "a@127.0.0.1"];
    for (variable, value, args) in [
        ("XPANDO_NAME", "nobody", &[][..]),
        ("XPANDO_NAME", "nobody", &["status"]),
        ("XPANDO_JOIN", "127.0.0.1:x", &node),
        ("XPANDO_LISTEN", "127.0.0.1", &node),
        ("XPANDO_HTTP", "here", &node),
        ("XPANDO_MIN_PEERS", "many", &node),
        ("XPANDO_EVENTS_AGE", "old", &node),
        ("XPANDO_EVENTS_SIZE", "0", &node),
        ("XPANDO_ALLOW_ANONYMOUS", "a b", &node),
        ("XPANDO_SPECIALIZATION", "a b", &node),
        ("XPANDO_LOG_FORMAT", "xml", &node),
        ("XPANDO_LIMIT", "topics=0", &node),
        ("XPANDO_PRESENCE", "room:*=none", &node),
    ] {
        let (code, _, err) = outputs(&run(variable, value, args));
        assert_eq!(code, Some(2), "{err}");
        assert!(err.contains(variable) && err.contains(value), "{variable}: {err}");
    }
    let (code, _, err) = outputs(&run("XPANDO_LIMIT", "topics=5,bogus=1,", &node));
    assert!(code == Some(2) && err.contains("XPANDO_LIMIT") && err.contains("bogus=1"), "{err}");
    let (code, _, err) = outputs(&run("XPANDO_LOG", "=,=", &node));
    assert!(code == Some(1) && err.contains("XPANDO_LOG"), "{err}");
    // The flag goes before the variable, and is what is wrong then.
    let (_, _, err) =
        outputs(&run("XPANDO_JOIN", "a:x", &["--name", "a@127.0.0.1", "--join", "b:y"]));
    assert!(!err.contains("XPANDO_JOIN (") && err.contains("'b:y' for '--join"), "{err}");
}

#[test]
fn separators_with_nothing_between_them_are_nothing() {
    let cluster = Cluster::new();
    let lists = [
        ("XPANDO_LIMIT", ",topics=5,,queue=20000,"),
        ("XPANDO_IDENTITY", ","),
        ("XPANDO_HISTORY", "; ;"),
        ("XPANDO_PRESENCE", "room:*=count,"),
        ("XPANDO_CHANNELS", ","),
        ("XPANDO_ALLOW_ANONYMOUS", "room:lobby,"),
    ];
    let node = lists.iter().fold(cluster.node("a"), |node, (name, value)| node.env(name, value));
    let limits = &node.start().status().unwrap()["limits"];
    assert_eq!((&limits["topics"], &limits["queue"]), (&"5".into(), &"20000".into()), "{limits}");
}

#[test]
fn an_identity_file_that_cannot_be_used_is_named_with_its_option() {
    let cluster = Cluster::new();
    let none = cluster.path("none").display().to_string();
    let node = cluster.node("a").env("XPANDO_IDENTITY", &none);
    node.ends().fails_with(1, &["--identity (XPANDO_IDENTITY)", &none, "is missing"]);
    let pipe = cluster.path("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let pipe = pipe.display().to_string();
    let args = ["token", "verify", "x.y.z", "--certs", "certs", "--identity", &pipe];
    let (code, _, err) = outputs(&cluster.run(&args));
    assert!(code == Some(1) && err.contains("--identity (XPANDO_IDENTITY)"), "{err}");
    assert!(err.contains("it is no regular file"), "{err}");
}

#[test]
fn a_directory_without_a_node_is_named_with_the_remedy() {
    let cluster = Cluster::new();
    let empty = cluster.path("empty");
    std::fs::create_dir(&empty).unwrap();
    for (directory, why) in [
        (cluster.path("nowhere"), "there is no such directory"),
        (empty, "no node runs with this data directory"),
    ] {
        let directory = directory.display().to_string();
        for args in ASKING {
            let output = cluster.run(&[args, &["--data-dir", &directory]].concat());
            let (code, out, err) = outputs(&output);
            assert_eq!((code, out.as_str()), (Some(1), ""), "{args:?}: {err}");
            let expected = format!("xpando-node: {directory}: {why}; `xpando-node ps` shows");
            assert!(err.starts_with(&expected), "{args:?}: {err}");
        }
        // Events are read from a node that was stopped, too.
        let (code, _, err) = outputs(&cluster.run(&["events", "--data-dir", &directory]));
        assert!(code == Some(1) && err.contains(&directory), "{err}");
    }
}

#[test]
fn nodes_of_one_name_are_listed_with_their_directories() {
    let cluster = Cluster::new();
    let [one, other] = [cluster.path("one"), cluster.path("other")];
    let nodes = [&one, &other].map(|directory| cluster.node("a").data_dir(directory).launch());
    for node in &nodes {
        node.listen();
    }
    let (code, _, err) = outputs(&cluster.run(&["status", "--name", "a@127.0.0.1"]));
    assert_eq!(code, Some(1));
    let listed = cluster.print(&["ps"]);
    for directory in [one, other].map(|directory| directory.display().to_string()) {
        assert!(err.contains(&directory) && listed.contains(&directory), "{err}{listed}");
        assert!(cluster.print(&["status", "--data-dir", &directory]).starts_with("a@127.0.0.1"));
    }
}

#[test]
fn output_that_nobody_reads_is_no_failure() {
    let cluster = Cluster::new();
    let a = cluster.node("a").start();
    let b = cluster.node("b").join(a.listen()).start();
    linked(&[&a, &b]);
    for args in [
        &["status", "--name", "a@127.0.0.1"][..],
        &["status", "--name", "a@127.0.0.1", "--json"],
        &["nodes", "--name", "a@127.0.0.1"],
        &["topology", "--name", "a@127.0.0.1", "--dot"],
        &["why", "b@127.0.0.1", "--name", "a@127.0.0.1"],
        &["events", "--name", "a@127.0.0.1"],
        &["events", "export", "--name", "a@127.0.0.1"],
        &["watch", "--name", "a@127.0.0.1"],
        &["metrics", "--name", "a@127.0.0.1"],
        &["call", "xpando:echo", "x", "--name", "a@127.0.0.1"],
        &["names"], // the older name of `ps`
        &["ps", "--json"],
        &["cert", "show"],
        &["cert", "show", "--json"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = cluster.command();
        let output = command.args(args).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        let (code, _, err) = outputs(&output);
        assert_eq!((code, err.as_str()), (Some(0), ""), "{args:?}");
    }
    // A node that goes while it is asked is a failure as ever.
    let gone = cluster.run(&["status", "--data-dir", "gone"]);
    assert_eq!(gone.status.code(), Some(1));
}

#[test]
fn status_waits_for_the_node_and_its_peers() {
    let cluster = Cluster::new();
    let waits = |args: &[&str]| {
        let mut command = cluster.command();
        command.args(["status", "--name", "a@127.0.0.1", "--wait"]).args(args);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let alone = outputs(&waits(&["--timeout", "0"]).wait_with_output().unwrap());
    assert_eq!(alone.0, Some(1), "{alone:?}");
    assert!(alone.2.contains("no node a@127.0.0.1 runs on this machine"), "{alone:?}");

    // As README has it: the command is there before the nodes.
    let waiting = waits(&["--peers", "2"]);
    let a = cluster.node("a").start();
    let b = cluster.node("b").join(a.listen()).start();
    let few = outputs(&waits(&["--peers", "2", "--timeout", "0"]).wait_with_output().unwrap());
    assert!(few.0 == Some(1) && few.2.contains("of 2 peers online"), "{few:?}");
    let c = cluster.node("c").join(a.listen()).start();
    let (code, out, err) = outputs(&waiting.wait_with_output().unwrap());
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert!(out.contains("sees all 3 nodes") && out.matches("online").count() == 2, "{out}");
    drop((b, c));
    let usage = outputs(&cluster.run(&["status", "--peers", "2"]));
    assert!(usage.0 == Some(2) && usage.2.contains("--wait"), "{usage:?}");
}

#[test]
fn a_node_knows_why_about_itself() {
    let cluster = Cluster::new();
    let a = cluster.node("a").start();
    let text = cluster.print(&["why", "a@127.0.0.1"]);
    for part in ["a@127.0.0.1 is that node itself", "incarnation 1", &a.listen().to_string()] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let (code, _, err) = outputs(&cluster.run(&["why", "x@127.0.0.1"]));
    assert!(code == Some(1) && err.contains("a@127.0.0.1 knows of no x@127.0.0.1"), "{err}");
}

#[test]
fn a_call_says_what_is_missing() {
    let cluster = Cluster::new();
    let a = cluster.node("a").start();
    let b = cluster.node("b").join(a.listen()).start();
    linked(&[&a, &b]);
    let calls = |to: &str| {
        let (code, _, err) = outputs(&a.run(&["call", to, "x"], b""));
        assert_eq!(code, Some(1), "{to}: {err}");
        err
    };
    assert_eq!(calls("work@b@127.0.0.1"), "xpando-node: b@127.0.0.1 serves no work\n");
    assert!(calls("work").contains("no node that a@127.0.0.1 is linked with serves work"));
    assert!(calls("work@x@127.0.0.1").contains("no node x@127.0.0.1 is known"));
    b.kill();
    a.sees("b", "offline");
    let err = calls("xpando:echo@b@127.0.0.1");
    assert!(err.contains("b@127.0.0.1 is not linked: offline"), "{err}");
    assert!(err.contains("`xpando-node why b@127.0.0.1`"), "{err}");
}

#[test]
fn a_failed_start_tells_each_cause_once_and_what_it_is_about() {
    let cluster = Cluster::new();
    let a = cluster.node("a").start();
    let path = |name: &str| cluster.path(name).display().to_string();
    std::fs::write(path("file"), "").unwrap();
    std::fs::write(path("cert.pem"), "rubbish").unwrap();
    let key = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    std::fs::write(path("locked.pem"), key).unwrap();
    cluster.issue(&full("c"));
    let certificate = path("certs/c@127.0.0.1/cert.pem");
    let (taken, http) = (a.listen().to_string(), a.http().to_string());
    for (args, words) in [
        (vec!["--listen", &taken], vec![taken.as_str(), "in use"]),
        (vec!["--http", &http], vec![http.as_str(), "in use", "--http"]),
        (vec!["--http-cert", "no.pem", "--http-key", "no.key"], vec!["no.pem", "No such file"]),
        (vec!["--http-cert", "cert.pem", "--http-key", "no.key"], vec!["cert.pem"]),
        (
            vec!["--http-cert", &certificate, "--http-key", "locked.pem"],
            vec!["locked.pem is encrypted", "openssl pkey"],
        ),
        (vec!["--data-dir", "file"], vec!["file", "--data-dir"]),
        (vec!["--certs", "file"], vec!["file"]),
    ] {
        let mut command = cluster.command();
        command.args(["--name", "c@127.0.0.1", "--no-beacon", "--log", "off"]).args(&args);
        let (code, _, err) = outputs(&command.output().unwrap());
        assert_eq!(code, Some(1), "{args:?}: {err}");
        for word in words {
            assert!(err.contains(word), "{args:?}: {word:?} is not in {err}");
        }
        let parts: Vec<_> = err.trim_end().split([':', ';']).map(str::trim).collect();
        let once: BTreeSet<_> = parts.iter().filter(|part| part.len() > 8).collect();
        let long = parts.iter().filter(|part| part.len() > 8).count();
        assert_eq!(once.len(), long, "a cause twice: {err}");
        assert_eq!(err.lines().count(), 1, "{err}");
    }
    until("the node that ran before", || a.status().map(drop));
}

#[test]
fn no_name_looks_like_an_option() {
    let cluster = Cluster::new();
    for args in [
        &["--name=-a@127.0.0.1"][..],
        &["cert", "issue", "--", "-a@127.0.0.1"],
        &["why", "--", "--help@127.0.0.1"],
        &["call", "--", "-name", "x"],
    ] {
        let (code, _, err) = outputs(&cluster.run(args));
        assert_eq!(code, Some(2), "{args:?}: {err}");
        assert!(err.contains("begin with"), "{args:?}: {err}");
    }
}
