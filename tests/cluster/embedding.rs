//! README's service, built as a newcomer builds it: in a crate of its own, from the two blocks of the text.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use tokio::net::TcpStream;
use xpando_node::{Node, StartError, TooFew};

use crate::kit::{Cluster, PROGRAM, full, linked};

const README: &str = include_str!("../../README.md");
const CHECKOUT: &str = env!("CARGO_MANIFEST_DIR");
const OWN: &str = include_str!("../../Cargo.toml");

/// The first block of README's Embedding section in this language.
fn block(language: &str) -> &'static str {
    let (_, section) = README.split_once("\n## Embedding\n").unwrap();
    let (_, rest) = section.split_once(&format!("\n```{language}\n")).unwrap();
    rest.split_once("\n```").unwrap().0
}

/// Builds README's service in a crate of its own; the program. It joins at `seed` where the text says so.
fn service(cluster: &Cluster, seed: &str) -> PathBuf {
    let home = cluster.path("service");
    fs::create_dir_all(home.join("src")).unwrap();
    let manifest = block("toml").replace("\"../xpando-node\"", &format!("{CHECKOUT:?}"));
    // The rest has the libraries built as for these tests: they are built already.
    let same = OWN.split_once("\n[dev-dependencies]\n").unwrap().1;
    let same = same.split_once("\n[profile.dev.").unwrap().0;
    let same = same.replace("path = \".\"", &format!("path = {CHECKOUT:?}"));
    let package = "[package]\nname = \"readme-service\"\nedition = \"2024\"";
    let manifest = format!("{package}\n{manifest}\n[target.'cfg(all())'.dependencies]\n{same}\n");
    fs::write(home.join("Cargo.toml"), manifest).unwrap();
    let code = block("rust,no_run").replace("127.0.0.1:4697", seed);
    fs::write(home.join("src/main.rs"), code).unwrap();
    // What the lock file names is on this machine.
    fs::copy(Path::new(CHECKOUT).join("Cargo.lock"), home.join("Cargo.lock")).unwrap();
    let profile = Path::new(PROGRAM).parent().unwrap();
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--offline", "--target-dir"]).arg(profile.parent().unwrap());
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    assert!(
        cargo.current_dir(&home).status().unwrap().success(),
        "README's service does not build"
    );
    profile.join("readme-service")
}

/// Runs the service to its end, in a directory that has certificates of another cluster.
fn run(cluster: &Cluster, service: &Path) -> Output {
    let elsewhere = cluster.path("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    cluster.print(&["cert", "init", "--certs", "elsewhere/certs"]);
    let plain = cluster.command();
    let mut command = Command::new(service);
    command.env_clear().envs(plain.get_envs().filter_map(|(key, value)| Some((key, value?))));
    command.current_dir(elsewhere).output().unwrap()
}

#[test]
fn the_service_of_the_readme_builds_as_it_stands_and_joins_the_nodes_that_run() {
    let cluster = Cluster::without_authority();
    // Where nodes keep their certificates that are not told where.
    let home = cluster.path("home/.config/xpando/certs");
    let node = |name: &str| cluster.node(name).without_certs();
    let a = node("a").start();
    let [b, c] = ["b", "c"].map(|name| node(name).join(a.listen()).start());
    assert!(home.join("ca/cert.pem").exists());
    linked(&[&a, &b, &c]);
    let output = run(&cluster, &service(&cluster, &a.listen().to_string()));
    let [out, err] = [output.stdout, output.stderr].map(|it| String::from_utf8(it).unwrap());
    assert!(output.status.success(), "{err}");
    assert!(out.starts_with("42 with "), "{out}");
    let names: Vec<String> = ["a", "b", "c"].map(full).into();
    assert!(names.iter().all(|name| out.contains(name)), "{out}");
    a.sees_as("svc", "offline", |row| row["reason"] == "left");
}

#[tokio::test]
async fn a_start_that_waits_for_links_gives_up_in_time_and_leaves_nothing_behind() {
    let cluster = Cluster::without_authority();
    let node = || {
        let node = Node::builder("one@127.0.0.1").certs(cluster.path("certs"));
        node.data_dir(cluster.path("one")).listen("127.0.0.1:0").beacons(false)
    };
    let error = node().linked(1, Duration::from_millis(50)).start().await.unwrap_err();
    assert!(matches!(error, StartError::TooFew(TooFew { linked: 0, min: 1, .. })), "{error}");
    node().start().await.unwrap().shutdown().await;
}

#[tokio::test]
async fn a_process_has_one_node_which_stops_when_it_is_dropped() {
    let cluster = Cluster::without_authority();
    let node = |name: &str| {
        let node = Node::builder(name).certs(cluster.path("certs")).data_dir(cluster.path(name));
        node.listen("127.0.0.1:0").beacons(false).start()
    };
    let first = node("one@127.0.0.1").await.unwrap();
    let second = node("two@127.0.0.1").await.unwrap_err();
    assert!(second.to_string().starts_with("another node runs in this process"), "{second}");
    let listen = first.listen();
    drop(first);
    let second = async {
        loop {
            match node("two@127.0.0.1").await {
                Err(StartError::Second) => tokio::task::yield_now().await,
                started => break started.unwrap(),
            }
        }
    };
    let second = tokio::time::timeout(Duration::from_secs(10), second).await.unwrap();
    assert!(TcpStream::connect(listen).await.is_err(), "the first node listens no more");
    second.shutdown().await;
}
