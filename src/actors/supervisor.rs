//! The only supervisor, and what every actor is to it.
//!
//! A [`Process`] is an actor's inside: state, messages, one deadline. A [`Child`] knows how to start
//! one (or a whole subtree) again; a [`Handle`] reaches it across restarts. Which children restart is
//! decided by the pure machine in `proto::restart`.
//!
//! Invariants: children start in order and stop in reverse; a handle points at the living actor or
//! at none; a message that finds no actor is counted; a supervisor that gives up fails, so that the
//! one above decides, and the node ends when the root does.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, Message, SpawnErr, SupervisionEvent};
use tokio::task::JoinSet;

use crate::actors::timer::{self, Alarm};
use crate::io::metrics::{Count, Metrics};
use crate::proto::restart::{Decision, Intensity, Restarts, Strategy};

/// How long a child may take to stop before it is killed.
const STOP: Duration = Duration::from_secs(2);

/// What reaches an actor: a message, or its own deadline.
#[derive(Debug)]
pub enum Mail<M> {
    /// Somebody's message.
    Message(M),
    /// The deadline passed.
    Tick,
}

impl<M: Send + 'static> Message for Mail<M> {}

/// An actor's address in this process, for this life of the actor.
pub type Address<M> = ActorRef<Mail<M>>;

/// The inside of an actor.
pub trait Process: Sized + Send + 'static {
    /// Its name in logs, metrics and the tree.
    const NAME: &'static str;
    /// What it hears.
    type Message: Send + 'static;
    /// What it is made from, at the first start and after each restart.
    type Setup: Clone + Send + Sync + 'static;

    /// Makes the state. May wait: the tree waits with it.
    fn start(
        setup: Self::Setup,
        myself: &Address<Self::Message>,
    ) -> impl Future<Output = Result<Self, ActorProcessingErr>> + Send;

    /// Takes one message. Never waits. An error ends the actor, and its supervisor restarts it.
    ///
    /// # Errors
    /// The reason to end.
    fn handle(&mut self, message: Self::Message) -> Result<(), ActorProcessingErr>;

    /// When it wants [`Process::tick`] next; asked after every message.
    fn deadline(&self) -> Option<Instant> {
        None
    }

    /// The deadline passed.
    ///
    /// # Errors
    /// The reason to end.
    fn tick(&mut self) -> Result<(), ActorProcessingErr> {
        Ok(())
    }
}

/// Reaches an actor across its restarts.
#[derive(Debug)]
pub struct Handle<M> {
    slot: Arc<ArcSwapOption<Address<M>>>,
    name: &'static str,
    metrics: Metrics,
}

impl<M> Clone for Handle<M> {
    fn clone(&self) -> Self {
        Self { slot: self.slot.clone(), name: self.name, metrics: self.metrics.clone() }
    }
}

impl<M: Send + 'static> Handle<M> {
    /// A handle that points at nobody yet.
    pub fn new(name: &'static str, metrics: &Metrics) -> Self {
        Self { slot: Arc::default(), name, metrics: metrics.clone() }
    }

    /// Sends a message. One that finds no actor is counted and dropped: anyone who needs an answer has
    /// a deadline of its own.
    pub fn cast(&self, message: M) {
        let sent = self.slot.load().as_ref().map(|to| to.cast(Mail::Message(message)).is_ok());
        if sent != Some(true) {
            self.metrics.count(Count::Lost, self.name);
        }
    }

    pub(super) fn point(&self, address: Address<M>) {
        self.slot.store(Some(Arc::new(address)));
    }
}

pub(super) struct Runner<P>(pub(super) std::marker::PhantomData<fn() -> P>);

pub(super) struct Running<P> {
    process: P,
    alarm: Alarm,
}

