//! `xpando-node token`: the tokens that clients show to a node.
//!
//! Owns the words of this command group. Invariant: of what it prints only a new token is a secret, and that
//! is all that `create` prints to standard output.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, anyhow, bail};
use clap::Subcommand;

use xpando_node::internals::actors::timer;
use xpando_node::internals::io::clock;
use xpando_node::internals::io::identity::provider::Providers;
use xpando_node::internals::io::identity::{Authority, Fetched, MAX_TOKEN, TokenError, Tokens};
use xpando_node::internals::proto::token::{Claims, Grant, MAX_ID, MAX_LIFETIME, Role};

use super::output::{self, write_line};

/// Seconds of each unit of a time to live.
const UNITS: [(char, u64); 4] = [('s', 1), ('m', 60), ('h', 60 * 60), ('d', 24 * 60 * 60)];

/// What is said with an error in an `--identity` file.
pub(super) const IDENTITY: &str =
    "a file of --identity (XPANDO_IDENTITY) cannot be used: correct it, or leave it out";

/// Make, check and revoke the tokens that clients show to a node.
#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token for a client and print it
    ///
    /// Needs ca/key.pem and ca/token.key; the latter is made where it is missing, and then ca/tokens
    /// must be copied beside ca/cert.pem on every node. Anyone who has the token is who it says.
    Create {
        /// Whose token it is, for example a user's name
        #[arg(long, value_name = "WHO")]
        sub: String,
        /// Who the bearer is to a node: user, node_operator or admin
        #[arg(long, default_value_t = Role::User)]
        role: Role,
        /// What the bearer may do: room:1, room:*, room:1=join or room:1=push; repeatable [default: all
        /// that the role allows]
        #[arg(long = "topics", value_name = "GRANT")]
        topics: Vec<Grant>,
        /// How long it is good: 30s, 15m, 24h, 7d; at most 366d
        #[arg(long, value_name = "TIME", default_value = "24h", value_parser = lifetime)]
        ttl: Duration,
    },
    /// Show what a token says if it counts, and fail if not
    ///
    /// Judges it as a node with this certificate directory does. Needs no private key.
    Verify {
        /// The token; - reads it from standard input
        token: String,
        /// Print the claims as JSON
        #[arg(long)]
        json: bool,
        /// Settings of a system whose tokens count, too, as a node is started with them; may be repeated
        #[arg(long, value_name = "FILE", env = "XPANDO_IDENTITY", value_delimiter = ',')]
        identity: Vec<PathBuf>,
    },
    /// Revoke a token
    ///
    /// Adds its id to ca/tokens in the certificate directory. Needs ca/key.pem. A node that runs with this directory reads
    /// the list within seconds and sends it to all others.
    Revoke {
        /// The token, or its id (the claim jti); - reads either from standard input
        #[arg(value_name = "TOKEN|ID")]
        token: String,
        /// When the token with this id ends (its claim exp, in seconds since 1970), so that it can be
        /// forgotten then [default: what the token says; 366 days from now for an id]
        #[arg(long, value_name = "SECONDS")]
        exp: Option<u64>,
    },
}

/// Runs one command of the group on the directory `certs`, printing to `out`.
pub(crate) fn run(command: TokenCommand, certs: &Path, out: &mut dyn Write) -> anyhow::Result<()> {
    match command {
        TokenCommand::Create { sub, role, topics, ttl } => {
            let authority = Authority::open(certs)?;
            let token = authority.token(&sub, role, topics, ttl, clock::wall())?;
            Ok(write_line!(out, "{token}")?)
        }
        TokenCommand::Verify { token, json, identity } => {
            let claims = verified(&given(token)?, &identity, certs)?;
            if json {
                return output::pretty_json(out, &claims);
            }
            show(&claims, out)
        }
        TokenCommand::Revoke { token, exp } => revoke(&given(token)?, exp, certs, out),
    }
}

/// What a token says, if it counts at a node with these settings.
fn verified(token: &str, identity: &[PathBuf], certs: &Path) -> anyhow::Result<Claims> {
    let (providers, now) = (Providers::open(identity, None).context(IDENTITY)?, clock::wall());
    let (mut judged, mut why) = (providers.verify(token, now), Vec::new());
    if matches!(judged, Some(Err(TokenError::NoKeySet))) {
        why = fetch(&providers)?;
        judged = providers.verify(token, now);
    }
    let judged = match judged {
        None => Tokens::open(certs)?.verify(token, now),
        // The cluster's own list revokes tokens of others, too, where there is one.
        Some(Ok((claims, _))) => match Tokens::open(certs) {
            Ok(tokens) if tokens.revoked(&claims.jti) => Err(TokenError::Revoked),
            Ok(_) | Err(_) => Ok(claims),
        },
        Some(Err(refused)) => Err(refused),
    };
    judged.map_err(|refused| match why.is_empty() || refused != TokenError::NoKeySet {
        true => anyhow!("token refused ({}): {refused}", refused.label()),
        false => anyhow!("token refused ({}): {refused}: {}", refused.label(), why.join("; ")),
    })
}

