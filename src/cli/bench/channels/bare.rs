//! The floor of deliveries: a thread that writes the same frames to so many sockets, as many at once as the nodes' publisher is ahead,
//! and clients that count them. No protocol, no topics, no bounds. The floor of joins: connections one after another, with
//! two questions and answers on each, as long as those of an upgrade and a join. The floor of one message to a crowd: the
//! same thread, and the crowd's own clients.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::rc::Rc;
use std::time::Duration;

use xpando_node::internals::actors::timer::now;

use super::{AHEAD, crowd, load};

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

/// What a message to a crowd came to.
pub(super) struct Broadcasts {
    /// Bytes to each.
    pub(super) length: usize,
    /// Median, 99th percentile and the last, in milliseconds.
    pub(super) figures: [f64; 3],
}

/// Messages, one after another.
const MESSAGES: usize = 20;

/// A message to so many sockets.
pub(super) async fn broadcasts(sockets: usize) -> anyhow::Result<Broadcasts> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let (address, start) = (listener.local_addr()?, now());
    let (send, sent) = std::sync::mpsc::channel::<Vec<u8>>();
    let writing = std::thread::spawn(move || -> std::io::Result<()> {
        let mut servers = Vec::new();
        for _ in 0..sockets {
            let server = listener.accept()?.0;
            server.set_nodelay(true)?;
            servers.push(server);
        }
        for message in sent {
            servers.iter_mut().try_for_each(|server| server.write_all(&message))?;
        }
        Ok(())
    });
    let (got, mut kept, mut reading) = (Rc::new(crowd::Got::default()), Vec::new(), Vec::new());
    for number in 0..sockets {
        let stream = load::dial(Some(crowd::source(number)), address).await?;
        let (reader, writer) = stream.into_split();
        let following = crowd::follow(load::Reader::new(reader), got.clone(), start);
        reading.push(tokio::task::spawn_local(following));
        kept.push(writer);
    }
    let (mut length, mut lasts) = (0, Vec::new());
    for _ in 0..MESSAGES {
        let begun = got.deliveries();
        let text = super::message("room:crowd", load::since(start)).replacen("\"1\",\"2\"", "null,null", 1);
        // As the server sends it: without a mask.
        let mut frame = load::masked(&text);
        frame.drain(2..6);
        frame[1] &= 0x7f;
        length = frame.len();
        send.send(frame)?;
        got.all(sockets).await?;
        lasts.push(got.next(begun));
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    drop(send);
    writing.join().map_err(|_panic| anyhow::anyhow!("the writer failed"))??;
    reading.iter().for_each(tokio::task::JoinHandle::abort);
    Ok(Broadcasts { length, figures: got.figures(&mut lasts) })
}
