//! `xpando-node join`: a machine becomes a node, by an invitation.
//!
//! Owns the words of this command. Invariants: the invitation is printed nowhere; all addresses in it are asked before
//! anything is given up, for a refusal proves nothing of who sent it; what to do next is printed as a command.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use clap::Args;
use xpando_node::internals::actors::timer;
use xpando_node::internals::io::clock;
use xpando_node::internals::io::enrolment::{AskError, ask};
use xpando_node::internals::io::identity::enrol::{
    Code, EnrolError, Granted, Joiner, Line, keep_places,
};
use xpando_node::internals::io::seeds::Seed;
use xpando_node::internals::io::tls::enrol::{ConnectError, Expected};
use xpando_node::internals::proto::codec::read_hexadecimal;
use xpando_node::internals::proto::enrol::{AuthorityHash, Host, Refused, RequestId};
use xpando_node::internals::proto::node::NodeName;

use zeroize::Zeroizing;

use super::output::{notice, write_line};
use super::run::{self, RunArgs};
use super::token::lifetime;

/// Between two looks whether a request was approved.
const LOOK: Duration = Duration::from_secs(2);
/// The longest text that is read as an invitation, in bytes.
const MAX_LINE: u64 = 4096;

#[derive(Debug, Args)]
pub(super) struct JoinArgs {
    /// The invitation that `xpando-node invite` printed, or a spoken one; - reads it from standard input
    #[arg(value_name = "LINE", required_unless_present = "token_file")]
    line: Option<String>,

    /// A node to ask, with a spoken invitation or a token of this machine [default port: 4697]
    #[arg(long, value_name = "HOST[:PORT]")]
    at: Option<Seed>,

    /// A token of this machine in the place of an invitation, such as a pod's projected service-account token
    #[arg(long, value_name = "FILE", conflicts_with = "line", requires_all = ["at", "authority"])]
    token_file: Option<PathBuf>,

    /// With a token: the SHA-256 of the certificate of the cluster's authority, as `cert show --json` has it
    #[arg(long, value_name = "AB:CD:…", value_parser = hash, requires = "token_file")]
    authority: Option<AuthorityHash>,

    /// Start the node when it has its certificate
    #[arg(long)]
    start: bool,

    /// Another name or address of this machine, to stand in its certificate; may be repeated
    #[arg(long = "host", value_name = "HOST")]
    hosts: Vec<Host>,

    /// How long to wait for somebody to approve the request: 30s, 15m, 24h
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = lifetime)]
    wait: Duration,

    #[command(flatten)]
    run: RunArgs,
}