/// Fetches the key sets, as a node does when it starts; which cannot be fetched, and why.
fn fetch(providers: &Providers) -> anyhow::Result<Vec<String>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut failed = Vec::new();
    for fetch in providers.due(timer::now) {
        let Fetched { url, found, .. } = runtime.block_on(fetch);
        failed.extend(found.err().map(|error| format!("{url}: {error}")));
    }
    Ok(failed)
}

/// The argument, or for `-` what is on standard input.
fn given(argument: String) -> anyhow::Result<String> {
    if argument != "-" {
        return Ok(argument);
    }
    let mut text = String::new();
    let most = u64::try_from(MAX_TOKEN).unwrap_or(u64::MAX).saturating_add(2);
    std::io::stdin().take(most).read_to_string(&mut text).context("cannot read the token")?;
    Ok(text.trim().to_owned())
}

fn show(claims: &Claims, out: &mut dyn Write) -> anyhow::Result<()> {
    let made = UNIX_EPOCH.checked_add(Duration::from_secs(claims.iat)).unwrap_or(UNIX_EPOCH);
    let topics: Vec<String> = claims.topics.iter().map(Grant::to_string).collect();
    let topics =
        if topics.is_empty() { "all that the role allows".to_owned() } else { topics.join(" ") };
    write_line!(out, "subject      {}", claims.sub)?;
    write_line!(out, "role         {}", claims.role)?;
    write_line!(out, "topics       {topics}")?;
    write_line!(out, "id           {}", claims.jti)?;
    write_line!(out, "issuer       {}", claims.iss)?;
    write_line!(out, "made         {}", clock::rfc3339(made))?;
    write_line!(out, "valid until  {}", clock::rfc3339(claims.expires()))?;
    Ok(())
}

fn revoke(token: &str, exp: Option<u64>, certs: &Path, out: &mut dyn Write) -> anyhow::Result<()> {
    let authority = Authority::open(certs)?;
    let now = clock::wall();
    // A signature alone is longer than any id.
    let (jti, ends) = if token.len() > MAX_ID {
        let claims = Tokens::open(certs)?
            .claims(token, now)
            .map_err(|refused| anyhow!("not revoked ({}): {refused}", refused.label()))?;
        let ends = claims.expires();
        (claims.jti, ends)
    } else {
        (token.to_owned(), now + MAX_LIFETIME)
    };
    let ends = match exp.map(|exp| UNIX_EPOCH.checked_add(Duration::from_secs(exp))) {
        None => ends,
        Some(Some(told)) => told,
        Some(None) => bail!("--exp {} is no time", exp.unwrap_or_default()),
    };
    let revoked = authority.revoke_token(&jti, ends, now)?;
    write_line!(out, "token        {jti}")?;
    if !revoked.added {
        write_line!(out, "revoked      nothing new: it was revoked before, or has expired")?;
    }
    write_line!(out, "list         {}  ({} in all)", revoked.path.display(), revoked.total)?;
    write_line!(out)?;
    write_line!(
        out,
        "A node that runs with this directory reads the list within seconds and sends it to all others."
    )?;
    Ok(())
}

