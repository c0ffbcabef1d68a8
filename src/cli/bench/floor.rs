//! What the machine can do without us: a bare TLS 1.3 stream on loopback, with the certificates, cipher and
//! sizes of a link. Messages go through one channel to a writer that sends whatever is there; a reader
//! behind a buffer counts them. Requests go back and forth one by one, or many at once.

use std::time::{Duration, Instant};

use anyhow::bail;
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use xpando_node::internals::actors::timer::now;
use xpando_node::internals::io::identity::Identity;
use xpando_node::internals::io::tls::Tls;

/// Messages in the channel.
const CHANNEL: usize = 4096;
/// Bytes sent at once, and read at once.
const BATCH: usize = 64 * 1024;

/// Messages a second of this size through the channel.
pub(super) fn casts(ends: &[Identity; 2], size: usize, time: Duration) -> anyhow::Result<f64> {
    runtime()?.block_on(async {
        let (client, server) = connect(ends).await?;
        let (messages, queued) = mpsc::channel::<Bytes>(CHANNEL);
        let (_reads, writer) = tokio::io::split(client);
        let (reader, _writes) = tokio::io::split(server);
        let writing = tokio::spawn(write(queued, writer));
        let counting = tokio::spawn(count(reader, size + 4));
        let start = now();
        let producing = tokio::spawn(async move {
            let payload = Bytes::from(vec![7; size]);
            let mut sent = 0_u64;
            while now() < start + time {
                for _ in 0..if size > 4096 { 1 } else { 256 } {
                    if messages.send(payload.clone()).await.is_err() {
                        return sent;
                    }
                    sent += 1;
                }
            }
            sent
        });
        let sent = producing.await?;
        writing.await??;
        let (counted, last) = counting.await??;
        if counted != sent {
            bail!("{counted} of {sent} messages came");
        }
        Ok(counted as f64 / (last - start).as_secs_f64())
    })
}

async fn write(
    mut queued: mpsc::Receiver<Bytes>,
    mut writer: WriteHalf<impl AsyncRead + AsyncWrite>,
) -> anyhow::Result<()> {
    let mut batch = Vec::with_capacity(2 * BATCH);
    while let Some(first) = queued.recv().await {
        let mut next = Some(first);
        while let Some(message) = next {
            batch.extend_from_slice(&u32::try_from(message.len())?.to_be_bytes());
            batch.extend_from_slice(&message);
            next = if batch.len() < BATCH { queued.try_recv().ok() } else { None };
        }
        writer.write_all(&batch).await?;
        writer.flush().await?;
        batch.clear();
    }
    Ok(writer.shutdown().await?)
}

/// How many messages came, and when the last did.
async fn count(reader: impl AsyncRead + Unpin, length: usize) -> anyhow::Result<(u64, Instant)> {
    let mut reader = BufReader::with_capacity(4 * BATCH, reader);
    let (mut counted, mut message) = (0, vec![0; length - 4]);
    loop {
        let mut header = [0; 4];
        if reader.read_exact(&mut header).await.is_err() {
            return Ok((counted, now()));
        }
        if u32::from_be_bytes(header) as usize != message.len() {
            bail!("another length");
        }
        reader.read_exact(&mut message).await?;
        counted += 1;
    }
}

/// Round-trip times in nanoseconds, of requests of this size one after another, and how many a
/// second so many at once make.
pub(super) fn calls(
    ends: &[Identity; 2],
    size: usize,
    at_once: usize,
    time: Duration,
) -> anyhow::Result<(Vec<u64>, f64)> {
    runtime()?.block_on(async {
        let (client, server) = connect(ends).await?;
        tokio::spawn(echo(server, size));
        let (mut reader, mut writer) = tokio::io::split(client);
        let mut message = vec![7; size];
        let mut times = Vec::new();
        let start = now();
        while times.is_empty() || now() < start + time {
            let begin = now();
            writer.write_all(&message).await?;
            writer.flush().await?;
            reader.read_exact(&mut message).await?;
            times.push(u64::try_from((now() - begin).as_nanos())?);
        }
        let rate = many(ends, size, at_once, time).await?;
        Ok((times, rate))
    })
}

/// So many tasks that each wait for an answer before the next request; answers a second. Requests and
/// answers go through a channel to a writer, as casts do.
async fn many(
    ends: &[Identity; 2],
    size: usize,
    at_once: usize,
    time: Duration,
) -> anyhow::Result<f64> {
    let (client, server) = connect(ends).await?;
    let (there, writer) = tokio::io::split(server);
    let mut there = BufReader::with_capacity(BATCH, there);
    let (answers, queued) = mpsc::channel::<Bytes>(CHANNEL);
    tokio::spawn(write(queued, writer));
    tokio::spawn(async move {
        while let Ok(message) = message(&mut there).await {
            if answers.send(message).await.is_err() {
                return;
            }
        }
    });
    let (back, writer) = tokio::io::split(client);
    let mut back = BufReader::with_capacity(BATCH, back);
    let (requests, queued) = mpsc::channel::<Bytes>(CHANNEL);
    tokio::spawn(write(queued, writer));
    let (waiting, mut tasks): (Vec<_>, Vec<_>) = (0..at_once).map(|_| mpsc::channel(1)).unzip();
    tokio::spawn(async move {
        while let Ok(message) = message(&mut back).await {
            let task = message.first_chunk().map(|at| u32::from_be_bytes(*at) as usize);
            let Some(task) = task.and_then(|at| waiting.get(at)) else { return };
            if task.send(message).await.is_err() {
                return;
            }
        }
    });
    let start = now();
    let mut callers = tokio::task::JoinSet::new();
    for (at, mut answer) in tasks.drain(..).enumerate() {
        let requests = requests.clone();
        let mut payload = u32::try_from(at)?.to_be_bytes().to_vec();
        payload.resize(size.max(4), 7);
        let payload = Bytes::from(payload);
        callers.spawn(async move {
            let mut answered = 0_u64;
            while now() < start + time {
                if requests.send(payload.clone()).await.is_err() || answer.recv().await.is_none() {
                    break;
                }
                answered += 1;
            }
            answered
        });
    }
    let answered: u64 = callers.join_all().await.into_iter().sum();
    Ok(answered as f64 / (now() - start).as_secs_f64())
}

async fn message(reader: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Bytes> {
    let length = reader.read_u32().await?;
    let mut message = vec![0; length as usize];
    reader.read_exact(&mut message).await?;
    Ok(message.into())
}

async fn echo(stream: impl AsyncRead + AsyncWrite, size: usize) -> std::io::Result<()> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut buffer = vec![0; BATCH.max(size)];
    loop {
        let read = reader.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        writer.write_all(buffer.get(..read).unwrap_or(&[])).await?;
        writer.flush().await?;
    }
}

pub(super) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

/// Both ends of a stream.
async fn connect(
    [a, b]: &[Identity; 2],
) -> anyhow::Result<(
    impl AsyncRead + AsyncWrite + Unpin + Send + use<>,
    impl AsyncRead + AsyncWrite + Unpin + Send + use<>,
)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let (client, server) = (Tls::new(a)?, Tls::new(b)?);
    let (dialed, accepted) =
        tokio::join!(TcpStream::connect(listener.local_addr()?), listener.accept());
    let (dialed, (accepted, _)) = (dialed?, accepted?);
    dialed.set_nodelay(true)?;
    accepted.set_nodelay(true)?;
    let (dialed, accepted) = tokio::join!(client.connect(dialed), server.accept(accepted));
    Ok((dialed?.0, accepted?.0))
}