pub(super) fn join(args: JoinArgs) -> anyhow::Result<()> {
    let JoinArgs { line, at, token_file, authority, start, hosts, wait, run } = args;
    let invitation = match (line, token_file, authority, at) {
        (None, Some(file), Some(authority), Some(at)) => Invitation::Token(file, authority, [at]),
        (line, _, _, at) => Invitation::read(&given(line.unwrap_or_default())?, at)?,
    };
    let (name, certs) = run.who()?;
    let joiner = match Joiner::prepare(&certs, &name, &hosts, clock::wall()) {
        Ok(joiner) => joiner,
        // The same command again, after a restart of the machine perhaps.
        Err(error @ EnrolError::AlreadyJoined { .. }) if start => {
            notice(format_args!("{error}"));
            return run::run(run.joining(invitation.addresses().iter().cloned()));
        }
        Err(error) => return Err(error.into()),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let granted = match &invitation {
        Invitation::Line(line) => runtime.block_on(granted(&joiner, line, wait)),
        Invitation::Spoken(code, [at]) => runtime.block_on(spoken(&joiner, code, at)),
        Invitation::Token(file, authority, [at]) => {
            runtime.block_on(by_token(&joiner, file, *authority, at))
        }
    }?;
    drop(runtime);
    let places = granted.places(invitation.addresses());
    keep_places(&certs, &name, &places)?;
    joiner.write(&granted)?;
    tell(&granted, &name, &certs)?;
    if start {
        return run::run(run.joining(places));
    }
    let mut out = std::io::stdout().lock();
    Ok(write_line!(&mut out, "Next: xpando-node{}", run.told())?)
}

/// An invitation, as it was given.
enum Invitation {
    Line(Line),
    /// A code, and the node to ask.
    Spoken(Code, [Seed; 1]),
    /// A token of this machine, the authority that is meant, and the node to ask.
    Token(PathBuf, AuthorityHash, [Seed; 1]),
}

impl Invitation {
    fn read(text: &str, at: Option<Seed>) -> anyhow::Result<Self> {
        match (text.trim().parse::<Code>(), at) {
            (Ok(code), Some(at)) => Ok(Self::Spoken(code, [at])),
            (Ok(_), None) => {
                bail!("say with --at HOST[:PORT] which node to ask with a spoken invitation")
            }
            (Err(_), Some(_)) => bail!("--at is for spoken invitations, such as 7-guitar-sunset"),
            (Err(_), None) => Ok(Self::Line(text.parse()?)),
        }
    }

    /// Where nodes of the cluster are.
    fn addresses(&self) -> &[Seed] {
        match self {
            Self::Line(line) => line.addresses(),
            Self::Spoken(_, at) | Self::Token(_, _, at) => at,
        }
    }
}

/// Asks with a spoken invitation: agrees on a key, and proves with it that the words are the right ones. That is tried once:
/// a wrong word burns the invitation.
async fn spoken(joiner: &Joiner, code: &Code, at: &Seed) -> anyhow::Result<Granted> {
    let failed = || format!("no answer from {at}");
    let begun = joiner.ask_spoken(code, clock::wall())?;
    let share = ask(at, Expected::Anyone, begun.bytes()).await.with_context(failed)?;
    let asked = joiner.go_on(begun, &share, clock::wall())?;
    let answer = ask(at, Expected::Anyone, asked.bytes()).await.with_context(failed)?;
    Ok(asked.check(&answer, clock::wall())?)
}

/// Asks with a token of this machine, which a node of that authority alone gets to see.
async fn by_token(
    joiner: &Joiner,
    file: &Path,
    authority: AuthorityHash,
    at: &Seed,
) -> anyhow::Result<Granted> {
    let read = || format!("cannot read {}", file.display());
    let token = Zeroizing::new(std::fs::read_to_string(file).with_context(read)?);
    let asked = joiner.ask_machine(token.trim(), Some(authority), clock::wall())?;
    let answer = ask(at, Expected::Authority(authority), asked.bytes()).await;
    let answer = answer.with_context(|| format!("no answer from {at}"))?;
    Ok(asked.check(&answer, clock::wall())?)
}

/// A fingerprint, as `cert show --json` and `openssl x509 -fingerprint -sha256` print it.
fn hash(text: &str) -> Result<AuthorityHash, String> {
    let wrong = || "it is not a SHA-256: 64 hexadecimal digits, with or without colons".to_owned();
    let bytes = read_hexadecimal(&text.replace(':', "")).and_then(|bytes| bytes.try_into().ok());
    bytes.map(AuthorityHash).ok_or_else(wrong)
}

/// The argument, or for `-` what is on standard input.
fn given(argument: String) -> anyhow::Result<String> {
    if argument != "-" {
        return Ok(argument);
    }
    let mut text = String::new();
    std::io::stdin().take(MAX_LINE).read_to_string(&mut text).context("cannot read the line")?;
    Ok(text)
}

fn tell(granted: &Granted, name: &NodeName, certs: &Path) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    let dir: PathBuf = certs.join(name.as_str());
    write_line!(&mut out, "node         {name}")?;
    write_line!(&mut out, "valid until  {}", clock::rfc3339(granted.validity().not_after))?;
    if let Some(authority) = granted.authority_fingerprint() {
        write_line!(&mut out, "authority    {authority}")?;
    }
    write_line!(&mut out, "certificate  {}/cert.pem", dir.display())?;
    write_line!(&mut out, "private key  {}/key.pem  (made here, and here alone)", dir.display())?;
    Ok(())
}

/// What came of asking at all addresses once.
struct Round {
    /// Of each address that gave no answer that counts, why.
    failed: Vec<(String, String)>,
    refused: Vec<(String, Refused)>,
}

