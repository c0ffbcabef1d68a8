//! Machines that join by an invitation: what they get, what each refusal says, and what strangers, liars and guessers
//! cannot do.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use xpando_node::internals::io::clock;
use xpando_node::internals::io::enrolment::{AskError, ask};
use xpando_node::internals::io::identity::enrol::{EnrolError, Joiner, Line};
use xpando_node::internals::io::tls::enrol::{ConnectError, Expected};
use xpando_node::internals::proto::enrol::{Answer, AuthorityHash, Refused};

use crate::kit::client::runtime;
use crate::kit::socket::ClientSocket;
use crate::kit::{Cluster, Node, Start, free_address, full, linked, outputs, parsed, until};

/// `invite` at a node; the invitation.
#[track_caller]
pub(crate) fn line(node: &Node, args: &[&str]) -> String {
    let told = node.ask(&[&["invite"], args].concat()).unwrap();
    let line = told.split('\'').nth(1).unwrap().to_owned();
    assert!(told.starts_with("xpando-node join 'xpando1:"), "{told}");
    line
}

/// The invitation's secret.
fn secret(line: &str) -> &str {
    line.split(['.', '@']).nth(1).unwrap()
}

/// The same invitation with other addresses.
fn at(line: &str, addresses: &str) -> String {
    let (before, rest) = line.split_once('@').unwrap();
    format!("{before}@{addresses}#{}", rest.split_once('#').unwrap().1)
}

/// The certificate directory of a machine of its own.
pub(crate) fn machine(cluster: &Cluster, name: &str) -> PathBuf {
    cluster.path(&format!("machine-of-{name}"))
}

/// A node that joins on a machine of its own.
pub(crate) fn invited(cluster: &Cluster, name: &str, line: &str) -> Start {
    cluster.node(name).certs(&machine(cluster, name)).invited(line)
}

