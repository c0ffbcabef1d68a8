//! A node and the machine that it runs on: who reads its log, what signals do, and files that come and go under it.

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use rustix::process::Signal;

use crate::kit::{Cluster, Node, PROGRAM, full, linked, skip, until};

/// A shell that does this with a program and becomes it.
fn shell(script: &str) -> Command {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", script]).env_clear();
    shell
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// Makes log lines: many clients that speak no HTTP, each of which is told at DEBUG.
fn noise(http: &str) {
    for _ in 0..500 {
        let Ok(mut client) = TcpStream::connect(http) else { continue };
        // One that is turned away has made its line, too.
        client.write_all(b"\0\r\n\r\n").unwrap_or(());
        client.read_to_end(&mut Vec::new()).map(drop).unwrap_or(());
    }
}

#[test]
fn a_log_that_nobody_reads_stops_nothing_and_tells_later_what_was_dropped() {
    let cluster = Cluster::new();
    let pipe = cluster.path("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let unread = shell(&format!("exec \"$0\" \"$@\" 2<>{}", pipe.display()));
    let a = cluster.node("a").through(unread).arg("--log").arg("trace").launch();
    let status = until("status of a", || a.status());
    let http = status["http"].as_str().unwrap().to_owned();
    let b = cluster.node("b").join(status["listen"].as_str().unwrap()).start();
    linked(&[&a, &b]);
    let dropped = || a.counter("xpando_log_lines_lost_total", "unread");
    let more = |before| {
        until("dropped lines", || {
            noise(&http);
            if dropped() > before { Ok(()) } else { Err(format!("{}", dropped())) }
        });
    };
    more(0);
    linked(&[&a, &b]);
    assert_eq!(b.count_logged("peer_suspected", &[]), 0);

    // The reader comes back for a while.
    let mut reader = fs::File::open(&pipe).unwrap();
    let reading = thread::spawn(move || {
        let (mut text, mut bytes) = (String::new(), [0; 65536]);
        while !text.contains("log lines were dropped") {
            let length = reader.read(&mut bytes).unwrap();
            text.push_str(&String::from_utf8_lossy(&bytes[..length]));
        }
    });
    until("word of dropped lines", || {
        noise(&http);
        if reading.is_finished() { Ok(()) } else { Err("not yet".to_owned()) }
    });
    reading.join().unwrap();
    more(dropped());
    assert_eq!(a.terminate(), Some(0), "it ends although nobody reads");
    b.sees_as("a", "offline", |row| row["reason"] == "left");
}

#[test]
fn signals_that_mean_nothing_to_a_node_change_nothing() {
    let cluster = Cluster::new();
    let mut a = cluster.node("a").start();
    let b = cluster.node("b").join(a.listen()).start();
    linked(&[&a, &b]);
    let silent = [Signal::PIPE, Signal::WINCH, Signal::URG, Signal::CHILD, Signal::CONT];
    silent.iter().for_each(|signal| a.signal(*signal));
    for (signal, name) in [
        (Signal::USR1, "SIGUSR1"),
        (Signal::USR2, "SIGUSR2"),
        (Signal::ALARM, "SIGALRM"),
        (Signal::VTALARM, "SIGVTALRM"),
        (Signal::PROF, "SIGPROF"),
        (Signal::IO, "SIGIO"),
        (Signal::STKFLT, "SIGSTKFLT"),
        (Signal::XFSZ, "SIGXFSZ"),
        (Signal::HUP, "SIGHUP"),
    ] {
        a.signal(signal);
        a.logged("signal", &[("signal", name)]);
    }
    assert!(a.runs());
    linked(&[&a, &b]);
    assert_eq!(b.count_logged("peer_offline", &[]), 0);
}

#[test]
fn signals_that_end_a_node_have_it_say_goodbye() {
    let cluster = Cluster::new();
    let a = cluster.node("a").start();
    let ends = [Signal::QUIT, Signal::POWER, Signal::XCPU, Signal::INT, Signal::TERM];
    for (n, signal) in ends.into_iter().enumerate() {
        let name = format!("b{n}");
        let mut b = cluster.node(&name).join(a.listen()).start();
        linked(&[&a, &b]);
        b.signal(signal);
        assert_eq!(b.exit_code(), Some(0), "{signal:?}");
        a.sees_as(&name, "offline", |row| row["reason"] == "left");
    }
}

