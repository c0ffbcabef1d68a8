//! The HTTP API as programs meet it: its views, its rights, and what it makes of bad requests.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::kit::http::{head, token};
use crate::kit::{Cluster, Node, linked, outputs, skip, three, until};
use crate::phoenix::passes;

/// The numbers of the events that a page has.
fn numbers(page: &Value) -> Vec<u64> {
    page["events"].as_array().unwrap().iter().map(|it| it["seq"].as_u64().unwrap()).collect()
}

#[test]
fn the_api_shows_what_any_node_sees() {
    let cluster = Cluster::new();
    let [a, b, c] = three(&cluster);
    let token = token(&cluster, "node_operator");
    assert_eq!(a.gets("/api/status", &token).json()["name"], a.name);
    let nodes = a.gets("/api/nodes", &token).json();
    let names: Vec<_> = nodes["nodes"].as_array().unwrap().iter().map(|it| &it["name"]).collect();
    assert_eq!(names, [&a.name, &b.name, &c.name]);
    let (_, shown, _) = outputs(&a.run(&["nodes", "--json"], &[]));
    let shown: Vec<Value> = serde_json::from_str(&shown).unwrap();
    for (shown, served) in shown.iter().zip(nodes["nodes"].as_array().unwrap()) {
        let [shown, served] = [shown, served].map(|row| row.as_object().unwrap());
        assert!(shown.keys().eq(served.keys()), "{shown:?} {served:?}");
        let same = ["name", "status", "id", "incarnation", "addresses", "first_seen"];
        assert!(same.iter().all(|key| shown[*key] == served[*key]), "{shown:?} {served:?}");
    }
    assert_eq!(shown.len(), 3);
    let seen = a.gets(&format!("/api/topology?seen_by={}", b.name), &token).json();
    assert_eq!(
        (&seen["as_seen_by"], &a.gets("/api/topology", &token).json()["as_seen_by"]),
        (&Value::from(b.name.clone()), &Value::from(a.name.clone()),)
    );
    assert_eq!(seen["links"].as_array().unwrap().len(), 6);
    assert_eq!(a.gets(&format!("/api/status?seen_by={}", c.name), &token).json()["name"], c.name);

    // A peer that is known and does not answer.
    let gone = c.name.clone();
    c.kill();
    a.sees(&gone, "offline");
    a.gets(&format!("/api/status?seen_by={gone}"), &token).problem(502);
    a.gets("/api/status?seen_by=x@127.0.0.1", &token).problem(404);
}

#[test]
fn events_come_a_page_at_a_time_and_as_they_happen() {
    let cluster = Cluster::new();
    let [a, b, c] = three(&cluster);
    let token = token(&cluster, "node_operator");
    let all = numbers(&a.gets("/api/events?after=0&limit=1000", &token).json());
    assert!(
        all.len() > 4 && all.iter().zip(1..).all(|(seq, expected)| *seq == expected),
        "{all:?}"
    );
    let (mut seen, mut after) = (Vec::new(), 0);
    while seen.len() < all.len() {
        let page = a.gets(&format!("/api/events?after={after}&limit=3"), &token).json();
        after = page["next"].as_u64().unwrap();
        seen.extend(numbers(&page));
    }
    assert_eq!(seen[..all.len()], all);
    let path = format!("/api/events?type=peer_online&node={}", b.name);
    let found = a.gets(&path, &token).json();
    let found = found["events"].as_array().unwrap();
    assert!(!found.is_empty());
    assert!(
        found.iter().all(|it| it["event"] == "peer_online" && it["peer"] == b.name),
        "{found:?}"
    );

    let bearer = format!("Bearer {token}");
    let headers = [
        ("Authorization", bearer.as_str()),
        ("Accept", "text/event-stream"),
        ("Last-Event-ID", "1"),
    ];
    let mut stream = a.request("GET /api/events?type=peer_offline", &headers);
    assert_eq!(head(&mut stream).status, 200);
    let gone = c.name.clone();
    c.kill();
    let event = data(&mut stream, |it| it["peer"] == gone);
    assert_eq!(event["event"], "peer_offline", "{event}");
    let later = numbers(&a.gets("/api/events?limit=1000", &token).json());
    assert!(later.contains(&event["seq"].as_u64().unwrap()), "{event} {later:?}");
}

