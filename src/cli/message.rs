//! `publish`, `subscribe` and `call`: messages from the command line, through a running node.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use serde_json::json;
use xpando_node::gateway::admin::{Answer, Line, Request};
use xpando_node::io::sockets;
use xpando_node::proto::outbox::MAX_MESSAGE;
use xpando_node::proto::topic::{Address, Pattern, Topic};

use super::query::{PATIENCE, Which};

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

    /// Print JSON, one object a line; a payload that is no text as `base64`
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct CallArgs {
    #[command(flatten)]
    which: Which,

    /// NAME, or NAME@NODE such as work@b@127.0.0.1
    to: Address,

    /// What is asked; `-` reads standard input
    payload: String,

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

/// Asks, and gives back the connection with the first line of the answer.
fn ask(
    directory: &Path,
    request: &Request,
    payload: &[u8],
    within: Duration,
) -> anyhow::Result<(BufReader<UnixStream>, Answer)> {
    let mut stream = sockets::connect(directory)?;
    stream.set_read_timeout(Some(within))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    stream.write_all(payload)?;
    let mut reader = BufReader::new(stream);
    let mut answer = String::new();
    reader.read_line(&mut answer).context("the node does not answer")?;
    let answer = serde_json::from_str(&answer)?;
    if let Answer::Error(error) = answer {
        bail!("{error}");
    }
    Ok((reader, answer))
}

pub(super) fn publish(args: &PublishArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let payload = payload(&args.payload)?;
    let (topic, bytes) = (args.topic.as_str().to_owned(), payload.len());
    let request = Request::Publish { topic, bytes };
    let (_, answer) = ask(&args.which.find()?, &request, &payload, PATIENCE)?;
    let Answer::Sent { local, peers, missed } = answer else {
        bail!("the node's answer is for another question")
    };
    writeln!(out, "to {local} subscribers here and {peers} other nodes")?;
    if missed > 0 {
        bail!("{missed} nodes take too little and missed it");
    }
    Ok(())
}

pub(super) fn call(args: &CallArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let payload = payload(&args.payload)?;
    let within = Duration::from_secs_f64(args.timeout);
    let reply = call_at(&args.which.find()?, &args.to, &payload, within)?;
    out.write_all(&reply)?;
    if super::on_terminal() && !reply.ends_with(b"\n") {
        writeln!(out)?;
    }
    Ok(())
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
    let (mut reader, answer) = ask(directory, &request, payload, within + PATIENCE)?;
    let Answer::Replied { bytes } = answer else {
        bail!("the node's answer is for another question")
    };
    let mut reply = vec![0; bytes];
    reader.read_exact(&mut reply)?;
    Ok(reply)
}

/// Follows until the node ends, which is a failure, or nobody reads any more.
pub(super) fn subscribe(args: &SubscribeArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let request = Request::Subscribe { pattern: args.pattern.to_string() };
    let (mut reader, answer) = ask(&args.which.find()?, &request, &[], PATIENCE)?;
    let Answer::Subscribed(node) = answer else {
        bail!("the node's answer is for another question")
    };
    if args.json {
        writeln!(out, "{}", json!({"subscribed": args.pattern.to_string(), "node": node}))?;
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
                if args.json {
                    let mut object = json!({"topic": topic.as_str(), "from": from});
                    let (key, text) = match String::from_utf8(payload) {
                        Ok(text) => ("payload", text),
                        Err(error) => ("base64", STANDARD.encode(error.as_bytes())),
                    };
                    object[key] = text.into();
                    writeln!(out, "{object}")?;
                } else {
                    write!(out, "{topic} {from} ")?;
                    out.write_all(&payload)?;
                    writeln!(out)?;
                }
            }
            Line::Missed(missed) if args.json => writeln!(out, "{}", json!({"missed": missed}))?,
            Line::Missed(missed) => {
                writeln!(std::io::stderr(), "{missed} messages came faster than they were read")?;
            }
        }
        out.flush()?;
    }
}