impl<P: Process> Actor for Runner<P> {
    type Msg = Mail<P::Message>;
    /// Empty once the actor has stopped: ractor keeps the state of a stopped actor for its
    /// supervisor, and sockets and tasks must not live on in there.
    type State = Option<Running<P>>;
    type Arguments = P::Setup;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        setup: P::Setup,
    ) -> Result<Self::State, ActorProcessingErr> {
        let process = P::start(setup, &myself).await?;
        let bell = myself.clone();
        // A cast to an actor that just ended is no loss: it has no deadline any more.
        let alarm = Alarm::new(move || drop(bell.cast(Mail::Tick)));
        alarm.set(process.deadline());
        Ok(Some(Running { process, alarm }))
    }

    async fn post_stop(
        &self,
        _myself: ActorRef<Self::Msg>,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        drop(state.take());
        Ok(())
    }

    async fn handle(
        &self,
        _myself: ActorRef<Self::Msg>,
        mail: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        let Some(Running { process, alarm }) = state else { return Ok(()) };
        match mail {
            Mail::Message(message) => process.handle(message)?,
            Mail::Tick => process.tick()?,
        }
        alarm.set(process.deadline());
        Ok(())
    }
}

type Starting = Pin<Box<dyn Future<Output = Result<ActorCell, SpawnErr>> + Send>>;

/// How to start one child, again and again.
#[must_use = "it starts under a supervisor"]
pub struct Child {
    name: &'static str,
    start: Box<dyn Fn(ActorCell) -> Starting + Send + Sync>,
}

impl Child {
    /// An actor, reached through `handle`.
    pub fn actor<P: Process>(handle: &Handle<P::Message>, setup: P::Setup) -> Self {
        let handle = handle.clone();
        let start = move |parent: ActorCell| -> Starting {
            let (handle, setup) = (handle.clone(), setup.clone());
            Box::pin(async move {
                let runner = Runner::<P>(std::marker::PhantomData);
                let (address, _) = Actor::spawn_linked(None, runner, setup, parent).await?;
                handle.point(address.clone());
                Ok(address.get_cell())
            })
        };
        Self { name: P::NAME, start: Box::new(start) }
    }

    /// A task without messages, such as a server's accept loop; it is started again when it ends.
    pub fn task(
        name: &'static str,
        metrics: &Metrics,
        make: impl Fn() -> Task + Send + Sync + 'static,
    ) -> Self {
        let child = Self::actor::<TaskRunner>(&Handle::new(name, metrics), Arc::new(make));
        Self { name, ..child }
    }

    /// A supervisor with children of its own.
    pub fn supervisor(tree: Tree) -> Self {
        let tree = Arc::new(tree);
        let name = tree.name;
        let start = move |parent: ActorCell| -> Starting {
            let tree = tree.clone();
            Box::pin(async move {
                let (address, _) = Actor::spawn_linked(None, Supervisor, tree, parent).await?;
                Ok(address.get_cell())
            })
        };
        Self { name, start: Box::new(start) }
    }
}

/// What [`Child::task`] runs.
pub type Task = Pin<Box<dyn Future<Output = std::io::Result<()>> + Send>>;

/// An actor around a plain task: it fails when the task ends.
struct TaskRunner {
    _task: JoinSet<()>,
}

impl Process for TaskRunner {
    const NAME: &'static str = "task";
    type Message = std::io::Result<()>;
    /// A closure: each start makes another task, of any kind.
    type Setup = Arc<dyn Fn() -> Task + Send + Sync>;

    async fn start(
        make: Self::Setup,
        myself: &Address<Self::Message>,
    ) -> Result<Self, ActorProcessingErr> {
        let (task, myself) = (make(), myself.clone());
        let mut running = JoinSet::new();
        // The actor's own end ends the task, so the cast can only come too late.
        running.spawn(async move { drop(myself.cast(Mail::Message(task.await))) });
        Ok(Self { _task: running })
    }

    fn handle(&mut self, ended: Self::Message) -> Result<(), ActorProcessingErr> {
        match ended {
            Ok(()) => Err("the task ended".into()),
            Err(error) => Err(error.into()),
        }
    }
}