#[test]
fn a_stream_of_events_ends_with_its_token() {
    let cluster = Cluster::new();
    let a = cluster.node("a").start();
    let make = |ttl: &str| {
        let line = ["token", "create", "--sub", "op", "--role", "admin", "--ttl", ttl];
        cluster.print(&[&line[..], &["--certs", "certs"]].concat()).trim().to_owned()
    };
    let open = |token: &str| {
        let bearer = format!("Bearer {token}");
        let headers = [("Authorization", bearer.as_str()), ("Accept", "text/event-stream")];
        let mut stream = a.request("GET /api/events?after=0", &headers);
        assert_eq!(head(&mut stream).status, 200);
        stream
    };
    let rest = |stream: BufReader<TcpStream>| {
        stream.lines().map(Result::unwrap).filter(|it| it.starts_with(": ")).collect::<Vec<_>>()
    };
    let [lasting, other] = ["1h", "2h"].map(make);
    let (lasting, revoked) = (open(&lasting), open(&other));
    assert_eq!(rest(open(&make("2s"))), [": token expired"]);
    cluster.print(&["token", "revoke", &other, "--certs", "certs"]);
    assert_eq!(rest(revoked), [": token revoked"]);
    lasting.get_ref().set_nonblocking(true).unwrap();
    let still = lasting.lines().find_map(Result::err).map(|it| it.kind());
    assert_eq!(still, Some(std::io::ErrorKind::WouldBlock), "the other token counts");
}

/// The next event of a stream that is wanted.
fn data(stream: &mut BufReader<TcpStream>, wanted: impl Fn(&Value) -> bool) -> Value {
    let lines = stream.lines().map(Result::unwrap);
    let events = lines.filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok());
    { events }.find(wanted).unwrap()
}

#[test]
fn who_may_read_and_who_may_change() {
    let cluster = Cluster::new();
    let [a, b, _c] = three(&cluster);
    for path in ["/api/status", "/api/nodes", "/api/topology", "/api/events", "/metrics"] {
        let none = a.asks(&format!("GET {path}"), &[]);
        assert_eq!(none.header("www-authenticate"), Some("bearer"), "{none:?}");
        none.problem(401);
        a.asks(&format!("GET {path}"), &[("Authorization", "Basic eDp5")]).problem(401);
        a.gets(path, &token(&cluster, "user")).problem(403);
        assert_eq!(a.gets(path, &token(&cluster, "node_operator")).status, 200);
        let foreign = token(&cluster.beside(), "admin");
        a.gets(path, &foreign).problem(401);
        let origin = [("Origin", "http://evil.example")];
        a.asks(&format!("GET {path}"), &origin).problem(403);
    }
    for path in ["/health/live", "/health/ready", "/api/openapi.json"] {
        assert_eq!(a.asks(&format!("GET {path}"), &[]).status, 200);
    }

    let (operator, admin) = (token(&cluster, "node_operator"), token(&cluster, "admin"));
    let (operator, admin) = (format!("Bearer {operator}"), format!("Bearer {admin}"));
    let end = format!("POST /api/nodes/{}/disconnect", b.name);
    for change in [end.as_str(), "POST /api/drain"] {
        a.asks(change, &[]).problem(401);
        a.asks(change, &[("Authorization", &operator)]).problem(403);
    }
    a.asks("POST /api/nodes/x@127.0.0.1/disconnect", &[("Authorization", &admin)]).problem(404);
    let before = a.total("xpando_peer_losses_total");
    assert_eq!(a.asks(&end, &[("Authorization", &admin)]).status, 202);
    a.counts("xpando_peer_losses_total", "disconnected", before);
    linked(&[&a, &b]); // it is dialed again

    assert_eq!(a.asks("POST /api/drain", &[("Authorization", &admin)]).status, 202);
    let ready = a.asks("GET /health/ready", &[]);
    assert_eq!(
        (ready.problem(503).as_str(), &ready.json()["checks"]["clients"]),
        ("not ready: clients", &Value::Bool(false),)
    );
    let upgrade = [
        ("Connection", "upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAA=="),
    ];
    let socket = "GET /socket/websocket?vsn=2.0.0";
    for refused in [socket, "GET /socket/longpoll?vsn=2.0.0"] {
        let refused = head(&mut a.request(refused, &upgrade));
        assert_eq!((refused.status, refused.header("retry-after")), (503, Some("10")));
    }
    assert_eq!(head(&mut b.request(socket, &upgrade)).status, 101);

    assert_eq!(a.asks("DELETE /api/drain", &[("Authorization", &operator)]).status, 403);
    assert_eq!(a.asks("DELETE /api/drain", &[("Authorization", &admin)]).status, 202);
    assert_eq!(head(&mut a.request(socket, &upgrade)).status, 101);
    assert_eq!(a.asks("GET /health/ready", &[]).status, 200);
}

