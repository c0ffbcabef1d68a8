//! What history on disk costs: the rate of one client that publishes on a topic that is kept on disk, beside one in memory,
//! in turns; and joins that ask for the last messages once all are there: in memory, and on disk.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use xpando_node::internals::actors::timer::now;
use xpando_node::internals::io::usage::usage;

use super::super::ask::status_of;
use super::channels::load::{Reader, Writer, connect, contains, join};
use super::channels::quantiles;
use super::mesh::Mesh;

/// Turns of each topic.
const TURNS: u64 = 10;
/// Messages that the publisher has under way.
const AHEAD: u64 = 6400;
/// Joins that are timed.
const JOINS: usize = 200;
/// Messages that each of them gets.
const BACK: u64 = 1000;
/// More than a topic on disk has in memory, when so many came besides.
const BEYOND: u64 = 100;
const MIB: f64 = (1 << 20) as f64;

/// `bench history`.
pub(super) fn run(messages: u64, out: &mut dyn Write) -> anyhow::Result<()> {
    let rule = format!("room:disk={messages},7d,disk");
    let args = ["--history", &rule, "--history-size", "4096"].map(str::to_owned);
    let mesh = Mesh::with(1, args.to_vec())?;
    mesh.full()?;
    let [node] = &mesh.nodes[..] else { bail!("one node") };
    let directory = mesh.data_dir(node);
    let to = status_of(&directory)?.http.context("the node serves no clients")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut memory = Publisher::join(to, "room:memory").await?;
        let mut kept = Publisher::join(to, "room:disk").await?;
        let (mut took, mut spent) = ([Duration::ZERO; 2], [Duration::ZERO; 2]);
        let of = |total: u64| total.div_ceil(TURNS);
        let mut sent = 0;
        while sent < messages {
            let turn = of(messages).min(messages - sent);
            for (at, publisher) in [&mut memory, &mut kept].into_iter().enumerate() {
                let (begin, before) = (now(), usage(Some(node.pid()))?.processor);
                publisher.publish(turn).await?;
                took[at] += now() - begin;
                spent[at] += usage(Some(node.pid()))?.processor - before;
            }
            sent += turn;
        }
        let rates = took.map(|took| sent as f64 / took.as_secs_f64());
        let [memory, disk] = rates;
        let each = spent.map(|spent| spent.as_secs_f64() / sent as f64 * 1e6);
        writeln!(
            out,
            "publish {sent}     {disk:.0} /s on disk   {:.2} x in memory ({memory:.0} /s)   CPU of the node a message {:.2} µs, {:.2} µs in memory",
            disk / memory, each[1], each[0]
        )?;
        // Until the last batch is written.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let length = fs::metadata(directory.join("history.redb"))?.len() as f64;
        writeln!(out, "on disk            {:.1} MiB, {:.0} B a message", length / MIB, length / sent as f64)?;
        let newest = format!(r#"{{"history":{BACK}}}"#);
        report(to, &newest, BACK, "the newest, from memory", out).await?;
        // One more than a topic has in memory, and a few.
        let cursor = stands(to, "room:disk").await?;
        kept.publish(BACK + BEYOND).await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let older = format!(r#"{{"last_seq":"{cursor}"}}"#);
        report(to, &older, BACK + BEYOND, "since a last_seq, from disk", out).await?;
        Ok(())
    })
}

struct Publisher {
    reader: Reader,
    writer: Writer,
    topic: String,
    number: u64,
}

impl Publisher {
    async fn join(to: SocketAddr, topic: &str) -> anyhow::Result<Self> {
        let (reader, writer) = join(to, topic).await?;
        Ok(Self { reader, writer, topic: topic.to_owned(), number: 0 })
    }

    /// Publishes so many, and sees them come back.
    async fn publish(&mut self, messages: u64) -> anyhow::Result<()> {
        let (mut sent, mut back) = (0, 0);
        while back < messages {
            let room = (AHEAD - (sent - back)).min(messages - sent);
            if room >= AHEAD / 2 || sent + room == messages {
                for _ in 0..room {
                    self.number += 1;
                    let frame = format!(
                        r#"["1","2","{}","msg",{{"n":{},"pad":"0123456789abcdef0123456789abcdef"}}]"#,
                        self.topic, self.number
                    );
                    self.writer.send(&frame).await?;
                }
                sent += room;
            }
            // Its own, not the replies.
            let show = |frame: &[u8]| back += u64::from(is_message(frame));
            self.reader.frames(show).await?;
        }
        Ok(())
    }
}

fn is_message(frame: &[u8]) -> bool {
    contains(frame.get(..80).unwrap_or(frame), br#","msg",{"#)
}

/// Joins with these parameters, until each has so many messages of the past.
async fn report(
    to: SocketAddr,
    params: &str,
    back: u64,
    what: &str,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let mut times = Vec::new();
    for _ in 0..JOINS {
        times.push(joined(to, "room:disk", params, back).await?);
    }
    let [p50, p99] = quantiles(&mut times);
    Ok(writeln!(out, "join, {back} back    p50 {p50:.2} ms, p99 {p99:.2} ms   ({what})")?)
}

/// Where a member stands that joins now.
async fn stands(to: SocketAddr, topic: &str) -> anyhow::Result<String> {
    let (mut reader, mut writer) = connect(to).await?;
    writer.send(&format!(r#"["1","1","{topic}","phx_join",{{"last_seq":null}}]"#)).await?;
    let mut cursor = None;
    while cursor.is_none() {
        let show = |frame: &[u8]| {
            let text = String::from_utf8_lossy(frame);
            let seq = text.split_once(r#""seq":""#).and_then(|(_, rest)| rest.split_once('"'));
            cursor = cursor.take().or(seq.map(|(seq, _)| seq.to_owned()));
        };
        reader.frames(show).await?;
    }
    cursor.context("no seq")
}

/// How long a join takes until it has so many messages of the past, in nanoseconds.
async fn joined(to: SocketAddr, topic: &str, params: &str, back: u64) -> anyhow::Result<u64> {
    let (mut reader, mut writer) = connect(to).await?;
    let begin = now();
    writer.send(&format!(r#"["1","1","{topic}","phx_join",{params}]"#)).await?;
    let mut got = 0;
    while got < back {
        reader.frames(|frame| got += u64::from(is_message(frame))).await?;
    }
    Ok(u64::try_from((now() - begin).as_nanos())?)
}