/// The living actors by name, for diagnosis and for tests that kill them.
#[derive(Clone, Debug, Default)]
pub struct ActorTable(Arc<Mutex<BTreeMap<&'static str, ActorCell>>>);

impl ActorTable {
    fn put(&self, name: &'static str, cell: ActorCell) {
        self.0.lock().insert(name, cell);
    }

    /// The names of all actors of the tree, supervisors included.
    pub fn names(&self) -> Vec<&'static str> {
        self.0.lock().keys().copied().collect()
    }

    /// Kills an actor as a crash would; false when there is none of that name.
    #[must_use]
    pub fn kill(&self, name: &str) -> bool {
        let cell = self.0.lock().get(name).cloned();
        cell.map(|cell| cell.kill()).is_some()
    }
}

/// A supervisor, as data.
pub struct Tree {
    /// Its name.
    pub name: &'static str,
    /// Which children go down with one.
    pub strategy: Strategy,
    /// How many restarts it bears.
    pub intensity: Intensity,
    /// Its children, in starting order.
    pub children: Vec<Child>,
    /// Where living actors are listed.
    pub roster: ActorTable,
    /// Where restarts are counted.
    pub metrics: Metrics,
    /// Hears which child ended and why, and whether it is started again.
    pub ended: Ended,
}