#[test]
fn a_node_is_ready_with_as_many_peers_as_it_was_told() {
    let cluster = Cluster::new();
    let a = cluster.node("a").arg("--min-peers").arg("1").start();
    let ready = a.asks("GET /health/ready", &[]);
    assert_eq!(ready.problem(503), "not ready: peers");
    let b = cluster.node("b").join(a.listen()).start();
    linked(&[&a, &b]);
    assert_eq!(a.asks("GET /health/ready", &[]).status, 200);
}

#[test]
fn bad_requests_end_in_problem_details_and_nothing_else() {
    let cluster = Cluster::new();
    let a = cluster.node("a").arg("--allow-anonymous").arg("network:updates").start();
    for path in ["/nope", "/api", "/api/", "/api/status/", "/api/../etc/passwd", "/%00"] {
        a.asks(&format!("GET {path}"), &[]).problem(404);
    }
    for what in ["DELETE /api/status", "PUT /metrics", "GET /api/drain", "TRACE /health/live"] {
        let answer = a.asks(what, &[]);
        assert!(answer.header("allow").is_some(), "{answer:?}");
        answer.problem(405);
    }
    for path in [
        "/api/status?x=1",
        "/api/status?seen_by=",
        "/api/status?seen_by=a@127.0.0.1&seen_by=a@127.0.0.1",
        "/api/events?after=-1",
        "/api/events?after=99999999999999999999",
        "/api/events?limit=0",
        "/api/events?limit=1001",
        "/api/events?type=party",
        "/api/events?node=%ff",
        "/metrics?x",
        "/health/live?x=1",
    ] {
        a.asks(&format!("GET {path}"), &[]).problem(400);
    }
    a.asks("GET /api/events", &[("Accept", "text/event-stream"), ("Last-Event-ID", "x")])
        .problem(400);
    let long = format!("GET /api/status?x={}", "x".repeat(100_000));
    let refused = a.asks(&long, &[]).status;
    assert!([414, 431].contains(&refused), "{refused}");
    assert_eq!(a.gets("/api/status", "not.a.token").status, 401);
    assert_eq!(a.asks("GET /api/status", &[]).status, 200, "no token is needed here");
    assert_eq!(a.asks("HEAD /api/status", &[]).body, "");
}

#[test]
fn readers_of_events_that_do_not_read_keep_others_out_and_nobody_else() {
    const STREAMS: usize = 64;
    let cluster = Cluster::new();
    let a = cluster.node("a").arg("--allow-anonymous").arg("network:updates").start();
    let open = || {
        let mut stream = a.request("GET /api/events", &[("Accept", "text/event-stream")]);
        (head(&mut stream).status, stream)
    };
    let mut readers: Vec<_> = (0..STREAMS).map(|_| open()).collect();
    assert!(readers.iter().all(|(status, _)| *status == 200));
    assert_eq!(open().0, 503);
    assert_eq!(a.asks("GET /api/events", &[]).status, 200, "a page can be had all the same");
    readers.pop();
    until("a place is free again", || match open().0 {
        200 => Ok(()),
        status => Err(status.to_string()),
    });
}

/// Two nodes whose API everybody may read.
fn open(cluster: &Cluster) -> [Node; 2] {
    let open = |name: &str| cluster.node(name).arg("--allow-anonymous").arg("network:updates");
    let a = open("a").start();
    let b = open("b").join(a.listen()).start();
    linked(&[&a, &b]);
    [a, b]
}

/// The names of all metrics that a node has, and of those that it may come to have.
fn names(node: &Node) -> BTreeSet<String> {
    let text = node.asks("GET /metrics", &[]).body;
    let told = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let told = told.filter_map(|line| line.split(' ').next()).map(str::to_owned);
    told.chain(xpando_node::internals::io::metrics::names()).collect()
}

