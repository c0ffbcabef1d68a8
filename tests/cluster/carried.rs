//! Certificates by files that are carried between hosts, and what other programs make of them.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use crate::kit::{PROGRAM, skip};

/// A command of the group `cert` on this directory, which must succeed.
fn cert(certs: &Path, words: &[&str]) -> String {
    let output = run(certs, words);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{words:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

fn run(certs: &Path, words: &[&str]) -> Output {
    let mut command = Command::new(PROGRAM);
    command.env_clear().arg("cert").args(words).arg("--certs").arg(certs);
    command.output().unwrap()
}

/// What openssl says to these words, and whether it is content; `None` where there is no openssl.
fn openssl(words: &[&str]) -> Option<(bool, String)> {
    let output = Command::new("openssl").args(words).output().ok()?;
    let said = [output.stdout, output.stderr].concat();
    Some((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
}

#[test]
fn a_carried_request_makes_a_certificate_that_openssl_takes() {
    let [there, here] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    cert(there.path(), &["init"]);
    cert(
        here.path(),
        &["request", "web@10.0.0.7", "--host", "web.example", "--host", "2001:db8::7"],
    );
    let [request, answer] = ["request", "request.answer"].map(|file| there.path().join(file));
    fs::copy(here.path().join("web@10.0.0.7/request"), &request).unwrap();
    cert(there.path(), &["sign", request.to_str().unwrap()]);
    let signed = fs::read(&answer).unwrap();
    let key = fs::read(here.path().join("web@10.0.0.7/key.pem")).unwrap();
    let secret = key.split(|byte| *byte == b'\n').nth(1).unwrap();
    assert!(!signed.windows(secret.len()).any(|part| part == secret));
    let taken = cert(here.path(), &["accept", answer.to_str().unwrap()]);
    assert!(taken.contains("Compare that with"), "{taken}");
    let again = run(here.path(), &["request", "web@10.0.0.7"]);
    let again = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(again.contains("is valid until"), "{again}");

    let path = |file: &str| here.path().join(file).to_str().unwrap().to_owned();
    let (authority, leaf) = (path("ca/cert.pem"), path("web@10.0.0.7/cert.pem"));
    let verify = |words: &[&str]| {
        let fixed = ["verify", "-x509_strict", "-CAfile", &authority];
        openssl(&[&fixed, words, &[leaf.as_str()]].concat())
    };
    let Some((sound, said)) = verify(&["-purpose", "sslserver"]) else {
        return skip("openssl", "openssl is not installed");
    };
    assert!(sound, "{said}");
    for (words, expected) in [
        (["-verify_hostname", "web.example"], true),
        (["-verify_ip", "10.0.0.7"], true),
        (["-verify_ip", "2001:db8::7"], true),
        (["-verify_hostname", "bank.example"], false),
        (["-verify_ip", "10.0.0.8"], false),
        (["-purpose", "sslclient"], true),
    ] {
        let (sound, said) = verify(&words).unwrap();
        assert_eq!(sound, expected, "{words:?}: {said}");
    }
    let (sound, said) =
        openssl(&["x509", "-in", &leaf, "-noout", "-ext", "subjectAltName"]).unwrap();
    assert!(sound && said.contains("URI:spiffe://"), "{said}");
}

#[test]
fn a_chain_through_an_intermediate_is_one_that_openssl_takes() {
    let [root, host] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    cert(root.path(), &["init"]);
    cert(host.path(), &["request", "--authority"]);
    let path = |dir: &Path, file: &str| dir.join(file).to_str().unwrap().to_owned();
    let request = path(host.path(), "ca/request");
    let key = fs::read(host.path().join("ca/request.key")).unwrap();
    cert(root.path(), &["sign", "--authority", &request]);
    let told = cert(host.path(), &["accept", &format!("{request}.answer")]);
    assert!(told.contains("This host issues from now on"), "{told}");
    assert_eq!(fs::read(host.path().join("ca/key.pem")).unwrap(), key, "the key never left");
    let secret = key.split(|byte| *byte == b'\n').nth(1).unwrap();
    let carried = fs::read(format!("{request}.answer")).unwrap();
    assert!(!carried.windows(secret.len()).any(|part| part == secret));
    cert(host.path(), &["issue", "web@10.0.0.7", "--host", "web.example"]);

    let texts = fs::read_to_string(host.path().join("ca/cert.pem")).unwrap();
    let begin = "-----BEGIN CERTIFICATE-----";
    let texts: Vec<_> = texts.split(begin).skip(1).map(|text| format!("{begin}{text}")).collect();
    assert_eq!(texts.len(), 2);
    let [trusted, between] = ["root.pem", "intermediate.pem"].map(|file| path(root.path(), file));
    fs::write(&trusted, &texts[0]).unwrap();
    fs::write(&between, &texts[1]).unwrap();
    let leaf = path(host.path(), "web@10.0.0.7/cert.pem");
    let verify = |words: &[&str]| {
        let fixed = ["verify", "-x509_strict", "-CAfile", &trusted];
        openssl(&[&fixed, words, &[leaf.as_str()]].concat())
    };
    let chain = ["-untrusted", &between, "-verify_hostname", "web.example"];
    let Some((sound, said)) = verify(&chain) else {
        return skip("openssl", "openssl is not installed");
    };
    assert!(sound, "{said}");
    let (sound, said) = verify(&[]).unwrap();
    assert!(!sound, "the root has not signed it itself: {said}");
    // A leaf, and an authority below the intermediate, are no issuers.
    let (sound, said) = openssl(&["x509", "-in", &between, "-noout", "-text"]).unwrap();
    assert!(sound && said.contains("CA:TRUE, pathlen:0"), "{said}");
}