#[test]
fn a_hangup_that_is_ignored_stays_ignored_and_one_of_the_terminal_ends_the_node() {
    let cluster = Cluster::new();
    let a = cluster.node("a").start();
    let mut b = cluster.node("b").through(Command::new("nohup")).join(a.listen()).start();
    linked(&[&a, &b]);
    b.signal(Signal::HUP);
    b.signal(Signal::USR1);
    b.logged("signal", &[("signal", "SIGUSR1")]);
    assert!(b.runs() && b.count_logged("signal", &[("signal", "SIGHUP")]) == 0);

    cluster.issue("t");
    let run = format!(
        "{PROGRAM} --name {} --certs {} --data-dir {} --listen 127.0.0.1:0 --no-beacon --join {}",
        full("t"),
        cluster.certs().display(),
        cluster.path("t").display(),
        a.listen()
    );
    let mut terminal = Command::new("script");
    terminal.args(["--quiet", "--command", &format!("exec {run}"), "/dev/null"]);
    terminal.env_clear().env("XDG_RUNTIME_DIR", cluster.path("run"));
    let Ok(mut terminal) = terminal.stdin(Stdio::piped()).stdout(Stdio::null()).spawn() else {
        return skip("script", "script(1) is not installed");
    };
    a.sees("t", "online");
    terminal.kill().unwrap();
    terminal.wait().unwrap();
    a.sees_as("t", "offline", |row| row["reason"] == "left");
}

#[test]
fn a_second_signal_ends_a_node_whose_goodbyes_hang() {
    let cluster = Cluster::new();
    let mut a = cluster.node("a").start();
    let b = cluster.node("b").join(a.listen()).start();
    linked(&[&a, &b]);
    b.signal(Signal::STOP);
    a.signal(Signal::TERM);
    a.logged("node_stopping", &[]);
    a.signal(Signal::INT);
    assert_eq!(a.exit_code(), Some(1));
    a.logged("a second signal to end (SIGINT): ended at once", &[]);
    b.signal(Signal::CONT);
}

fn renew(cluster: &Cluster, node: &str, extra: &[&str]) {
    let certs = cluster.certs();
    let args = ["cert", "issue", &full(node), "--certs", certs.to_str().unwrap()];
    cluster.print(&[&args, extra].concat());
}

fn loaded(node: &Node) -> u64 {
    node.counter("xpando_files_total", "node_certificate_loaded")
}

#[test]
fn a_renewed_certificate_is_in_force_without_a_restart_and_links_live_on() {
    let cluster = Cluster::new();
    ["a", "b"].iter().for_each(|name| cluster.issue(name));
    let a = cluster.node("a").start();
    let b = cluster.node("b").join(a.listen()).start();
    linked(&[&a, &b]);
    let old = b.gauge("xpando_certificate_expiry_timestamp_seconds", "certificate=\"node\"");
    renew(&cluster, "b", &["--replace"]);
    b.logged("this node's certificate was renewed", &[]);
    let new = b.gauge("xpando_certificate_expiry_timestamp_seconds", "certificate=\"node\"");
    assert!(new >= old && loaded(&b) == 1, "{old} {new}");
    linked(&[&a, &b]);
    assert_eq!(a.count_logged("link_lost", &[]) + a.count_logged("peer_offline", &[]), 0);
    // New links are made with it.
    b.run(&["disconnect", &full("a")], &[]);
    a.logged("link_lost", &[]);
    linked(&[&a, &b]);

    // What would be another node, or another cluster, waits for a restart.
    fs::remove_dir_all(cluster.certs().join(full("b"))).unwrap();
    b.logged("certificate files refused", &[("error", "cert.pem is missing")]);
    renew(&cluster, "b", &[]);
    let said = "key.pem is a new key, which counts from the next start: restart the node";
    until("word of the new key", || {
        // One line a minute, and the loss of the old one was just told.
        if b.counter("xpando_files_total", "node_certificate_refused") >= 2 {
            Ok(())
        } else {
            Err(said.into())
        }
    });
    let foreign = cluster.beside();
    fs::copy(foreign.certs().join("ca/cert.pem"), cluster.certs().join("ca/cert.pem")).unwrap();
    let said = "ca/cert.pem is of another cluster than the one that this node started in";
    let refused = a.logged("certificate files refused", &[("error", said)]);
    assert_eq!(refused["level"], "WARN");
    assert_eq!(loaded(&b), 1);
    linked(&[&a, &b]);
}