#[test]
fn what_deploy_asks_for_is_there() {
    let cluster = Cluster::new();
    let [a, b] = open(&cluster);
    a.sees_as(&b.name, "online", |row| row["rtt_ms"].is_number());
    let known = names(&a);
    for file in ["alerts.yml", "grafana.json"] {
        let path = format!("{}/deploy/{file}", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(path).unwrap();
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        let asked: BTreeSet<&str> = words
            .filter(|word| word.starts_with("xpando_") || word.starts_with("process_"))
            .collect();
        assert!(asked.len() >= 5, "{file}: {asked:?}");
        let unknown: Vec<_> = asked
            .into_iter()
            .filter(|name| {
                let base =
                    ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
                *name != "xpando_node" && !known.contains(base.unwrap_or(name))
            })
            .collect();
        assert!(unknown.is_empty(), "{file}: {unknown:?} of {known:?}");
    }
}

#[test]
fn promtool_finds_nothing_to_say() {
    let cluster = Cluster::new();
    let [a, _b] = open(&cluster);
    let check = |args: &[&str], input: &str| {
        let mut tool = Command::new("promtool");
        let tool =
            tool.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut tool = tool.spawn().ok()?;
        tool.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = tool.wait_with_output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        Some((output.status.success(), String::from_utf8(said).unwrap()))
    };
    let metrics = a.asks("GET /metrics", &[]);
    assert_eq!(metrics.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let Some(found) = check(&["check", "metrics"], &metrics.body) else {
        return skip("promtool", "it is not installed");
    };
    assert_eq!(found, (true, String::new()), "{}", metrics.body);
    let rules = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/alerts.yml");
    let (sound, said) = check(&["check", "rules", rules], "").unwrap();
    assert!(sound, "{said}");
    let prometheus = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/prometheus.yml");
    let (sound, said) = check(&["check", "config", "--syntax-only", prometheus], "").unwrap();
    assert!(sound, "{said}");
    // What fires after a scale-down, a crash, an operator's revocation, a lost majority, and a dead node.
    let tests = cluster.path("alerts.test.yml");
    std::fs::write(&tests, ALERTS.replace("RULES", rules)).unwrap();
    let (sound, said) = check(&["test", "rules", &tests.display().to_string()], "").unwrap();
    assert!(sound, "{said}");
}

/// Which instances fire which alert, as promtool is asked.
const ALERTS: &str = r#"
rule_files: [RULES]
evaluation_interval: 15s
tests:
  - interval: 15s
    input_series:
      - { series: 'xpando_peers{instance="scaled_down",status="offline",reason="left"}', values: '3x20' }
      - { series: 'xpando_peers{instance="scaled_down",status="offline",reason="crashed"}', values: '0x20' }
      - { series: 'xpando_peers{instance="revoked",status="offline",reason="revoked"}', values: '1x20' }
      - { series: 'xpando_peers{instance="lost",status="offline",reason="left"}', values: '1x20' }
      - { series: 'xpando_peers{instance="lost",status="offline",reason="crashed"}', values: '1x20' }
      - { series: 'xpando_peers{instance="lost",status="offline",reason="unreachable"}', values: '1x20' }
      - { series: 'xpando_majority_held{instance="lost"}', values: '0x20' }
      - { series: 'xpando_majority_held{instance="scaled_down"}', values: '1x20' }
      - { series: 'xpando_store_degraded{instance="full"}', values: '1x20' }
      - { series: 'up{job="xpando",instance="dead"}', values: '0x20' }
      - { series: 'up{job="xpando",instance="lost"}', values: '1x20' }
    promql_expr_test:
      - expr: count by (alertname, instance) (ALERTS{alertstate="firing"})
        eval_time: 4m
        exp_samples:
          - { labels: '{alertname="XpandoPeerOffline",instance="lost"}', value: 1 }
          - { labels: '{alertname="XpandoMajorityLost",instance="lost"}', value: 1 }
          - { labels: '{alertname="XpandoStoreDegraded",instance="full"}', value: 1 }
          - { labels: '{alertname="XpandoNodeDown",instance="dead"}', value: 1 }
"#;

#[test]
fn the_document_is_what_the_node_does() {
    let cluster = Cluster::new();
    let [a, _b, _c] = three(&cluster);
    // A node that is drained is not ready, as it should be.
    for (role, more) in [("node_operator", &[][..]), ("admin", &["--exclude-path", "/api/drain"])] {
        let mut fuzz = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/fuzz-api"));
        fuzz.arg(format!("http://{}", a.http())).args(["--max-examples", "30"]).args(more);
        if passes("fuzz-api", fuzz.env("XPANDO_TOKEN", token(&cluster, role))).is_none() {
            return;
        }
    }
    assert_eq!(a.status().unwrap()["name"], a.name, "the node is well");
}

#[test]
fn an_operator_does_the_same_on_the_command_line() {
    let cluster = Cluster::new();
    let [a, b, _c] = three(&cluster);
    let print = |args: &[&str]| {
        let output = a.run(args, &[]);
        let said = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        assert!(output.status.success(), "{args:?}: {}", said(output.stderr));
        said(output.stdout)
    };
    let before = a.total("xpando_peer_losses_total");
    print(&["disconnect", &b.name]);
    a.counts("xpando_peer_losses_total", "disconnected", before);
    linked(&[&a, &b]);
    let lines = print(&["events", "--type", "peer_offline", "--node", &b.name, "--json"]);
    let last: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    assert_eq!((&last["peer"], &last["reason"]), (&b.name.clone().into(), &"disconnected".into()));
    assert!(
        print(&["events", "-n", "1000"]).contains(&format!("{} offline (disconnected)", b.name))
    );

    let unknown = a.run(&["disconnect", "x@127.0.0.1"], &[]);
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("no node x@127.0.0.1 is known"));
    assert_eq!(unknown.status.code(), Some(1));
    assert_eq!(a.run(&["events", "--type", "party"], &[]).status.code(), Some(2));
    print(&["drain"]);
    assert_eq!(a.asks("GET /health/ready", &[]).problem(503), "not ready: clients");
    let status = print(&["status"]);
    assert!(status.contains("draining") && status.contains("drain --undo"), "{status}");
    assert!(status.contains(&format!("clients over HTTP on {}", a.http())), "{status}");
    assert!(print(&["drain", "--undo"]).contains("takes clients again"));
    assert_eq!(a.asks("GET /health/ready", &[]).status, 200);
    assert!(!print(&["status"]).contains("draining"));
}

#[test]
fn a_node_whose_store_was_damaged_says_so_until_it_is_restarted() {
    let cluster = Cluster::new();
    let open = || cluster.node("a").arg("--allow-anonymous").arg("network:updates").start();
    let a = open();
    let (file, ready) = (a.data_dir.join("node.redb"), a.asks("GET /health/ready", &[]).json());
    assert_eq!(ready["degraded"], false);
    assert_eq!(a.terminate(), Some(0));
    let length = std::fs::metadata(&file).unwrap().len();
    std::fs::write(&file, vec![0; usize::try_from(length).unwrap()]).unwrap();

    let a = open();
    let status = a.status().unwrap();
    assert!(status["degraded"].as_str().unwrap().contains("node.redb.damaged-"), "{status}");
    let ready = a.asks("GET /health/ready", &[]);
    assert_eq!((ready.status, &ready.json()["degraded"]), (200, &Value::Bool(true)));
    let metrics = a.asks("GET /metrics", &[]).body;
    assert!(metrics.lines().any(|line| line == "xpando_store_degraded 1.0"), "{metrics}");
    assert_eq!(a.terminate(), Some(0));
    assert_eq!(open().status().unwrap()["degraded"], Value::Null);
}

/// A change that the document has and this list has not fails.
#[test]
fn each_change_over_the_api_is_in_the_trail_with_its_operator() {
    let cluster = Cluster::new();
    let a = cluster.node("a").start();
    let b = cluster.node("b").join(a.listen()).start();
    linked(&[&a, &b]);
    let deeds = [
        ("POST /api/nodes/{node}/disconnect", "disconnect"),
        ("POST /api/nodes/{node}/forget", "forget"),
        ("DELETE /api/nodes/{node}/forget", "restore"),
        ("POST /api/drain", "drain"),
        ("DELETE /api/drain", "undrain"),
    ];
    let document = a.asks("GET /api/openapi.json", &[]).json();
    let paths = document["paths"].as_object().unwrap().iter();
    let changes = paths.flat_map(|(path, methods)| {
        let methods = methods.as_object().unwrap().keys().map(|method| method.to_uppercase());
        methods.filter(|it| it != "GET" && it != "PARAMETERS").map(move |it| format!("{it} {path}"))
    });
    let changes: BTreeSet<String> = changes.collect();
    assert_eq!(changes, deeds.iter().map(|(change, _)| (*change).to_owned()).collect());

    let admin = format!("Bearer {}", token(&cluster, "admin"));
    let name = b.name.clone();
    let mut b = Some(b);
    for (change, _) in deeds {
        let change = change.replace("{node}", &name);
        until(&change, || {
            let answer = a.asks(&change, &[("Authorization", &admin)]);
            if answer.status == 202 { Ok(()) } else { Err(format!("{answer:?}")) }
        });
        if let Some(b) = b.take() {
            b.kill();
            a.sees(&name, "offline");
        }
    }
    let acted = || a.events(&["--type", "operator_acted"]);
    let acted = until("what was done", || {
        let acted = acted();
        if acted.len() == deeds.len() { Ok(acted) } else { Err(format!("{acted:?}")) }
    });
    for (event, (change, deed)) in acted.iter().zip(deeds) {
        let about = change.contains("{node}").then_some(name.as_str());
        assert_eq!(
            (event["deed"].as_str(), event["peer"].as_str()),
            (Some(deed), about),
            "{event}"
        );
        assert_eq!(
            (&event["operator"], &event["via"]),
            (&"token:test".into(), &"127.0.0.1".into())
        );
    }
    assert_eq!(a.events(&["--type", "operator_acted", "--node", &name]).len(), 3, "about b");
}
