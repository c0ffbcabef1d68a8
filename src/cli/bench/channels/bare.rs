//! The floor of deliveries: a thread that writes the same frames to so many sockets, as many at once as the nodes' publisher is ahead,
//! and clients that count them. No protocol, no topics, no bounds.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use xpando_node::actors::timer::now;

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
