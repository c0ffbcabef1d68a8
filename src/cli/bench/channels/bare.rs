//! The floor of deliveries: a thread that writes the same frames to so many sockets, as many at once as the nodes' publisher is ahead,
//! and clients that count them. No protocol, no topics, no bounds. The floor of joins: connections one after another, with
//! two questions and answers on each, as long as those of an upgrade and a join.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

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
