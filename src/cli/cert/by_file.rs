//! `cert request`, `cert sign` and `cert accept`: certificates where the authority is on a host that is not reached by nodes.
//!
//! Invariant: the private key stays on the host that asks; what is carried, a request there and an answer back, is no secret.

use std::io::{Read as _, Write};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use xpando_node::internals::io::clock;
use xpando_node::internals::io::identity::enrol::{self, Issuer, Joiner, Outcome, Rules};
use xpando_node::internals::io::identity::{
    Authority, Intermediate, accept_authority, is_authority_answer,
    request_authority as ask_authority, shell_word,
};
use xpando_node::internals::proto::capability::Capabilities;
use xpando_node::internals::proto::enrol::{Host, MAX_MESSAGE};
use xpando_node::internals::proto::node::NodeName;

use crate::cli::output::write_line;

/// What is put behind the name of a request's file for its answer.
const ANSWER: &str = ".answer";

/// Makes a key and a request beside it.
pub(super) fn request(
    name: &NodeName,
    hosts: &[Host],
    certs: &Path,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let now = clock::wall();
    let joiner = Joiner::prepare(certs, name, hosts, now)?;
    let asked = joiner.ask_operator(now)?;
    let path = certs.join(joiner.name().as_str()).join("request");
    std::fs::write(&path, asked.bytes())
        .with_context(|| format!("cannot write {}", path.display()))?;
    write_line!(out, "node         {name}")?;
    write_line!(out, "private key  {}/{name}/key.pem  (stays on this host)", certs.display())?;
    write_line!(out, "request      {}", path.display())?;
    write_line!(out)?;
    write_line!(out, "Carry the request to the host that has the authority's key, and there:")?;
    write_line!(out, "  xpando-node cert sign request")?;
    Ok(())
}

/// Signs a request by the operator's own decision.
pub(super) fn sign(
    file: &Path,
    can: Capabilities,
    certs: &Path,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let bytes = read(file)?;
    let issuer = Issuer::open(certs, Rules::default())?;
    let may = can.to_string();
    let answered = issuer.sign(&bytes, can, clock::wall());
    let (name, key, until) = match answered.outcome {
        Outcome::Issued { name, key, until, means: _ } => (name, key, until),
        Outcome::Refused(refused) => anyhow::bail!("{refused}"),
        Outcome::Failed(error) => return Err(error.into()),
        Outcome::Waiting { .. } | Outcome::Continued => anyhow::bail!("the request waits"),
    };
    let path = write_answer(file, &answered.bytes)?;
    write_line!(out, "node         {name}")?;
    write_line!(out, "id           {key}")?;
    write_line!(out, "valid until  {}", clock::rfc3339(until))?;
    write_line!(out, "may          {may}")?;
    write_line!(out, "answer       {}", path.display())?;
    write_line!(out)?;
    write_line!(out, "Carry the answer to {}, and there:", name.host())?;
    write_line!(out, "  xpando-node cert accept request{ANSWER}")?;
    Ok(())
}

/// Makes a key of an intermediate authority, and a request beside it.
pub(super) fn request_authority(certs: &Path, out: &mut dyn Write) -> anyhow::Result<()> {
    ask_authority(certs)?;
    let dir = certs.display();
    write_line!(out, "private key  {dir}/ca/request.key  (stays on this host)")?;
    write_line!(out, "request      {dir}/ca/request")?;
    write_line!(out)?;
    write_line!(
        out,
        "Carry the request to the host that has the root authority's key, and there:"
    )?;
    write_line!(out, "  xpando-node cert sign request --authority")?;
    Ok(())
}

/// Makes an intermediate authority of a request.
pub(super) fn sign_authority(file: &Path, certs: &Path, out: &mut dyn Write) -> anyhow::Result<()> {
    let bytes = read(file)?;
    let (made, answer) = Authority::open(certs)?.sign_authority(&bytes, clock::wall())?;
    let path = write_answer(file, &answer)?;
    show(&made, out)?;
    write_line!(out, "answer       {}", path.display())?;
    write_line!(out)?;
    write_line!(out, "Carry the answer to the host that asked, and there:")?;
    write_line!(out, "  xpando-node cert accept request{ANSWER}")?;
    write_line!(
        out,
        "To end it and all that it issued, here: xpando-node cert revoke {}",
        made.serial
    )?;
    Ok(())
}

fn show(made: &Intermediate, out: &mut dyn Write) -> anyhow::Result<()> {
    write_line!(out, "intermediate {}", made.fingerprint)?;
    write_line!(out, "serial       {}", made.serial)?;
    write_line!(out, "root         {}", made.root)?;
    write_line!(out, "valid until  {}", clock::rfc3339(made.until))?;
    Ok(())
}

