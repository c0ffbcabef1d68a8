//! A work queue over named workers: every node of the cluster that serves the name `work` gets jobs.
//!
//! ```text
//! work_queue DIR HOST:PORT NAME@HOST                   a worker: works until the queue says `over`
//! work_queue DIR HOST:PORT NAME@HOST JOBS WORKERS      the queue: waits for the workers, hands out jobs
//! ```
//!
//! DIR has certs/ and the node's data; HOST:PORT is a node to join at. `scripts/example` starts it all.
#![allow(clippy::print_stdout, reason = "what an example comes to is printed")]

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use postcard_schema::Schema;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use xpando_node::{CallError, Node, NodeError, NodeHandle, NodeName};

type Failure = Box<dyn std::error::Error + Send + Sync>;
type Queue = Arc<Mutex<VecDeque<Job>>>;
type Results = BTreeMap<u64, u64>;

/// Counts the primes below a number. The job's own number makes a second attempt harmless.
#[derive(Clone, Copy, Serialize, Deserialize, Schema)]
struct Job {
    number: u64,
    below: u64,
}

/// How long one attempt may take, and how long to wait before the next.
const WITHIN: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(50);
/// Attempts without a link before a worker is given up, and jobs under way at each worker.
const PATIENCE: u32 = 100;
const LANES: usize = 8;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [dir, join, name, role @ ..] = args.as_slice() else {
        return Err("work_queue DIR HOST:PORT NAME@HOST [JOBS WORKERS]".into());
    };
    let node = Node::builder(name)
        .join(join)
        .certs(format!("{dir}/certs"))
        .data_dir(format!("{dir}/{name}"))
        .beacons(false)
        .start()
        .await?;
    let worked = match role {
        [] => work(&node).await,
        [jobs, workers] => queue(&node, jobs.parse()?, workers.parse()?).await,
        _ => Err("after NAME@HOST comes nothing, or JOBS WORKERS".into()),
    };
    node.shutdown().await;
    worked
}

/// Does one job at a time and remembers what came out: a second attempt at a job, whose first answer was
/// lost with a link or came too late, is answered from memory.
async fn work(node: &NodeHandle) -> Result<(), Failure> {
    let mut over = node.subscribe("work:over")?;
    let done = Arc::new(Mutex::new(Results::new()));
    let (memory, counted) = (done.clone(), done.clone());
    let _counting = node.serve_typed("work:done", move |_from, ()| {
        let counted = counted.clone();
        async move { Ok(counted.lock().await.len() as u64) }
    })?;
    let _working = node.serve_typed("work", move |_from, job: Job| {
        let memory = memory.clone();
        async move {
            let mut memory = memory.lock().await;
            // No `await` from here on: a job whose deadline passes is not left half done.
            Ok(*memory.entry(job.number).or_insert_with(|| primes(job.below)))
        }
    })?;
    over.recv().await;
    println!("{} did {} jobs", node.name(), done.lock().await.len());
    Ok(())
}

fn primes(below: u64) -> u64 {
    let prime = |n: &u64| (2..).take_while(|d| d * d <= *n).all(|d| !n.is_multiple_of(d));
    (2..below).filter(prime).count() as u64
}

async fn queue(node: &NodeHandle, jobs: u64, wanted: usize) -> Result<(), Failure> {
    while node.lookup("work")?.len() < wanted {
        tokio::time::sleep(PAUSE).await;
    }
    let queue: Queue = Arc::default();
    queue.lock().await.extend((0..jobs).map(|number| Job { number, below: 1000 + number }));
    let mut results = Results::new();
    // Who gave up a worker left its job in the queue, for those that are there then.
    while !queue.lock().await.is_empty() {
        let mut lanes = JoinSet::new();
        for worker in node.lookup("work")? {
            let lane = || feed(node.clone(), worker.clone(), queue.clone());
            (0..LANES).for_each(|_| drop(lanes.spawn(lane())));
        }
        while let Some(lane) = lanes.join_next().await {
            results.extend(lane??);
        }
        tokio::time::sleep(PAUSE).await;
    }
    let (mut done, mut watches) = (0, Vec::new());
    for worker in node.lookup("work")? {
        done += node.call_typed_on::<_, u64>(&worker, "work:done", &(), WITHIN).await?;
        watches.push(node.watch("work", &worker)?);
    }
    let primes: u64 = results.values().sum();
    println!("{} jobs, {done} done by {wanted} workers, {primes} primes", results.len());
    node.publish("work:over", "").await?;
    for watch in watches {
        watch.gone().await; // until then a goodbye could overtake what was published
    }
    Ok(())
}

/// Gives jobs to one worker until none is left or the worker is gone.
async fn feed(node: NodeHandle, worker: NodeName, queue: Queue) -> Result<Results, NodeError> {
    use CallError::*;
    let (mut results, mut missing) = (Results::new(), 0);
    while let Some(job) = { queue.lock().await.pop_front() } {
        let result = loop {
            match node.call_typed_on(&worker, "work", &job, WITHIN).await {
                Ok(result) => break result,
                // `Overloaded`: nothing was done, and there may be room soon. The others: it may have been
                // done; only this worker knows, so only it may be asked again.
                Err(NodeError::Call(Overloaded | OutcomeUnknown | DeadlinePassed)) => {}
                // Nothing was done this time, but perhaps at an attempt before: the job stays with this
                // worker while its link is mended. A worker gone for good took its memory along; then
                // its job may be done twice, which is the price of getting it done.
                Err(NodeError::Call(NotConnected | NoSuchName)) => {
                    missing += 1;
                    if missing == PATIENCE {
                        queue.lock().await.push_back(job);
                        return Ok(results);
                    }
                }
                Err(other) => return Err(other),
            }
            tokio::time::sleep(PAUSE).await;
        };
        results.insert(job.number, result);
    }
    Ok(results)
}
