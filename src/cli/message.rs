//! `publish`, `subscribe` and `call`: messages from the command line, through a running node.

use std::fmt;
use std::io::{BufRead, ErrorKind, Read, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::bail;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use clap::Args;
use serde_json::{Value, json};
use xpando_node::internals::gateway::admin::{Line, Request, Sent};
use xpando_node::internals::proto::channel::Payload;
use xpando_node::internals::proto::channel::envelope::Envelope;
use xpando_node::internals::proto::node::NodeName;
use xpando_node::internals::proto::outbox::MAX_MESSAGE;
use xpando_node::internals::proto::printable;
use xpando_node::internals::proto::topic::{Address, Pattern, Topic};

use super::ask::{PATIENCE, Which, open};
use super::output::{self, is_terminal, write_line};

#[derive(Debug, Args)]
pub(super) struct PublishArgs {
    #[command(flatten)]
    which: Which,

    /// On what topic
    topic: Topic,

    /// What is said; `-` reads standard input
    payload: String,
}

#[derive(Debug, Args)]
pub(super) struct SubscribeArgs {
    #[command(flatten)]
    which: Which,

    /// A topic, or all topics below one: `room:42`, `room:*`, `*`
    pattern: Pattern,

    /// Print JSON, one object a line: `payload` is text, or JSON where there is an `event`; `base64` is what is neither
    #[arg(long)]
    json: bool,

    /// Print payloads as they are on a terminal too, where they may do anything
    #[arg(long, conflicts_with = "json")]
    raw: bool,
}

#[derive(Debug, Args)]
pub(super) struct CallArgs {
    #[command(flatten)]
    which: Which,

    /// NAME, or NAME@NODE such as work@b@127.0.0.1
    to: Address,

    /// What is asked; `-` reads standard input
    payload: String,

    /// Print the reply as it is on a terminal too, where it may do anything
    #[arg(long)]
    raw: bool,

    /// How long to wait for the reply, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0, value_parser = seconds)]
    timeout: f64,
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_text| format!("{text:?} is no number"))?;
    if (0.001..=86_400.0).contains(&seconds) {
        Ok(seconds)
    } else {
        Err("between 0.001 and 86400 seconds".to_owned())
    }
}

fn payload(given: &str) -> anyhow::Result<Vec<u8>> {
    if given != "-" {
        return Ok(given.as_bytes().to_vec());
    }
    let mut payload = Vec::new();
    std::io::stdin().lock().take(MAX_MESSAGE as u64 + 1).read_to_end(&mut payload)?;
    if payload.len() > MAX_MESSAGE {
        bail!("standard input holds more than 16 MiB");
    }
    Ok(payload)
}

pub(super) fn publish(args: &PublishArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let payload = payload(&args.payload)?;
    let (topic, bytes) = (args.topic.as_str().to_owned(), payload.len());
    let request = Request::Publish { topic, bytes };
    let (_, sent) = open(&args.which.find()?, &request, &payload, PATIENCE)?;
    let Sent { local, peers, missed } = sent;
    write_line!(out, "to {local} subscribers here and {peers} other nodes")?;
    if missed > 0 {
        bail!("{missed} nodes take too little and missed it");
    }
    Ok(())
}

pub(super) fn call(args: &CallArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let payload = payload(&args.payload)?;
    let within = Duration::from_secs_f64(args.timeout);
    let reply = call_at(&args.which.find()?, &args.to, &payload, within)?;
    if args.raw || !is_terminal() {
        return Ok(out.write_all(&reply)?);
    }
    Ok(write_line!(out, "{}", printable::Bytes(&reply))?)
}

/// Makes a request through the node in this directory.
pub(super) fn call_at(
    directory: &Path,
    to: &Address,
    payload: &[u8],
    within: Duration,
) -> anyhow::Result<Vec<u8>> {
    let request = Request::Call {
        to: to.to_string(),
        within: u64::try_from(within.as_millis())?.max(1),
        bytes: payload.len(),
    };
    let (mut reader, bytes) = open(directory, &request, payload, within + PATIENCE)?;
    let mut reply = vec![0; bytes];
    reader.read_exact(&mut reply)?;
    Ok(reply)
}

/// Follows until the node ends, which is a failure, or nobody reads any more.
pub(super) fn subscribe(args: &SubscribeArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let request = Request::Subscribe { pattern: args.pattern.to_string() };
    let (mut reader, node): (_, NodeName) = open(&args.which.find()?, &request, &[], PATIENCE)?;
    if args.json {
        output::json(out, &json!({"subscribed": args.pattern.to_string(), "node": node}))?;
        out.flush()?;
    }
    reader.get_ref().set_read_timeout(None)?;
    loop {
        let mut line = String::new();
        match reader.read_line(&mut line) {
            Ok(1..) => {}
            Ok(0) => bail!("{node} has ended"),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => bail!("{node} has ended"),
            Err(error) => return Err(error.into()),
        }
        match serde_json::from_str(&line)? {
            Line::Message { topic, from, bytes } => {
                let mut payload = vec![0; bytes];
                reader.read_exact(&mut payload)?;
                let message = Shown::new(topic, from, payload.into());
                match (args.json, args.raw || !is_terminal()) {
                    (true, _) => output::json(out, &message.json())?,
                    (false, true) => message.print_raw(out)?,
                    (false, false) => write_line!(out, "{message}")?,
                }
            }
            Line::Missed(missed) if args.json => output::json(out, &json!({"missed": missed}))?,
            Line::Missed(missed) => {
                output::notice(format_args!("{missed} messages came faster than they were read"));
            }
        }
        out.flush()?;
    }
}