/// Puts an answer beside its request.
fn write_answer(file: &Path, answer: &[u8]) -> anyhow::Result<PathBuf> {
    let mut path = file.as_os_str().to_owned();
    path.push(ANSWER);
    let path = PathBuf::from(path);
    std::fs::write(&path, answer).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// Puts what was signed into the certificate directory.
pub(super) fn accept(file: &Path, certs: &Path, out: &mut dyn Write) -> anyhow::Result<()> {
    let bytes = read(file)?;
    if is_authority_answer(&bytes) {
        let made = accept_authority(certs, &bytes)?;
        show(&made, out)?;
        write_line!(out)?;
        write_line!(out, "Compare the root with what `xpando-node cert show --json` says there.")?;
        write_line!(
            out,
            "This host issues from now on: `xpando-node cert issue`, `xpando-node invite`."
        )?;
        return Ok(());
    }
    let granted = enrol::accept(certs, &bytes, clock::wall())?;
    enrol::keep_places(certs, granted.name(), &granted.places(&[]))?;
    write_line!(out, "node         {}", granted.name())?;
    write_line!(out, "valid until  {}", clock::rfc3339(granted.validity().not_after))?;
    if let Some(fingerprint) = granted.authority_fingerprint() {
        write_line!(out, "authority    {fingerprint}")?;
        write_line!(out)?;
        write_line!(out, "Compare that with what `xpando-node cert show --json` says there.")?;
    }
    write_line!(out)?;
    let word = shell_word(certs);
    write_line!(out, "Next: xpando-node --name {} --certs {word}", granted.name())?;
    Ok(())
}

/// A request or an answer, of at most so many bytes as it may have.
fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(file)
        .and_then(|it| it.take(MAX_MESSAGE as u64 + 1).read_to_end(&mut bytes))
        .with_context(|| format!("cannot read {}", file.display()))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use xpando_node::internals::io::identity::{Authority, Identity};

    use super::*;

    fn print(work: impl FnOnce(&mut dyn Write) -> anyhow::Result<()>) -> String {
        let mut out = Vec::new();
        work(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_request_is_signed_elsewhere_and_its_answer_taken() {
        let [there, here] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let authority = Authority::init(there.path(), clock::wall()).unwrap();
        let name: NodeName = "web@10.0.0.7".parse().unwrap();
        let hosts = ["web.example".parse().unwrap()];
        let asked = print(|out| request(&name, &hosts, here.path(), out));
        assert!(asked.contains("xpando-node cert sign request"), "{asked}");
        let carried = there.path().join("request");
        std::fs::copy(here.path().join("web@10.0.0.7/request"), &carried).unwrap();
        let signed = print(|out| sign(&carried, Capabilities::OPERATE, there.path(), out));
        assert!(
            signed.contains("request.answer") && signed.contains("on 10.0.0.7")
                || signed.contains("to 10.0.0.7"),
            "{signed}"
        );
        let answer = here.path().join("request.answer");
        std::fs::copy(there.path().join("request.answer"), &answer).unwrap();
        let taken = print(|out| accept(&answer, here.path(), out));
        assert!(taken.contains(&authority.fingerprint()), "{taken}");
        let node = Identity::load(here.path(), &name, clock::wall()).unwrap();
        assert_eq!(node.cluster(), authority.cluster());
        // Another host asks for the same name: it belongs to the first key until it is released.
        let other = tempfile::tempdir().unwrap();
        print(|out| request(&name, &[], other.path(), out));
        let second = other.path().join("web@10.0.0.7/request");
        let refused = sign(&second, Capabilities::OPERATE, there.path(), &mut Vec::new())
            .unwrap_err()
            .to_string();
        assert!(refused.contains("belongs to another key"), "{refused}");
        authority.release(&name, clock::wall()).unwrap();
        print(|out| sign(&second, Capabilities::OPERATE, there.path(), out));
        // An answer for another host's key is not taken.
        let wrong = other.path().join("web@10.0.0.7/request.answer");
        assert!(accept(&wrong, here.path(), &mut Vec::new()).is_err());
    }

    #[test]
    fn what_is_no_request_or_no_answer_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        Authority::init(dir.path(), clock::wall()).unwrap();
        let file = dir.path().join("f");
        for bytes in [&b""[..], b"rubbish", &[1; 100_000]] {
            std::fs::write(&file, bytes).unwrap();
            let error = sign(&file, Capabilities::OPERATE, dir.path(), &mut Vec::new())
                .unwrap_err()
                .to_string();
            assert!(error.contains("malformed"), "{error}");
            let error = accept(&file, dir.path(), &mut Vec::new()).unwrap_err().to_string();
            assert!(error.contains("malformed"), "{error}");
        }
        let gone =
            sign(&dir.path().join("gone"), Capabilities::OPERATE, dir.path(), &mut Vec::new())
                .unwrap_err();
        assert!(gone.to_string().contains("cannot read"), "{gone}");
    }
}
