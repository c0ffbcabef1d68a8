//! Text of clients and peers on an operator's terminal: shown, not obeyed, and one line a message.

use std::fs::File;

use bytes::Bytes;
use xpando_node::internals::proto::channel::envelope::Envelope;
use xpando_node::internals::proto::channel::{Json, Payload};
use xpando_node::internals::proto::printable::is_plain;
use xpando_node::internals::proto::replay::Position;

use crate::kit::{Cluster, Node, Terminal, linked, outputs, until};

/// Clears the screen, sets the title, forges a line of another node, and turns the rest around.
const HOSTILE: &str =
    "\u{1b}[2J\u{1b}]0;owned\u{7}x\r\nroom:1 b@127.0.0.1 forged\u{202e}\u{9b}1m\u{200b}";
const SHOWN: &str =
    r"\u{1b}[2J\u{1b}]0;owned\u{7}x\r\nroom:1 b@127.0.0.1 forged\u{202e}\u{9b}1m\u{200b}";

fn directory(node: &Node) -> String {
    node.data_dir.display().to_string()
}

/// A message as the gateway publishes it for a client.
fn of_a_client(event: &str, text: &str) -> Bytes {
    let json = Json::read(serde_json::to_vec(&serde_json::json!({ "body": text })).unwrap().into());
    let stamp = Position { epoch: 1, n: 1, tag: 1 };
    Envelope::encode(stamp, event, &Payload::Json(json.unwrap())).unwrap()
}

/// Whether a terminal showed plain lines and no more.
#[track_caller]
fn plain(written: &str) {
    for line in written.split("\r\n") {
        assert!(line.chars().all(is_plain), "{line:?}");
    }
}

#[test]
fn subscribe_escapes_on_a_terminal_and_is_raw_in_a_pipe() {
    let cluster = Cluster::new();
    let a = cluster.node("a").start();
    let at = directory(&a);
    let Some(terminal) = Terminal::run(&["subscribe", "*", "--data-dir", &at]) else { return };
    let raw = Terminal::run(&["subscribe", "*", "--raw", "--data-dir", &at]).unwrap();
    let json = Terminal::run(&["subscribe", "*", "--json", "--data-dir", &at]).unwrap();
    let mut pipe = cluster.command();
    pipe.args(["subscribe", "*", "--data-dir", &at]);
    let mut pipe = pipe.stdout(File::create(cluster.path("piped")).unwrap()).spawn().unwrap();
    let topic = "room:1\u{200b}";
    let publish = |payload: &[u8]| {
        until("three terminals and a pipe", || {
            let (code, out, err) = outputs(&a.run(&["publish", topic, "-"], payload));
            assert_eq!(code, Some(0), "{err}");
            if out.starts_with("to 4 ") { Ok(()) } else { Err(out) }
        });
    };
    publish(HOSTILE.as_bytes());
    publish(&of_a_client("shout\u{1b}[1m", "h\u{202e}i"));
    publish(b"\xff\xfe\x1b");

    let end = r"\xff\xfe\u{1b}";
    let written = terminal.until("the last message", |written| written.contains(end));
    plain(&written);
    let expected = [
        format!("room:1\\u{{200b}} a@127.0.0.1 {SHOWN}"),
        "room:1\\u{200b} a@127.0.0.1 shout\\u{1b}[1m {\"body\":\"h\\u{202e}i\"}".to_owned(),
        format!("room:1\\u{{200b}} a@127.0.0.1 {end}"),
    ];
    let lines: Vec<_> = written.split_terminator("\r\n").collect();
    assert!(lines.ends_with(&expected.each_ref().map(String::as_str)), "{lines:?}");

    let written = json.until("the last message", |written| written.contains("//4b"));
    plain(&written);
    let objects: Vec<serde_json::Value> =
        written.split_terminator("\r\n").map(|line| serde_json::from_str(line).unwrap()).collect();
    let client = objects.iter().find(|it| it["event"] == "shout\u{1b}[1m").unwrap();
    assert_eq!(client["payload"]["body"], "h\u{202e}i");
    assert!(objects.iter().any(|it| it["payload"] == HOSTILE), "{objects:?}");

    raw.until("the message as it is", |written| {
        written.contains(&HOSTILE.replace("\r\n", "\r\r\n"))
    });
    let printed = until("the last message in the pipe", || {
        let printed = std::fs::read(cluster.path("piped")).unwrap();
        if printed.ends_with(b"\xff\xfe\x1b\n") { Ok(printed) } else { Err(format!("{printed:?}")) }
    });
    assert!(printed.windows(HOSTILE.len()).any(|part| part == HOSTILE.as_bytes()));
    pipe.kill().unwrap();
    pipe.wait().unwrap();
}

#[test]
fn replies_profiles_and_errors_are_escaped_too() {
    let cluster = Cluster::new();
    let meta = "note=\u{202e}evil\u{feff}";
    let a = cluster.node("a").start();
    let b = cluster.node("b").join(a.listen()).arg("--meta").arg(meta).start();
    linked(&[&a, &b]);
    let at = directory(&a);
    let call = ["call", "xpando:echo@b@127.0.0.1", HOSTILE, "--data-dir", &at];
    let Some(mut terminal) = Terminal::run(&call) else { return };
    assert!(terminal.ended().success());
    let written = terminal.until("the reply", |written| written.ends_with('\n'));
    assert_eq!(written, format!("{SHOWN}\r\n"));
    assert_eq!(a.run(&["call", "xpando:echo", "-"], HOSTILE.as_bytes()).stdout, HOSTILE.as_bytes());

    let mut nodes = Terminal::run(&["nodes", "--data-dir", &at]).unwrap();
    assert!(nodes.ended().success());
    let written = nodes.until("the profile", |written| written.contains("note="));
    assert!(written.contains(r"note=\u{202e}evil\u{feff}"), "{written:?}");
    let json = cluster.print(&["nodes", "--json", "--data-dir", &at]);
    assert!(json.contains(r"\u202eevil\ufeff"), "{json}");
    let nodes: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(nodes[1]["metadata"]["note"], "\u{202e}evil\u{feff}");
}