/// Hears the name of an actor that ended, why, and whether it is started again. A closure, because the bus is itself an
/// actor under a supervisor.
pub type Ended = Arc<dyn Fn(&'static str, &str, bool) + Send + Sync>;

/// The root of a running tree.
#[derive(Debug)]
pub struct Root {
    cell: ActorCell,
    ended: tokio::task::JoinHandle<()>,
}

impl Drop for Root {
    fn drop(&mut self) {
        self.cell.stop(None);
    }
}

impl Root {
    /// Stops all actors, the last started first.
    pub async fn stop(mut self) {
        self.cell.stop(None);
        self.failed().await;
    }

    /// Returns when the tree gave up.
    pub async fn failed(&mut self) {
        if let Err(error) = (&mut self.ended).await {
            tracing::error!(%error, "the supervision tree ended badly");
        }
    }
}

/// Starts a tree, which stops when the result is dropped. `kept` is dropped when all of it has stopped.
///
/// # Errors
/// What the first child that could not start says.
pub async fn start(tree: Tree, kept: impl Send + 'static) -> Result<Root, SpawnErr> {
    let (root, ended) = Actor::spawn(None, Supervisor, Arc::new(tree)).await?;
    let ended = tokio::spawn(async move {
        if let Err(error) = ended.await {
            tracing::error!(%error, "the supervision tree ended badly");
        }
        drop(kept);
    });
    Ok(Root { cell: root.get_cell(), ended })
}

struct Supervisor;

struct Supervising {
    tree: Arc<Tree>,
    restarts: Restarts,
    cells: Vec<Option<ActorCell>>,
}

struct Nothing;
impl Message for Nothing {}

impl Supervising {
    fn index_of(&self, cell: &ActorCell) -> Option<usize> {
        let id = cell.get_id();
        self.cells.iter().position(|child| child.as_ref().is_some_and(|c| c.get_id() == id))
    }

    async fn start_child(&mut self, index: usize, myself: ActorCell) -> Result<(), SpawnErr> {
        let Some(child) = self.tree.children.get(index) else { return Ok(()) };
        let cell = (child.start)(myself).await?;
        self.tree.roster.put(child.name, cell.clone());
        if let Some(slot) = self.cells.get_mut(index) {
            *slot = Some(cell);
        }
        Ok(())
    }

    async fn stop_child(&mut self, index: usize) {
        let Some(cell) = self.cells.get_mut(index).and_then(Option::take) else { return };
        if cell.stop_and_wait(None, Some(STOP)).await.is_err() {
            cell.kill();
        }
    }

    /// A child ended: restart what the machine says, until that holds or it gives up.
    async fn ended(
        &mut self,
        index: usize,
        why: &str,
        myself: &ActorCell,
    ) -> Result<(), ActorProcessingErr> {
        let mut failed = index;
        loop {
            let name = self.tree.children.get(failed).map_or("?", |child| child.name);
            self.tree.metrics.count(Count::Restarts, name);
            let range = match self.restarts.ended(failed, timer::now()) {
                Decision::Restart(range) => range,
                Decision::GiveUp => {
                    (self.tree.ended)(name, why, false);
                    let supervisor = self.tree.name;
                    tracing::error!(supervisor, actor = name, "too many restarts: giving up");
                    return Err(format!("{supervisor}: {name} restarted too often").into());
                }
            };
            for index in range.clone().rev() {
                self.stop_child(index).await;
            }
            let mut again = None;
            for index in range {
                if let Err(error) = self.start_child(index, myself.clone()).await {
                    tracing::error!(%error, actor = name, "an actor could not be started again");
                    again = Some(index);
                    break;
                }
            }
            match again {
                Some(index) => failed = index,
                None => return Ok(()),
            }
        }
    }
}

impl Actor for Supervisor {
    type Msg = Nothing;
    type State = Supervising;
    type Arguments = Arc<Tree>;

    async fn pre_start(
        &self,
        myself: ActorRef<Nothing>,
        tree: Arc<Tree>,
    ) -> Result<Supervising, ActorProcessingErr> {
        let count = tree.children.len();
        let restarts = Restarts::new(tree.strategy, tree.intensity, count);
        let mut state = Supervising { tree, restarts, cells: vec![None; count] };
        for index in 0..count {
            state.start_child(index, myself.get_cell()).await?;
        }
        Ok(state)
    }

    async fn post_stop(
        &self,
        _myself: ActorRef<Nothing>,
        state: &mut Supervising,
    ) -> Result<(), ActorProcessingErr> {
        for index in (0..state.cells.len()).rev() {
            state.stop_child(index).await;
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Nothing>,
        event: SupervisionEvent,
        state: &mut Supervising,
    ) -> Result<(), ActorProcessingErr> {
        let (cell, why) = match event {
            SupervisionEvent::ActorFailed(cell, error) => (cell, error.to_string()),
            SupervisionEvent::ActorTerminated(cell, _, why) => {
                (cell, why.unwrap_or_else(|| "stopped".to_owned()))
            }
            SupervisionEvent::ActorStarted(_)
            | SupervisionEvent::ProcessGroupChanged(_)
            | SupervisionEvent::PidLifecycleEvent(_) => return Ok(()),
        };
        // A child that this supervisor stopped itself is in no slot any more.
        let Some(index) = state.index_of(&cell) else { return Ok(()) };
        let actor = state.tree.children.get(index).map_or("?", |child| child.name);
        (state.tree.ended)(actor, &why, true);
        if let Some(slot) = state.cells.get_mut(index) {
            *slot = None;
        }
        state.ended(index, &why, &myself.get_cell()).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc;

    /// Says its name and life when it starts and stops; ends as it is told.
    struct Probe {
        name: &'static str,
        log: mpsc::UnboundedSender<String>,
    }

    #[derive(Clone)]
    struct ProbeSetup {
        name: &'static str,
        log: mpsc::UnboundedSender<String>,
    }

    enum Order {
        Fail,
        Panic,
        Say,
    }

    impl Process for Probe {
        const NAME: &'static str = "probe";
        type Message = Order;
        type Setup = ProbeSetup;

        async fn start(
            setup: ProbeSetup,
            _myself: &Address<Order>,
        ) -> Result<Self, ActorProcessingErr> {
            setup.log.send(format!("+{}", setup.name)).expect("the test listens");
            Ok(Self { name: setup.name, log: setup.log })
        }

        fn handle(&mut self, order: Order) -> Result<(), ActorProcessingErr> {
            match order {
                Order::Fail => Err("told to fail".into()),
                Order::Panic => panic!("told to panic"),
                Order::Say => Ok(self.log.send(self.name.to_owned())?),
            }
        }
    }

    impl Drop for Probe {
        fn drop(&mut self) {
            drop(self.log.send(format!("-{}", self.name)));
        }
    }

    struct World {
        handles: Vec<Handle<Order>>,
        log: mpsc::UnboundedReceiver<String>,
        root: Root,
        metrics: Metrics,
    }

    async fn world(strategy: Strategy, restarts: usize) -> World {
        let metrics = Metrics::default();
        let (tx, log) = mpsc::unbounded_channel();
        let (mut handles, mut children) = (Vec::new(), Vec::new());
        for name in ["a", "b", "c"] {
            let handle = Handle::new(name, &metrics);
            let setup = ProbeSetup { name, log: tx.clone() };
            children.push(Child { name, ..Child::actor::<Probe>(&handle, setup) });
            handles.push(handle);
        }
        let intensity = Intensity { restarts, window: Duration::from_secs(10) };
        let roster = ActorTable::default();
        let tree = Tree {
            name: "root",
            strategy,
            intensity,
            children,
            roster,
            metrics: metrics.clone(),
            ended: Arc::new(|_, _, _| {}),
        };
        let root = start(tree, ()).await.expect("starts");
        let mut world = World { handles, log, root, metrics };
        assert_eq!(world.hear(3).await, ["+a", "+b", "+c"]);
        world
    }

    impl World {
        async fn hear(&mut self, count: usize) -> Vec<String> {
            let mut heard = Vec::new();
            while heard.len() < count {
                let next = tokio::time::timeout(Duration::from_secs(5), self.log.recv()).await;
                heard.push(next.expect("in time").expect("a word"));
            }
            heard
        }
    }

    #[tokio::test]
    async fn rest_for_one_restarts_the_child_and_those_after_it() {
        for order in [Order::Fail, Order::Panic] {
            let mut world = world(Strategy::RestForOne, 3).await;
            world.handles[1].cast(order);
            assert_eq!(world.hear(4).await, ["-b", "-c", "+b", "+c"]);
            world.handles[1].cast(Order::Say);
            assert_eq!(world.hear(1).await, ["b"], "the handle reaches the new life");
            world.root.stop().await;
            let mut rest = Vec::new();
            while let Ok(word) = world.log.try_recv() {
                rest.push(word);
            }
            assert_eq!(rest, ["-c", "-b", "-a"], "stops in reverse");
        }
    }

    #[tokio::test]
    async fn one_for_one_and_one_for_all() {
        let mut one = world(Strategy::OneForOne, 3).await;
        one.handles[0].cast(Order::Fail);
        assert_eq!(one.hear(2).await, ["-a", "+a"]);
        let mut all = world(Strategy::OneForAll, 3).await;
        all.handles[2].cast(Order::Fail);
        assert_eq!(all.hear(6).await, ["-c", "-b", "-a", "+a", "+b", "+c"]);
        assert!(all.metrics.text().expect("text").contains("restarts_total{actor=\"c\"} 1"));
    }

    #[tokio::test]
    async fn too_many_restarts_end_the_tree() {
        let mut world = world(Strategy::OneForOne, 1).await;
        world.handles[0].cast(Order::Fail);
        assert_eq!(world.hear(2).await, ["-a", "+a"]);
        world.handles[0].cast(Order::Fail);
        tokio::time::timeout(Duration::from_secs(5), world.root.failed()).await.expect("gives up");
        world.handles[0].cast(Order::Say);
        let text = world.metrics.text().expect("text");
        assert!(text.contains("messages_lost_total{actor=\"a\"} 1"), "{text}");
    }
}