/// Asks until the certificate is granted, or nothing more can come.
async fn granted(joiner: &Joiner, line: &Line, wait: Duration) -> anyhow::Result<Granted> {
    let until = timer::now() + wait;
    let mut told: Option<RequestId> = None;
    loop {
        let round = match once(joiner, line).await? {
            Ok(granted) => return Ok(granted),
            Err(round) => round,
        };
        let pause = match round.passes() {
            Some(Passing::Waiting(request)) => {
                if told.replace(request) != Some(request) {
                    notice(format_args!(
                        "request {request} waits: have it approved with `xpando-node requests approve {request}` where certificates are issued"
                    ));
                }
                LOOK
            }
            Some(Passing::Later(pause)) => pause,
            None => return Err(round.error(line)),
        };
        if timer::now() + pause > until {
            return Err(round
                .error(line)
                .context("nobody approved the request in time; the same command goes on"));
        }
        tokio::time::sleep(pause).await;
    }
}

/// Asks at each address, until one grants.
async fn once(joiner: &Joiner, line: &Line) -> anyhow::Result<Result<Granted, Round>> {
    let mut round = Round { failed: Vec::new(), refused: Vec::new() };
    if line.addresses().is_empty() {
        bail!("the invitation has no address of a node: ask for another one");
    }
    for seed in line.addresses() {
        // Each time with the clock of now.
        let asked = joiner.ask(line, clock::wall())?;
        let answer = match ask(seed, Expected::Authority(line.authority()), asked.bytes()).await {
            Ok(answer) => answer,
            Err(AskError::Tls(ConnectError::Denied)) => {
                round.refused.push((seed.to_string(), Refused::RateLimited { after: 2000 }));
                continue;
            }
            Err(error) => {
                round.failed.push((seed.to_string(), error.to_string()));
                continue;
            }
        };
        match asked.check(&answer, clock::wall()) {
            Ok(granted) => return Ok(Ok(granted)),
            Err(EnrolError::Refused(refused)) => round.refused.push((seed.to_string(), refused)),
            Err(error @ EnrolError::Answer(_)) => {
                round.failed.push((seed.to_string(), error.to_string()));
            }
            Err(other) => return Err(other.into()),
        }
    }
    Ok(Err(round))
}

/// A refusal that may pass.
enum Passing {
    Waiting(RequestId),
    Later(Duration),
}

impl Round {
    fn passes(&self) -> Option<Passing> {
        let mut later = None;
        for (_, refused) in &self.refused {
            if let Refused::Waiting { request } = refused {
                return Some(Passing::Waiting(*request));
            }
            if let Refused::RateLimited { after } = refused {
                let pause = Duration::from_millis(*after).min(10 * LOOK);
                later = Some(Passing::Later(pause));
            }
        }
        let final_word = self.refused.iter().any(|(_, refused)| !refused.passes());
        later.filter(|_| !final_word)
    }

    /// Why there is no certificate: what nodes said, once where they agree; else what happened at each address.
    fn error(&self, line: &Line) -> anyhow::Error {
        let said: BTreeSet<String> = self.refused.iter().map(|(_, it)| it.to_string()).collect();
        if let (1, Some(said)) = (said.len(), said.first()) {
            return anyhow!("{said}");
        }
        let said = self.refused.iter().map(|(at, refused)| (at, refused.to_string()));
        let failed = self.failed.iter().map(|(at, why)| (at, why.clone()));
        let all = said.chain(failed).map(|(at, why)| format!("\n  {at}: {why}"));
        let all: String = all.collect();
        let of = line.addresses().len();
        anyhow!("no certificate, of {of} addresses in the invitation none helps:{all}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_read_with_colons_and_without() {
        let plain = "0a".repeat(32);
        let colons = vec!["0A"; 32].join(":");
        assert_eq!(hash(&plain), Ok(AuthorityHash([10; 32])));
        assert_eq!(hash(&colons), hash(&plain));
        for wrong in ["", "0a", &plain[1..], &format!("{plain}0a"), &plain.replace('a', "é")] {
            assert!(hash(wrong).is_err(), "{wrong}");
        }
    }
}
