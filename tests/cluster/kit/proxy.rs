//! A way to a node that can be held: it lets a dialer's first word and the answer through, and keeps
//! the dialer's next words back until it is released. So two nodes can be made to dial each other at
//! the same instant, each time.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use super::{LOOK, PATIENCE, now};

#[derive(Default)]
struct State {
    /// The node behind has answered: the dialer's ClientHello is through.
    answered: bool,
    released: bool,
}

type Shared = Arc<(Mutex<State>, Condvar)>;

/// The way to one node.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    state: Shared,
}

impl Proxy {
    /// A way that is held.
    pub(crate) fn to(node: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (address, state) = (listener.local_addr().unwrap(), Shared::default());
        let shared = state.clone();
        thread::spawn(move || {
            for dialer in listener.incoming().map_while(Result::ok) {
                // A node that does not listen yet will in a moment.
                if let Some(node) = reach(node) {
                    let [up, down] = [shared.clone(), shared.clone()];
                    let (d, n) = (dialer.try_clone().unwrap(), node.try_clone().unwrap());
                    thread::spawn(move || pass(d, n, || wait(&up)));
                    thread::spawn(move || pass(node, dialer, || answered(&down)));
                }
            }
        });
        Self { address, state }
    }

    /// Lets everything through from now on.
    pub(crate) fn release(&self) {
        self.state.0.lock().unwrap().released = true;
        self.state.1.notify_all();
    }
}

fn reach(node: SocketAddr) -> Option<TcpStream> {
    let start = now();
    while start.elapsed() < PATIENCE {
        match TcpStream::connect(node) {
            Ok(stream) => return Some(stream),
            Err(_) => thread::sleep(LOOK),
        }
    }
    None
}

fn answered(shared: &Shared) {
    shared.0.lock().unwrap().answered = true;
}

fn wait(shared: &Shared) {
    let state = shared.0.lock().unwrap();
    let held = |state: &mut State| state.answered && !state.released;
    drop(shared.1.wait_while(state, held).unwrap());
}

/// Passes bytes on until either side ends, calling `before` ahead of each piece.
fn pass(mut from: TcpStream, mut to: TcpStream, before: impl Fn()) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        before();
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    // What has ended already needs no ending.
    to.shutdown(Shutdown::Write).unwrap_or(());
}