#[test]
fn a_certificate_that_ends_soon_is_told_with_the_remedy() {
    use std::time::Duration;
    use xpando_node::internals::io::clock::wall;
    use xpando_node::internals::io::identity::{Authority, Validity};
    let cluster = Cluster::without_authority();
    let day = Duration::from_secs(24 * 60 * 60);
    let valid = Validity { not_before: wall() - 61 * day, not_after: wall() + 29 * day };
    let authority = Authority::init(&cluster.certs(), wall() - 61 * day).unwrap();
    authority.issue(&cluster.certs(), &full("a").parse().unwrap(), valid).unwrap();
    let a = cluster.node("a").start();
    let line = a.logged("a certificate expires soon", &[("certificate", "node")]);
    assert_eq!(line["level"], "WARN");
    let remedy = line["remedy"].as_str().unwrap();
    assert!(remedy.contains("cert issue a@127.0.0.1 --replace"), "{remedy}");
    assert_eq!(a.count_logged("a certificate expires soon", &[]), 1);
}

#[test]
fn sockets_that_are_cleaned_away_are_made_again_and_looking_makes_nothing() {
    let cluster = Cluster::new();
    let fresh = cluster.path("fresh");
    fs::create_dir(&fresh).unwrap();
    for args in [&["ps"][..], &["status"], &["ps", "--json"]] {
        cluster.command().args(args).env("XDG_RUNTIME_DIR", &fresh).output().unwrap();
        assert_eq!(fs::read_dir(&fresh).unwrap().count(), 0, "{args:?}");
    }
    let a = cluster.node("a").start();
    let finds = || String::from_utf8_lossy(&cluster.run(&["ps"]).stdout).contains("running");
    assert!(finds());
    fs::remove_dir_all(cluster.path("run/xpando")).unwrap();
    until("link in the runtime directory", || if finds() { Ok(()) } else { Err("none".into()) });
    a.counts("xpando_files_total", "runtime_link_renewed", 0);
    fs::remove_file(a.data_dir.join("admin.sock")).unwrap();
    until("admin socket", || a.status());
    a.counts("xpando_files_total", "admin_socket_renewed", 0);
    assert_eq!(mode(&a.data_dir.join("admin.sock")) & 0o777, 0o600);
    assert_eq!(a.terminate(), Some(0));
    assert_eq!(fs::read_dir(cluster.path("run")).unwrap().count(), 0, "nothing is left");
}

#[test]
fn files_are_the_owners_alone_whatever_the_umask_and_what_there_was() {
    let cluster = Cluster::without_authority();
    let certs = cluster.path("made-certs");
    let data = cluster.path("a@127.0.0.1");
    fs::create_dir(&data).unwrap();
    set_mode(&data, 0o755);
    let loose = shell("umask 0; exec \"$0\" \"$@\"");
    let a = cluster.node("a").certs(&certs).through(loose).start();
    let node = certs.join("a@127.0.0.1");
    for directory in [&data, &certs, &certs.join("ca"), &node, &cluster.path("run/xpando")] {
        assert_eq!(mode(directory), 0o700, "{}", directory.display());
    }
    let secrets = ["ca/key.pem", "ca/token.key", "a@127.0.0.1/key.pem", ".lock"];
    let secrets = secrets.iter().map(|file| certs.join(file));
    for file in secrets.chain(["node.redb", "admin.sock"].map(|file| data.join(file))) {
        assert_eq!(mode(&file) & 0o777, 0o600, "{}", file.display());
    }
    assert_eq!(a.terminate(), Some(0));

    for (directory, names) in
        [(&data, "data directory"), (&certs, "directory"), (&node, "directory")]
    {
        let before = mode(directory);
        set_mode(directory, 0o777);
        let ended = cluster.node("a").certs(&certs).ends();
        let fix = format!("chmod go-w {}", directory.display());
        ended.fails_with(1, &["others may write the", names, "0777", &fix]);
        set_mode(directory, before);
    }
    cluster.node("a").certs(&certs).start();
}

