//! The floor of deliveries: a thread that writes the same frames to so many sockets, as many at once as the nodes' publisher is ahead,
//! and clients that count them. No protocol, no topics, no bounds. The floor of joins: connections one after another, with
//! two questions and answers on each, as long as those of an upgrade and a join. The floor of a message to all: a process that writes it
//! to each socket, for it has as many files open as the node has.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use xpando_node::internals::actors::timer::now;

use super::{AHEAD, load};

/// Deliveries a second to so many sockets.
pub(super) fn run(sockets: usize, time: Duration) -> anyhow::Result<f64> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let (mut servers, mut clients) = (Vec::new(), Vec::new());
    for _ in 0..sockets {
        clients.push(TcpStream::connect(address)?);
        servers.push(listener.accept()?.0);
    }
    let text = super::message("room:fanout", 1_000_000_000);
    // As the server sends it: without a mask.
    let frame = load::masked(&text).len() - 4;
    let batch = vec![b'x'; frame * (AHEAD / sockets)];
    let start = now();
    let writing = std::thread::spawn(move || -> std::io::Result<()> {
        while now() < start + time {
            servers.iter_mut().try_for_each(|server| server.write_all(&batch))?;
        }
        Ok(())
    });
    let (mut buffer, mut bytes, mut open) = (vec![0; 64 * 1024], 0, true);
    while open {
        for client in &mut clients {
            match client.read(&mut buffer)? {
                0 => open = false,
                length => bytes += length,
            }
        }
    }
    writing.join().map_err(|_panic| anyhow::anyhow!("the writer failed"))??;
    Ok(bytes as f64 / frame as f64 / start.elapsed().as_secs_f64())
}

/// How long the upgrade and the join are, question and answer.
const EXCHANGES: [(usize, usize); 2] = [(200, 160), (48, 72)];

/// So many connections, one after another; how many a second.
pub(super) fn joins(count: usize) -> anyhow::Result<f64> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let answering = std::thread::spawn(move || -> std::io::Result<Vec<TcpStream>> {
        let mut kept = Vec::new();
        for _ in 0..count {
            let (mut server, _) = listener.accept()?;
            server.set_nodelay(true)?;
            for (question, answer) in EXCHANGES {
                server.read_exact(&mut vec![0; question])?;
                server.write_all(&vec![0; answer])?;
            }
            kept.push(server);
        }
        Ok(kept)
    });
    let (mut kept, start) = (Vec::new(), now());
    for _ in 0..count {
        let mut client = TcpStream::connect(address)?;
        client.set_nodelay(true)?;
        for (question, answer) in EXCHANGES {
            client.write_all(&vec![0; question])?;
            client.read_exact(&mut vec![0; answer])?;
        }
        kept.push(client);
    }
    let took = start.elapsed();
    drop(answering.join().map_err(|_panic| anyhow::anyhow!("the server failed"))??);
    Ok(count as f64 / took.as_secs_f64())
}

/// `bench bare`: a server of so many sockets, whose address it prints. Each line of standard input is a message to all of them;
/// it ends where the input does.
pub(in super::super) fn broadcast(sockets: usize, out: &mut dyn Write) -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    writeln!(out, "{}", listener.local_addr()?)?;
    out.flush()?;
    // Beside the input, so that the end of who started this ends it while it accepts, too.
    let accepting = std::thread::spawn(move || -> std::io::Result<Vec<TcpStream>> {
        let mut servers = Vec::new();
        for _ in 0..sockets {
            let server = listener.accept()?.0;
            server.set_nodelay(true)?;
            servers.push(server);
        }
        Ok(servers)
    });
    let mut lines = std::io::stdin().lines();
    let Some(first) = lines.next() else { return Ok(()) };
    let accepted = accepting.join().map_err(|_panic| anyhow::anyhow!("the server failed"))?;
    let mut servers = accepted?;
    for line in std::iter::once(first).chain(lines) {
        // As the server sends it: without a mask.
        let mut frame = load::masked(&line?);
        frame.drain(2..6);
        frame[1] &= 0x7f;
        servers.iter_mut().try_for_each(|server| server.write_all(&frame))?;
    }
    Ok(())
}

/// A process that runs [`broadcast`]; it ends with this value.
pub(super) struct Broadcaster {
    child: Child,
    input: ChildStdin,
    pub(super) address: SocketAddr,
}

impl Broadcaster {
    pub(super) fn start(sockets: usize) -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["bench", "bare", &sockets.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the floor")?;
        let input = child.stdin.take().context("no input")?;
        let mut address = String::new();
        BufReader::new(child.stdout.take().context("no output")?).read_line(&mut address)?;
        let address = address.trim().parse().context("the floor did not start")?;
        Ok(Self { child, input, address })
    }

    /// Writes a message to each socket. The text has no end of line.
    pub(super) fn send(&mut self, text: &str) -> std::io::Result<()> {
        self.input.write_all(format!("{text}\n").as_bytes())
    }
}

impl Drop for Broadcaster {
    fn drop(&mut self) {
        // One that is gone already needs no end.
        self.child.kill().unwrap_or(());
        self.child.wait().map(|_status| ()).unwrap_or(());
    }
}