/// A time to live, or since when: a number and its unit.
pub(super) fn lifetime(text: &str) -> Result<Duration, String> {
    let parsed = UNITS.iter().find_map(|(unit, seconds)| {
        let number = text.strip_suffix(*unit)?;
        let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| number.parse::<u64>().ok()?.checked_mul(*seconds)).flatten()
    });
    let lifetime = parsed.map(Duration::from_secs);
    lifetime
        .filter(|lifetime| !lifetime.is_zero() && *lifetime <= MAX_LIFETIME)
        .ok_or_else(|| "a time such as 30s, 15m, 24h or 7d is expected, at most 366d".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_to_live_has_a_unit_and_an_end() {
        for (text, seconds) in
            [("30s", 30), ("15m", 900), ("24h", 86_400), ("7d", 604_800), ("366d", 31_622_400)]
        {
            assert_eq!(lifetime(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        let huge = format!("{}d", u64::MAX);
        for bad in ["", "s", "30", "0s", "-1h", "+1h", "1.5h", "1w", "367d", "24 h", "1é", &huge] {
            assert!(lifetime(bad).is_err(), "{bad:?}");
        }
    }

    fn printed(command: TokenCommand, certs: &Path) -> anyhow::Result<String> {
        let mut out = Vec::new();
        run(command, certs, &mut out)?;
        Ok(String::from_utf8(out).unwrap())
    }

    fn create(certs: &Path, topics: &[&str]) -> String {
        let topics = topics.iter().map(|grant| grant.parse().unwrap()).collect();
        let (sub, role, ttl) = ("alice".to_owned(), Role::User, Duration::from_secs(60));
        printed(TokenCommand::Create { sub, role, topics, ttl }, certs).unwrap().trim().to_owned()
    }

    fn verify(token: &str, json: bool, certs: &Path) -> anyhow::Result<String> {
        let identity = Vec::new();
        printed(TokenCommand::Verify { token: token.to_owned(), json, identity }, certs)
    }

    fn revoke(token: &str, exp: Option<u64>, certs: &Path) -> anyhow::Result<String> {
        printed(TokenCommand::Revoke { token: token.to_owned(), exp }, certs)
    }

    fn authority() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        Authority::init(dir.path(), clock::wall()).unwrap();
        dir
    }

    #[test]
    fn a_token_says_what_was_asked_for() {
        let dir = authority();
        let told =
            verify(&create(dir.path(), &["room:*", "chat:1=join"]), false, dir.path()).unwrap();
        for part in
            ["subject      alice\n", "role         user\n", "topics       room:* chat:1=join\n"]
        {
            assert!(told.contains(part), "{told}");
        }
        let told = verify(&create(dir.path(), &[]), false, dir.path()).unwrap();
        assert!(told.contains("topics       all that the role allows\n"), "{told}");
    }

    #[test]
    fn a_token_is_revoked_by_itself_or_by_its_id() {
        let dir = authority();
        let [first, second] = [create(dir.path(), &[]), create(dir.path(), &[])];
        let told = revoke(&first, None, dir.path()).unwrap();
        assert!(told.contains("ca/tokens  (1 in all)"), "{told}");
        let error = verify(&first, false, dir.path()).unwrap_err().to_string();
        assert_eq!(error, "token refused (revoked): it is revoked");
        assert!(revoke(&first, None, dir.path()).unwrap().contains("nothing new"));

        let claims: Claims =
            serde_json::from_str(&verify(&second, true, dir.path()).unwrap()).unwrap();
        let told = revoke(&claims.jti, None, dir.path()).unwrap();
        assert!(told.contains("(2 in all)"), "{told}");
        assert!(verify(&second, false, dir.path()).is_err());
        let list = std::fs::read_to_string(dir.path().join("ca/tokens")).unwrap();
        let line = list.lines().find(|line| line.contains(&claims.jti)).unwrap();
        let until: u64 = line.rsplit_once(' ').unwrap().1.parse().unwrap();
        assert!(
            until >= claims.iat + MAX_LIFETIME.as_secs(),
            "a bare id is kept for 366 days: {line}"
        );

        // What ended long ago needs no place on the list.
        assert!(revoke("x", Some(1), dir.path()).unwrap().contains("nothing new"));
        let error = revoke("x", Some(u64::MAX), dir.path()).unwrap_err().to_string();
        assert!(error.contains("is no time"), "{error}");
        let error = revoke(&"x".repeat(65), None, dir.path()).unwrap_err().to_string();
        assert!(error.starts_with("not revoked (malformed)"), "{error}");
        let error = revoke("a b", None, dir.path()).unwrap_err().to_string();
        assert!(error.contains("a token's id has"), "{error}");
    }

    #[test]
    fn without_the_authoritys_key_only_verify_works() {
        let dir = authority();
        let token = create(dir.path(), &[]);
        for key in ["ca/key.pem", "ca/token.key"] {
            std::fs::remove_file(dir.path().join(key)).unwrap();
        }
        assert!(verify(&token, false, dir.path()).is_ok());
        let error = revoke(&token, None, dir.path()).unwrap_err().to_string();
        assert!(error.contains("ca/key.pem is missing"), "{error}");
        assert!(error.contains("made on the host that has it"), "{error}");
        std::fs::remove_file(dir.path().join("ca/tokens")).unwrap();
        let error = verify(&token, false, dir.path()).unwrap_err().to_string();
        assert!(
            error.starts_with("token refused (no_key): ") && error.contains("a copy of ca/tokens")
        );
        std::fs::remove_file(dir.path().join("ca/cert.pem")).unwrap();
        let error = verify(&token, false, dir.path()).unwrap_err().to_string();
        assert!(error.contains("ca/cert.pem is missing"), "{error}");
    }
}