/// Puts what node `a` needs into a directory as Kubernetes projects a secret there: files of one version in a directory of
/// theirs, a link to that directory, and links through it.
fn project(cluster: &Cluster, into: &Path, version: &str) {
    let files = into.join(format!("..{version}"));
    for (folder, names) in
        [("ca", ["cert.pem", "tokens"]), ("a@127.0.0.1", ["cert.pem", "key.pem"])]
    {
        fs::create_dir_all(files.join(folder)).unwrap();
        for name in names {
            let to = files.join(folder).join(name);
            fs::copy(cluster.certs().join(folder).join(name), &to).unwrap();
            set_mode(&to, 0o440);
        }
        if !into.join(folder).exists() {
            symlink(format!("..data/{folder}"), into.join(folder)).unwrap();
        }
    }
    symlink(format!("..{version}"), into.join("..data_tmp")).unwrap();
    fs::rename(into.join("..data_tmp"), into.join("..data")).unwrap();
}

#[test]
fn a_secret_that_kubernetes_mounts_is_taken_and_followed() {
    let cluster = Cluster::new();
    cluster.issue("a");
    let secret = cluster.path("secret");
    fs::create_dir(&secret).unwrap();
    project(&cluster, &secret, "1");
    set_mode(&secret, 0o1777);
    if !Command::new("unshare").args(["--mount", "true"]).status().is_ok_and(|it| it.success()) {
        return skip("mounts", "unshare(1) may not make them here");
    }
    let at = secret.display();
    let mount =
        format!("mount --bind {at} {at} && mount -o remount,ro,bind {at} && exec \"$0\" \"$@\"");
    let mounted = || {
        let mut unshare = Command::new("unshare");
        unshare.args(["--mount", "/bin/sh", "-c", &mount]).env_clear();
        unshare.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        cluster.node("a").certs(&secret).through(unshare)
    };
    let a = mounted().start();
    renew(&cluster, "a", &["--replace"]);
    project(&cluster, &secret, "2");
    a.logged("this node's certificate was renewed", &[]);
    assert_eq!(a.terminate(), Some(0));

    let key = secret.join("a@127.0.0.1/key.pem");
    set_mode(&key, 0o644);
    mounted().ends().fails_with(1, &["key.pem can be read by others", "defaultMode: 0440"]);
    set_mode(&key, 0o440);
    cluster
        .node("a")
        .certs(&secret)
        .ends()
        .fails_with(1, &["others may write the directory", "1777"]);
}

#[test]
fn a_start_that_fails_leaves_nothing_behind() {
    let cluster = Cluster::without_authority();
    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let at = taken.local_addr().unwrap();
    let (certs, data) = (cluster.path("new/certs"), cluster.path("new/data"));
    let start = |name: &str| cluster.node(name).certs(&certs).data_dir(&data);
    let failing = [
        (start("a").listen(at), "cannot listen on"),
        (start("a").arg("--http").arg(&at.to_string()), "cannot listen for clients"),
        (start("a@10.9.8.7"), "cert init"),
        (start("a").arg("--http-cert").arg("x").arg("--http-key").arg("y"), "cannot read x"),
        (start("a").arg("--meta").arg("k=1").arg("--meta").arg("k=2"), "given twice"),
    ];
    for (start, why) in failing {
        start.ends().fails_with(1, &[why]);
        assert!(!cluster.path("new").exists(), "{why}");
    }
}
