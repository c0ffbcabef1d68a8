//! The examples, each against a cluster of plain nodes: they say what they should, and end.

use std::collections::BTreeSet;

use crate::kit::{Cluster, full, linked};

#[test]
fn the_work_queue_does_each_job_once_and_shares_them() {
    let cluster = Cluster::new();
    let a = cluster.node("a").start();
    let b = cluster.node("b").join(a.listen()).start();
    linked(&[&a, &b]);
    let program = cluster.example("work_queue");
    // Two nodes that know nothing of each other but through the cluster.
    let workers = [("w1", &a), ("w2", &b)].map(|(name, at)| program.start(name, at, &[]));
    let queue = program.start("queue", &a, &["300", "2"]);
    let said = queue.prints();
    // 300 counts of the primes below 1000 to 1299.
    let primes: u64 = (1000..1300).map(|below| (2..below).filter(is_prime).count() as u64).sum();
    assert_eq!(said, format!("300 jobs, 300 done by 2 workers, {primes} primes\n"));
    let done = workers.map(|worker| {
        let said = worker.prints();
        let count = said.rsplit_once(" did ").and_then(|(_, rest)| rest.strip_suffix(" jobs\n"));
        count.and_then(|count| count.parse::<u64>().ok()).expect("a count")
    });
    assert!(done.iter().all(|count| *count > 0), "both worked: {done:?}");
    assert_eq!(done.iter().sum::<u64>(), 300);
    a.sees_as("queue", "offline", |row| row["reason"] == "left");
}

fn is_prime(n: &u64) -> bool {
    (2..*n).all(|d| !n.is_multiple_of(d))
}

#[test]
fn the_counters_agree_however_late_one_comes() {
    let cluster = Cluster::new();
    let a = cluster.node("a").start();
    let program = cluster.example("counter");
    let start = |name: &str| program.start(name, &a, &["40", "3"]);
    let mut running = vec![start("one"), start("two")];
    // They have counted a while, and what they said then is not said again.
    for name in ["one", "two"] {
        a.sees(name, "online");
    }
    running.push(start("three"));
    let names = ["one", "two", "three"].map(full);
    let said: Vec<String> = running.into_iter().map(|one| one.prints()).collect();
    for (name, said) in names.iter().zip(&said) {
        assert!(said.starts_with(&format!("{name} counts 120: ")), "{said}");
    }
    let sums: BTreeSet<&str> =
        said.iter().filter_map(|said| said.split_once(": ")).map(|s| s.1).collect();
    assert_eq!(sums.len(), 1, "all know the same: {said:?}");
    for name in &names {
        assert!(said[0].contains(&format!("\"{name}\": 40")), "{}", said[0]);
    }
}

#[test]
fn ordinary_actors_answer_from_other_nodes() {
    let cluster = Cluster::new();
    let a = cluster.node("a").start();
    let program = cluster.example("remote_actors");
    let adders = ["w1", "w2"].map(|name| program.start(name, &a, &[]));
    let said = program.start("ask", &a, &["1000", "2"]).prints();
    assert_eq!(said, format!("{}: 500500\n{}: 500500\n", full("w1"), full("w2")));
    for adder in adders {
        adder.prints();
    }
}