/// `join`, without `--start`, on a machine of this name, under a name.
fn joins(cluster: &Cluster, on: &str, name: &str, line: &str) -> Child {
    let mut command = cluster.command();
    command.args(["join", line, "--name", &full(name), "--wait", "60s", "--certs"]);
    command.arg(machine(cluster, on)).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// [`joins`] to its end.
fn joined(cluster: &Cluster, on: &str, name: &str, line: &str) -> (Option<i32>, String, String) {
    outputs(&joins(cluster, on, name, line).wait_with_output().unwrap())
}

/// What `join` says that fails; nothing was written but a key.
#[track_caller]
fn refused(cluster: &Cluster, (on, name): (&str, &str), line: &str, parts: &[&str]) {
    let (code, out, err) = joined(cluster, on, name, line);
    assert_eq!((code, out.as_str()), (Some(1), ""), "{err}");
    for part in parts {
        assert!(err.contains(part), "{part:?} is not in: {err}");
    }
    let secret = line.contains('.').then(|| secret(line));
    assert!(secret.is_none_or(|secret| !err.contains(secret)), "the secret is in: {err}");
    assert!(!machine(cluster, on).join(full(name)).join("cert.pem").exists());
    assert!(!machine(cluster, on).join("ca/cert.pem").exists());
}

#[test]
fn one_line_makes_a_machine_a_node_and_nothing_secret_is_in_any_log() {
    let cluster = Cluster::new();
    let a = cluster.node("a").start();
    let line = line(&a, &["--name", "b*@127.0.0.*"]);
    let b = invited(&cluster, "b", &line).start();
    linked(&[&a, &b]);
    let certs = machine(&cluster, "b");
    for file in ["ca/cert.pem", "ca/tokens", "b@127.0.0.1/cert.pem", "b@127.0.0.1/key.pem"] {
        assert!(certs.join(file).exists(), "{file}");
    }
    let mode = certs.join("b@127.0.0.1/key.pem").metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(!certs.join("ca/key.pem").exists() && !certs.join("ca/issued").exists());
    let issued =
        a.logged("certificate_issued", &[("node", "b@127.0.0.1"), ("message", "invitation")]);
    assert_eq!(issued["level"], "INFO");
    assert_eq!(a.counter("xpando_certificate_requests_total", "issued"), 1);
    // The operator's deed is in the trail, without what makes the invitation.
    let events = a.ask(&["events", "--json"]).unwrap();
    assert!(events.contains("\"deed\":\"invite\""), "{events}");
    for text in [a.log_text(), b.log_text(), events] {
        assert!(!text.contains(secret(&line)), "the secret is in: {text}");
    }
    // The same command again, on a machine that has joined, starts the node again.
    assert_eq!(b.terminate(), Some(0));
    let b = invited(&cluster, "b", &line).start();
    linked(&[&a, &b]);
    let (code, _, err) = joined(&cluster, "b", "b", &line);
    assert!(code == Some(1) && err.contains("is valid until"), "{err}");
}

#[test]
fn a_machine_that_does_not_start_at_once_is_told_how() {
    let cluster = Cluster::new();
    let a = cluster.node("a").start();
    let (code, out, err) = joined(&cluster, "b", "b", &line(&a, &[]));
    assert_eq!((code, err.as_str()), (Some(0), ""));
    let next = out.lines().last().unwrap().strip_prefix("Next: xpando-node ").unwrap();
    let certs = machine(&cluster, "b");
    assert_eq!(next, format!("--name b@127.0.0.1 --certs {}", certs.display()));
    // It has kept where the others are, and where it was linked counts from then on.
    let b = cluster.node("b").certs(&certs).start();
    linked(&[&a, &b]);
    assert_eq!(b.terminate(), Some(0));
    std::fs::write(certs.join(full("b")).join("peers"), "127.0.0.1:1\n").unwrap();
    linked(&[&a, &cluster.node("b").certs(&certs).start()]);
}

#[test]
fn a_first_node_begins_its_cluster_only_when_it_is_told_to() {
    let cluster = Cluster::without_authority();
    let name = "a@10.77.0.9";
    let ended = cluster.node(name).ends();
    ended.fails_with(1, &["ca/cert.pem is missing"]);
    let a = cluster.node(name).arg("--init").start();
    let status = a.status().unwrap();
    assert_eq!(a.terminate(), Some(0));
    // What is there stays.
    let a = cluster.node(name).arg("--init").start();
    assert_eq!(a.status().unwrap()["id"], status["id"]);
    assert_eq!(a.status().unwrap()["cluster"], status["cluster"]);
    let b = invited(&cluster, "b", &at(&line(&a, &[]), &a.listen().to_string())).start();
    linked(&[&a, &b]);
}

#[test]
fn a_node_without_the_key_passes_requests_on_and_says_when_it_cannot() {
    let cluster = Cluster::new();
    let a = cluster.node("a").start();
    let b = invited(&cluster, "b", &line(&a, &[])).start();
    linked(&[&a, &b]);
    let there = at(&line(&a, &["--uses", "2"]), &b.listen().to_string());
    let c = invited(&cluster, "c", &there).start();
    linked(&[&a, &b, &c]);
    assert_eq!(b.counter("xpando_certificate_requests_total", "passed_on"), 1);
    // It names the nodes that can issue to its own operator.
    for args in [
        &["invite"][..],
        &["requests"],
        &["requests", "approve", "00c0ffee"],
        &["release", "c@127.0.0.1"],
    ] {
        let err = b.ask(args).unwrap_err();
        assert!(
            err.contains("cannot issue") && err.contains("ask one that can: a@127.0.0.1"),
            "{err}"
        );
    }
    a.kill();
    b.sees("a", "offline");
    refused(
        &cluster,
        ("d", "d"),
        &there,
        &["no certificate can be issued there", "the authority's key"],
    );
    let err = b.ask(&["invite"]).unwrap_err();
    assert!(err.contains("nor can any node that it is linked with"), "{err}");
}

#[test]
fn a_running_node_issues_as_long_as_it_has_the_authoritys_key() {
    let cluster = Cluster::new();
    let a = cluster.node("a").start();
    let b = invited(&cluster, "b", &line(&a, &["--can", "issue"])).start();
    let c = invited(&cluster, "c", &line(&a, &[])).start();
    linked(&[&a, &b, &c]);
    // Whom c names who can issue.
    let able = |names: &[&str]| {
        until("nodes that can issue", || match c.ask(&["invite"]) {
            Err(err) if ["a@", "b@"].iter().all(|at| names.contains(at) == err.contains(at)) => {
                Ok(())
            }
            other => Err(format!("{other:?}")),
        });
    };
    able(&["a@"]);
    let key = machine(&cluster, "b").join("ca/key.pem");
    std::fs::copy(cluster.certs().join("ca/key.pem"), &key).unwrap();
    able(&["a@", "b@"]);
    a.kill();
    c.sees("a", "offline");
    let there = at(&line(&b, &[]), &c.listen().to_string());
    let d = invited(&cluster, "d", &there).start();
    linked(&[&b, &c, &d]);
    std::fs::remove_file(&key).unwrap();
    able(&[]);
    let err = b.ask(&["invite"]).unwrap_err();
    assert!(err.contains("cannot issue"), "{err}");
}

#[test]
fn a_request_waits_until_somebody_approves_or_denies_it() {
    let cluster = Cluster::new();
    let a = cluster.node("a").start();
    let line = line(&a, &["--approve", "--uses", "2"]);
    for (name, decision, ends) in [("b", "approve", 0), ("c", "deny", 1)] {
        let waiting = joins(&cluster, name, name, &line);
        let request = until("request", || {
            let listed: Value = serde_json::from_str(&a.ask(&["requests", "--json"])?).unwrap();
            let of = |it: &&Value| it["name"] == full(name).as_str();
            let one = listed.as_array().unwrap().iter().find(of).cloned();
            one.map(|it| it["request"].as_str().unwrap().to_owned()).ok_or(listed.to_string())
        });
        a.logged("certificate_requested", &[("node", &full(name)), ("message", &request)]);
        let table = a.ask(&["requests"]).unwrap();
        assert!(table.contains(&request) && table.contains(&full(name)), "{table}");
        assert!(!machine(&cluster, name).join("ca/cert.pem").exists(), "not before");
        a.ask(&["requests", decision, &request]).unwrap();
        let (code, _, err) = outputs(&waiting.wait_with_output().unwrap());
        assert_eq!(code, Some(ends), "{err}");
        assert!(err.contains(&format!("requests approve {request}")), "{err}");
        assert_eq!(err.contains("the request was denied"), ends == 1, "{err}");
        let again = a.ask(&["requests", decision, &request]).unwrap_err();
        assert!(again.contains("waits for approval"), "{again}");
    }
    assert!(a.ask(&["requests"]).unwrap().starts_with("no request waits"));
}

#[test]
fn what_an_invitation_does_not_allow_is_refused_with_the_remedy() {
    let cluster = Cluster::new();
    let a = cluster.node("a").start();
    let one = line(&a, &["--name", "web-*@127.0.0.1"]);
    refused(&cluster, ("b", "b"), &one, &["names like web-*@127.0.0.1", "another invitation"]);
    let (code, _, err) = joined(&cluster, "b", "web-1", &one);
    assert_eq!(code, Some(0), "{err}");
    // A line that somebody has read over a shoulder, and uses again.
    refused(&cluster, ("thief", "web-2"), &one, &["is used up", "ask for a new one"]);
    refused(&cluster, ("thief", "web-1"), &one, &["belongs to another key", "released"]);
    // The name is free again once an operator says so.
    assert!(a.ask(&["release", "web-1@127.0.0.1"]).unwrap().contains("its certificate is revoked"));
    let (code, _, err) = joined(&cluster, "new", "web-1", &line(&a, &[]));
    assert_eq!(code, Some(0), "{err}");
    let short = line(&a, &["--ttl", "1s", "--uses", "1000"]);
    let mut number = 0;
    until("end of the invitation", || {
        number += 1;
        let name = format!("late-{number}");
        let (_, _, err) = joined(&cluster, &name, &name, &short);
        if err.contains("the invitation ended at") { Ok(()) } else { Err(err) }
    });
    refused(&cluster, ("x", "x"), &one[..40], &["cut off"]);
    refused(&cluster, ("x", "x"), "https://example", &["no invitation"]);
}

#[test]
fn a_line_of_another_cluster_and_one_that_leads_nowhere_say_so() {
    let cluster = Cluster::new();
    let a = cluster.node("a").start();
    let other = cluster.beside();
    let b = other.node("b").start();
    let theirs = line(&b, &[]);
    let there = at(&theirs, &a.listen().to_string());
    refused(&cluster, ("x", "x"), &there, &[&a.listen().to_string(), "is of another cluster"]);
    // All addresses are tried, and of each it is said what happened.
    let [one, two] = [free_address(), free_address()].map(|at| at.to_string());
    let nowhere = at(&line(&a, &[]), &format!("{one},{two}"));
    let words = [&one[..], &two, "of 2 addresses", "cannot connect: Connection refused"];
    refused(&cluster, ("x", "x"), &nowhere, &words);
    let last = at(&line(&a, &[]), &format!("{one},{}", a.listen()));
    let (code, _, err) = joined(&cluster, "x", "x", &last);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    // A machine of one cluster does not become one of another.
    let (code, _, err) = joined(&cluster, "x", "y", &theirs);
    assert!(
        code == Some(1) && err.contains("is of another cluster than the one that invites"),
        "{err}"
    );
}

/// The answer to a request as a machine makes it at this time.
async fn answer(cluster: &Cluster, text: &str, name: &str, ahead: i64) -> Result<Answer, AskError> {
    let line: Line = text.parse().unwrap();
    let joiner = Joiner::prepare(&machine(cluster, name), &parsed(name), &[], clock::wall());
    let shift = Duration::from_secs(ahead.unsigned_abs());
    let now = if ahead < 0 { clock::wall() - shift } else { clock::wall() + shift };
    let asked = joiner.unwrap().ask(&line, now).unwrap();
    let expected = Expected::Authority(line.authority());
    let bytes = ask(&line.addresses()[0], expected, asked.bytes()).await?;
    Ok(Answer::decode(&bytes).unwrap())
}

#[tokio::test]
async fn a_clock_that_is_off_is_told_by_how_much() {
    let cluster = Cluster::new();
    let a = cluster.node("a").start();
    let line = line(&a, &[]);
    for (ahead, words) in [(-3600, "s behind the issuer's"), (400, "s ahead of the issuer's")] {
        let answer = answer(&cluster, &line, "b", ahead).await.unwrap();
        let Answer::Refused(refused) = answer else { panic!("{answer:?}") };
        assert!(matches!(refused, Refused::Clock { .. }), "{refused}");
        let off = [&(ahead.unsigned_abs() - 1).to_string(), &ahead.unsigned_abs().to_string()];
        let text = refused.to_string();
        assert!(text.contains(words) && off.iter().any(|off| text.contains(*off)), "{text}");
    }
    assert!(matches!(answer(&cluster, &line, "b", 200).await.unwrap(), Answer::Issued(_)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_lies_in_the_issuers_place_costs_time_and_nothing_else() {
    let cluster = Cluster::new();
    let a = cluster.node("a").start();
    let b = invited(&cluster, "b", &line(&a, &[])).start();
    let (code, _, err) = joined(&cluster, "liar", "liar", &line(&a, &["--can", "issue"]));
    assert_eq!(code, Some(0), "{err}");
    let liar = xpando_node::Node::builder(full("liar")).certs(machine(&cluster, "liar"));
    let liar = liar.data_dir(cluster.path("liar")).listen("127.0.0.1:0").beacons(false);
    let liar = liar.join(b.listen().to_string()).start().await.unwrap();
    // A certificate of another name, which the authority has signed indeed.
    let own = liar_answer(&cluster);
    let lies = std::sync::atomic::AtomicUsize::new(0);
    let serving = liar
        .serve("xpando:issue", move |_request| {
            let lie = lies.fetch_add(1, std::sync::atomic::Ordering::Relaxed) % 4;
            let bytes = match lie {
                0 => own.clone(),
                1 => vec![0xff; 1000],
                2 => Answer::Refused(Refused::Denied).encode().unwrap(),
                _ => Vec::new(),
            };
            async move { Ok(bytes.into()) }
        })
        .unwrap();
    until("word of the liar's offer", || {
        let err = b.ask(&["invite"]).unwrap_err();
        if err.contains("liar@") && err.contains(" a@") { Ok(()) } else { Err(err) }
    });
    for number in 0..8 {
        let line = at(&line(&a, &[]), &b.listen().to_string());
        let name = format!("n{number}");
        let (code, _, err) = joined(&cluster, &name, &name, &line);
        assert_eq!(code, Some(0), "{err}");
    }
    drop(serving);
    liar.shutdown().await;
}

/// An answer that grants somebody else's certificate.
fn liar_answer(cluster: &Cluster) -> Vec<u8> {
    let identity = cluster.identity("other");
    let issued = xpando_node::internals::proto::enrol::Issued {
        certificate: identity.certificate().to_vec(),
        authorities: vec![identity.authority_certificate().to_vec()],
        trust: None,
        tokens: None,
        revocations: None,
        peers: Vec::new(),
        seal: Some([7; 32]),
    };
    Answer::Issued(Box::new(issued)).encode().unwrap()
}

/// Nobody in the place of the node that was meant can grant anything, though it had the right certificate.
#[test]
fn an_answer_that_the_inviter_did_not_seal_is_not_taken() {
    let cluster = Cluster::new();
    let a = cluster.node("a").start();
    let line: Line = line(&a, &[]).parse().unwrap();
    let joiner =
        Joiner::prepare(&machine(&cluster, "b"), &parsed("b"), &[], clock::wall()).unwrap();
    let asked = joiner.ask(&line, clock::wall()).unwrap();
    let error = asked.check(&liar_answer(&cluster), clock::wall()).unwrap_err();
    assert!(matches!(error, EnrolError::Answer(_)), "{error}");
    assert_eq!(line.authority(), AuthorityHash::of(&cluster.identity("x").authority_certificate()));
}

#[tokio::test]
async fn ten_thousand_guesses_are_refused_slowed_and_counted_and_take_no_memory() {
    let cluster = Cluster::new();
    let a = cluster.node("a").start();
    let b = invited(&cluster, "b", &line(&a, &[])).start();
    linked(&[&a, &b]);
    let sound = line(&a, &[]);
    // One character of the secret is another one.
    let wrong = secret(&sound).to_owned();
    let other = if wrong.starts_with('A') { "B" } else { "A" };
    let guess = sound.replace(&wrong, &format!("{other}{}", &wrong[1..]));
    let address: SocketAddr = a.listen();
    let guess = at(&guess, &address.to_string());
    // What it holds once it has answered some.
    for _ in 0..200 {
        drop(answer(&cluster, &guess, "x", 0).await);
    }
    let before = a.memory();
    let (mut answered, mut denied) = (0, 0);
    for _ in 0..10_000 {
        match answer(&cluster, &guess, "x", 0).await {
            Ok(Answer::Refused(Refused::UnknownInvitation | Refused::RateLimited { .. })) => {
                answered += 1
            }
            Ok(other) => panic!("{other:?}"),
            Err(AskError::Tls(ConnectError::Denied)) => denied += 1,
            Err(other) => panic!("{other}"),
        }
    }
    let grown = a.memory().saturating_sub(before);
    eprintln!(
        "of 10,000 guesses {answered} were heard and {denied} denied; memory grew by {grown} KiB"
    );
    assert!(denied > 5_000, "{denied} were slowed");
    assert!(grown < 4096, "{grown} KiB");
    assert!(a.counter("xpando_connections_refused_total", "enrol_limited") >= denied);
    assert!(a.counter("xpando_certificate_requests_total", "unknown_invitation") > 0);
    // Links do not notice, and whoever has the line gets in once it is its address's turn.
    assert_eq!(a.row("b")["status"], "online");
    let (code, _, err) = joined(&cluster, "c", "c", &at(&sound, &address.to_string()));
    assert_eq!(code, Some(0), "{err}");
}

#[test]
fn a_spoken_invitation_lets_one_machine_in_and_a_wrong_guess_ends_it() {
    let cluster = Cluster::new();
    let a = cluster.node("a").start();
    let speak = || {
        let told = a.ask(&["invite", "--spoken"]).unwrap();
        let words: Vec<_> = told.split_whitespace().map(str::to_owned).collect();
        assert_eq!((words[1].as_str(), words[3].as_str()), ("join", "--at"), "{told}");
        (words[2].clone(), words[4].clone())
    };
    let join = |name: &str, code: &str, at: &str| {
        let mut command = cluster.command();
        command.args(["join", code, "--at", at, "--name", &full(name), "--certs"]);
        outputs(&command.arg(machine(&cluster, name)).output().unwrap())
    };
    let (code, at) = speak();
    let (ended, _, err) = join("b", &code, &at);
    assert_eq!(ended, Some(0), "{err}");
    let b = cluster.node("b").certs(&machine(&cluster, "b")).join(a.listen()).start();
    linked(&[&a, &b]);
    let again = join("c", &code, &at);
    assert_eq!(again.0, Some(1), "it is good once: {again:?}");

    let (code, at) = speak();
    let number = code.split('-').next().unwrap();
    let guess = if code.ends_with("acorn-zoo") { "zoo-acorn" } else { "acorn-zoo" };
    let wrong = join("c", &format!("{number}-{guess}"), &at);
    assert_eq!(wrong.0, Some(1), "{wrong:?}");
    let burnt = join("c", &code, &at);
    assert_eq!(burnt.0, Some(1), "the right words come too late: {burnt:?}");
    assert!(!machine(&cluster, "c").join(full("c")).join("cert.pem").exists());
    let spoken = [code.split_once('-').unwrap().1];
    for text in [a.log_text(), a.ask(&["events", "--json"]).unwrap()] {
        assert!(!spoken.iter().any(|words| text.contains(words)), "the words are in: {text}");
    }
}

#[test]
fn what_a_node_may_do_is_said_when_it_is_invited_and_holds_everywhere() {
    let cluster = Cluster::new();
    let a = cluster.node("a").start();
    let member = line(&a, &["--name", "b@*", "--can", "member"]);
    let edge = line(&a, &["--name", "e@*", "--edge", "sensor:*", "--edge", "report"]);
    let b = invited(&cluster, "b", &member).start();
    let open = ["--allow-anonymous", "room:*,sensor:*", "--channels", "sensor:*=room"];
    let e = open.into_iter().fold(invited(&cluster, "e", &edge), Start::arg).start();
    linked(&[&a, &b, &e]);
    let may = |node: &Node| node.status().unwrap()["may"].as_str().unwrap().to_owned();
    assert_eq!([&a, &b, &e].map(may), ["member operate issue", "member", "edge sensor:* report"]);

    let gone = cluster.node("c").join(a.listen()).start();
    linked(&[&a, &b, &e, &gone]);
    assert_eq!(gone.terminate(), Some(0));
    for node in [&b, &e] {
        let err = node.ask(&["forget", &full("c")]).unwrap_err();
        assert!(err.contains("does not let it have nodes forgotten"), "{err}");
    }
    a.ask(&["forget", &full("c")]).unwrap();
    for node in [&b, &e] {
        until("c is forgotten", || {
            let nodes = node.ask(&["nodes"]).unwrap();
            if nodes.contains(&full("c")) { Err(nodes) } else { Ok(()) }
        });
    }

    let (code, _, err) = outputs(&e.run(&["publish", "room:1", "x"], &[]));
    assert!(code == Some(1) && err.contains("does not let it publish on room:1"), "{err}");
    e.ask(&["publish", "sensor:1", "20"]).unwrap();
    // Where it may not be present, its clients have no presence to change.
    runtime().block_on(async {
        let mut socket = ClientSocket::open(&e, None).await;
        for (join, topic, answer) in [(1, "sensor:1", "ok"), (2, "room:1", "no such presence")] {
            assert_eq!(socket.asks(join, topic, "phx_join", json!({})).await, "ok");
            let said = socket.asks(join, topic, "presence_meta", json!({ "is": "away" })).await;
            assert_eq!(said, answer, "{topic}");
        }
    });
    assert_eq!(e.counter("xpando_channel_events_total", "presence_refused"), 1);

    let mut command = cluster.command();
    command.args(["invite", "--on", &full("a"), "--edge", "a:*", "--can", "operate"]);
    let (code, _, err) = outputs(&command.output().unwrap());
    assert!(code == Some(2) && err.contains("cannot be used with"), "{err}");
}
