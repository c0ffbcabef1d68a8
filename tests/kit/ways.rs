//! The ways between the nodes of one cluster on loopback, each of which can be cut in either
//! direction, without a network of one's own.
//!
//! Each node is reached through a *front*: the address that it advertises. Anyone who dials there is
//! known by the owner of the socket at the other end, so the front knows on which way, from node to
//! node, it carries bytes. A connection needs both ways between its two nodes, because TCP carries
//! nothing once acknowledgements are lost: while either way is cut, nothing is read, passed on or
//! closed, on connections old and new; what was under way arrives once both are whole, as if it had
//! been sent again. (A new connection is already accepted here, so its dialer waits for the first
//! answer instead of for the connection.)

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread;

use parking_lot::{Condvar, Mutex};
use socket2::{Domain, Socket, Type};

use super::{Cluster, Mesh, Node, Start, socket_inodes, tcp_sockets};

#[derive(Default)]
struct State {
    processes: BTreeMap<usize, u32>,
    cut: BTreeSet<(usize, usize)>,
    held: bool,
    /// Connections: who dialed, who is reached, and the ends of those that last.
    open: Vec<(usize, usize, [Weak<TcpStream>; 2])>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// The ways between nodes that have numbers from 1.
pub(crate) struct Ways<'a> {
    cluster: &'a Cluster,
    places: Vec<Place>,
    shared: Arc<Shared>,
}

/// Where a node listens, and is reached.
struct Place {
    listen: SocketAddr,
    front: SocketAddr,
    /// Bound and never listening: nobody else is given the port, whether the node runs or not.
    _reserved: Socket,
}

impl<'a> Ways<'a> {
    /// All ways between so many nodes, which are still to be started.
    pub(crate) fn between(cluster: &'a Cluster, count: usize) -> Self {
        let shared = Arc::<Shared>::default();
        let place = |number| {
            let reserved = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            reserved.set_reuse_address(true).unwrap();
            reserved.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
            let listen = reserved.local_addr().unwrap().as_socket().unwrap();
            Place { listen, front: front(&shared, number, listen), _reserved: reserved }
        };
        let places = (1..=count).map(place).collect();
        Self { cluster, places, shared }
    }

    /// A node behind its front. It knows the front of the last node, and that one the first's: seeds
    /// are dialed anew for ever, so a link that is to come back by itself is better another one.
    pub(crate) fn node(&self, number: usize) -> Start {
        let (place, last) = (&self.places[number - 1], self.places.len() - 1);
        let seed = &self.places[if number - 1 == last { 0 } else { last }];
        let node = self.cluster.node(&format!("n{number}")).listen(place.listen).join(seed.front);
        node.arg("--advertise").arg(&place.front.to_string())
    }

    /// Starts a node. Nobody is dialed by it before its process is known here.
    pub(crate) fn launch(&self, number: usize, node: Start) -> Node {
        let mut state = self.shared.state.lock();
        let node = node.launch();
        state.processes.insert(number, node.pid());
        node
    }

    /// All nodes, started at once and linked.
    #[track_caller]
    pub(crate) fn mesh(&self) -> Mesh {
        let numbers = 1..=self.places.len();
        Mesh::form(numbers.map(|number| self.launch(number, self.node(number))).collect())
    }

    /// Cuts or mends each of these ways: (from, to).
    pub(crate) fn set(&self, ways: &[(usize, usize)], whole: bool) {
        self.change(|state| {
            for way in ways {
                if whole {
                    state.cut.remove(way)
                } else {
                    state.cut.insert(*way)
                };
            }
        });
    }

    /// Ends the connections between two nodes, as a router that forgets them does: what is under way is
    /// lost, both sides learn it at once, and a new one can be opened.
    pub(crate) fn sever(&self, one: usize, other: usize) {
        let state = self.shared.state.lock();
        for (from, to, ends) in &state.open {
            if [(one, other), (other, one)].contains(&(*from, *to)) {
                for stream in ends.iter().filter_map(Weak::upgrade) {
                    stream.shutdown(Shutdown::Both).unwrap_or(()); // it may have ended by itself
                }
            }
        }
    }

    /// Lets a dialer's first word and the answer through, and keeps back its next words until it is
    /// told otherwise: nodes can be made to dial each other at the same instant.
    pub(crate) fn hold(&self, held: bool) {
        self.change(|state| state.held = held);
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.shared.state.lock());
        self.shared.changed.notify_all();
    }
}

/// Opens the front of a node.
fn front(shared: &Arc<Shared>, number: usize, node: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let (address, shared) = (listener.local_addr().unwrap(), shared.clone());
    thread::spawn(move || {
        for dialer in listener.incoming().map_while(Result::ok) {
            let shared = shared.clone();
            thread::spawn(move || shared.carry(dialer, number, node));
        }
    });
    address
}

impl Shared {
    /// Carries one connection until either side ends. One that cannot be is closed.
    fn carry(&self, dialer: TcpStream, to: usize, node: SocketAddr) {
        let Some(from) = self.owner(&dialer) else { return };
        // A dialer that gave up during a cut would not have sent its first packet again.
        if self.wait(from, to, || false) && self.owner(&dialer).is_none() {
            return;
        }
        let Ok(node) = TcpStream::connect(node) else { return };
        for stream in [&dialer, &node] {
            stream.set_nodelay(true).unwrap();
        }
        let [dialer, node] = [dialer, node].map(Arc::new);
        {
            let mut state = self.state.lock();
            state.open.retain(|(_, _, ends)| ends[0].strong_count() > 0);
            state.open.push((from, to, [&dialer, &node].map(Arc::downgrade)));
        }
        let (dialer, node, answered) = (&*dialer, &*node, &AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| {
                let held = || answered.load(Ordering::SeqCst);
                pass(dialer, node, || {
                    self.wait(from, to, held);
                });
            });
            pass(node, dialer, || {
                answered.store(true, Ordering::SeqCst);
                self.wait(from, to, || false);
            });
        });
    }

    /// The node that holds the other end of a connection to a front.
    fn owner(&self, dialer: &TcpStream) -> Option<usize> {
        let ports = (dialer.peer_addr().ok()?.port(), dialer.local_addr().ok()?.port());
        let processes = self.state.lock().processes.clone();
        let sockets = tcp_sockets("01");
        let inode = &sockets.iter().find(|socket| (socket.local, socket.remote) == ports)?.inode;
        let owner = processes.iter().find(|(_, pid)| socket_inodes(**pid).contains(inode));
        owner.map(|(number, _)| *number)
    }

    /// Waits while the connection of a pair carries nothing; whether there was anything to wait for.
    fn wait(&self, from: usize, to: usize, can_be_held: impl Fn() -> bool) -> bool {
        let mut waited = false;
        let stalled = |state: &mut State| {
            let cut = [(from, to), (to, from)].iter().any(|way| state.cut.contains(way));
            let stalled = cut || state.held && can_be_held();
            waited |= stalled;
            stalled
        };
        self.changed.wait_while(&mut self.state.lock(), stalled);
        waited
    }
}

/// Passes bytes on until either side ends, calling `wait` ahead of each piece and of the end.
fn pass(mut from: &TcpStream, mut to: &TcpStream, wait: impl Fn()) {
    let mut buffer = [0; 16 * 1024];
    loop {
        let read = from.read(&mut buffer);
        wait();
        match read {
            Ok(length @ 1..) if to.write_all(&buffer[..length]).is_ok() => {}
            Ok(_) | Err(_) => break,
        }
    }
    // What has ended already needs no ending.
    to.shutdown(Shutdown::Write).unwrap_or(());
}