/// A message as it is shown: with its event when it is of a channel.
struct Shown {
    topic: Topic,
    from: NodeName,
    event: Option<String>,
    payload: Payload,
}

impl Shown {
    fn new(topic: Topic, from: NodeName, published: Bytes) -> Self {
        let channel = Envelope::decode(&published).filter(|it| it.stamp.is_some());
        match channel {
            Some(Envelope { event, payload, .. }) => {
                Self { topic, from, event: Some(event), payload }
            }
            None => Self { topic, from, event: None, payload: Payload::Binary(published) },
        }
    }

    fn payload(&self) -> &[u8] {
        match &self.payload {
            Payload::Json(json) => json.as_bytes(),
            Payload::Binary(bytes) => bytes,
        }
    }

    /// What stands before the payload.
    fn head(&self) -> String {
        let event = self.event.as_ref().map(|event| format!("{event} ")).unwrap_or_default();
        format!("{} {} {event}", self.topic, self.from)
    }

    fn print_raw(&self, out: &mut dyn Write) -> std::io::Result<()> {
        out.write_all(self.head().as_bytes())?;
        out.write_all(self.payload())?;
        out.write_all(b"\n")
    }

    fn json(&self) -> Value {
        let mut object = json!({"topic": self.topic.as_str(), "from": self.from});
        if let Some(event) = &self.event {
            object["event"] = event.as_str().into();
        }
        let text = std::str::from_utf8(self.payload());
        let (key, payload) = match (&self.payload, text) {
            (Payload::Json(_), Ok(text)) => {
                ("payload", serde_json::from_str(text).unwrap_or_default())
            }
            (Payload::Binary(_), Ok(text)) if self.event.is_none() => ("payload", text.into()),
            (_, _) => ("base64", STANDARD.encode(self.payload()).into()),
        };
        object[key] = payload;
        object
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.head(), printable::Bytes(self.payload()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use xpando_node::internals::proto::channel::Json;
    use xpando_node::internals::proto::printable::Printable;
    use xpando_node::internals::proto::replay::Position;

    fn shown(published: Bytes) -> Shown {
        Shown::new("room:1".parse().unwrap(), "a@h".parse().unwrap(), published)
    }

    fn raw(message: &Shown) -> Vec<u8> {
        let mut out = Vec::new();
        message.print_raw(&mut out).unwrap();
        out
    }

    #[test]
    fn a_message_of_a_channel_is_its_event_and_its_payload() {
        let json = |text: &'static str| {
            Payload::Json(Json::read(Bytes::from_static(text.as_bytes())).unwrap())
        };
        let stamp = Position { epoch: 7, n: 9, tag: 11 };
        let envelope = |event, payload| Envelope::encode(stamp, event, &payload).unwrap();
        let message = shown(envelope("shout\u{1b}[1m", json("{\"body\":\"h\u{202e}i\"}")));
        assert_eq!(
            message.json(),
            json!({"topic": "room:1", "from": "a@h", "event": "shout\u{1b}[1m", "payload": {"body": "h\u{202e}i"}})
        );
        let line = Printable(&message).to_string();
        assert_eq!(line, r#"room:1 a@h shout\u{1b}[1m {"body":"h\u{202e}i"}"#);
        assert_eq!(
            raw(&message),
            "room:1 a@h shout\u{1b}[1m {\"body\":\"h\u{202e}i\"}\n".as_bytes()
        );

        let binary = shown(envelope("file", Payload::Binary(Bytes::from_static(b"text"))));
        assert_eq!(binary.json()["base64"], "dGV4dA==");
        assert_eq!(binary.to_string(), "room:1 a@h file text");
    }

    #[test]
    fn a_plain_message_is_its_payload() {
        let text = shown(Bytes::from_static(b"one\nroom:1 b@h two"));
        assert_eq!(text.json()["payload"], "one\nroom:1 b@h two");
        assert_eq!(Printable(&text).to_string(), "room:1 a@h one\\nroom:1 b@h two");
        let bytes = shown(Bytes::from_static(b"\xC1\x01\xff"));
        assert_eq!(bytes.json(), json!({"topic": "room:1", "from": "a@h", "base64": "wQH/"}));
        assert_eq!(bytes.to_string(), "room:1 a@h \\xc1\\u{1}\\xff");
        assert_eq!(raw(&bytes), b"room:1 a@h \xC1\x01\xff\n");
    }
}
