//! `xpando-node cert`: the cluster's authority and its nodes' certificates.
//!
//! Owns the words of this command group. Invariant: it prints nothing secret, and what a reader has
//! to do next is printed as a command that can be copied.

mod by_file;

use std::io::{BufRead as _, BufReader, Read as _, Write};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Subcommand;
use xpando_node::internals::io::clock;
use xpando_node::internals::io::identity::{
    Authority, CertificateInfo, CertificateKind, LeafOptions, Revocee, Validity, backup, inventory,
    restore, shell_word,
};
use xpando_node::internals::proto::capability::Capabilities;
use xpando_node::internals::proto::enrol::Host;
use xpando_node::internals::proto::node::NodeName;

use zeroize::Zeroizing;

use super::can::Can;
use super::output::{self, Columns, Field, notice, write_line};
use super::remedy;

/// Longest passphrase that is read, in bytes.
const MAX_PASSPHRASE: u64 = 4096;

/// Make and inspect the certificates that let nodes trust each other.
#[derive(Debug, Subcommand)]
pub(crate) enum CertCommand {
    /// Make the cluster's certificate authority
    ///
    /// Writes ca/cert.pem and ca/key.pem in the certificate directory, and for clients' tokens
    /// ca/tokens and ca/token.key. Do this once for a cluster, on the host that is to issue its
    /// certificates: anyone who has ca/key.pem can make any node, and anyone who has ca/token.key any
    /// token, so keep them there and back them up. An authority that exists is never replaced.
    Init,
    /// Issue a certificate for a node
    ///
    /// Writes NAME/cert.pem and NAME/key.pem in the certificate directory, valid for 90 days. Needs
    /// ca/key.pem. A node on another host needs copies of ca/cert.pem and of the directory NAME.
    ///
    /// A private key that is there already stays, so that the node keeps its id. To give a node a
    /// new key, remove the directory NAME first and give --replace, which revokes the key before. Unless it is said what the
    /// node may do, it may do what the certificate before let it, and without one everything: it lies beside the authority's key.
    Issue {
        /// The node's name, for example web@10.0.0.7 or web@db.example
        name: NodeName,
        /// Replace a certificate that has not expired
        #[arg(long)]
        replace: bool,
        /// Another name or address of the node's host, for clients that check it; may be repeated
        ///
        /// Without any, those of the certificate that is replaced stay.
        #[arg(long = "host", value_name = "HOST")]
        hosts: Vec<Host>,
        #[command(flatten)]
        can: Can,
    },
    /// Revoke every certificate that was issued to a node, or one
    ///
    /// Adds their serial numbers to the revocation list ca/crl.pem in the certificate directory. Needs
    /// ca/key.pem. A node that runs with this directory reads the list within seconds and sends it to all others: they end
    /// their links with revoked nodes, and refuse them from then on. `xpando-node revoke` does the same at once.
    ///
    /// `cert issue NAME` makes a fresh certificate for the name, with a new key.
    ///
    /// By the serial number of an intermediate authority (`cert show --json`) all that it issued is refused; where the root's
    /// key is, it also goes from the trust list ca/trust, and the lists are signed anew: carry ca/crl.pem and ca/tokens of a
    /// node there first, and ca/trust and both back afterwards, unless a node runs there.
    Revoke {
        /// The node, or a serial number in hexadecimal
        #[arg(value_name = "NAME@HOST|SERIAL")]
        what: Revocee,
    },
    /// Free a name: revoke what was issued to it
    ///
    /// A name belongs to its key: no other key gets a certificate of the name until it is released. The key before it is
    /// revoked for good. Otherwise as `cert revoke`.
    Release {
        /// The node's name
        name: NodeName,
    },
    /// Make a key, and a request for its certificate
    ///
    /// For an authority on a host that nodes do not reach. Writes NAME/key.pem and NAME/request in the certificate
    /// directory; the key stays. Carry the request to the authority's host, run `cert sign` there, and `cert accept` here
    /// with the answer. With a key that is there already the request is for that key.
    ///
    /// With --authority the request is for an intermediate authority: this host is then to issue nodes' certificates, and the
    /// root's key may stay offline. Writes ca/request.key and ca/request.
    Request {
        /// The node's name
        #[arg(required_unless_present = "authority")]
        name: Option<NodeName>,
        /// Ask for an intermediate authority
        #[arg(long, conflicts_with_all = ["name", "hosts"])]
        authority: bool,
        /// Another name or address of this host, for clients that check it; may be repeated
        #[arg(long = "host", value_name = "HOST")]
        hosts: Vec<Host>,
    },
    /// Sign a request that was carried here
    ///
    /// Writes FILE.answer: the certificate, and what a node needs beside it. Needs ca/key.pem. Refuses a name that belongs
    /// to another key.
    ///
    /// With --authority the request is one of `cert request --authority`: whoever has its key can make any node until its
    /// certificate is revoked by its serial number, but no authority. The answer is the new trust list. Needs the root's key.
    Sign {
        /// The request
        file: PathBuf,
        /// Make an intermediate authority
        #[arg(long)]
        authority: bool,
        #[command(flatten)]
        can: Can,
    },
    /// Take the answer to a request of this host
    ///
    /// Writes NAME/cert.pem, and in ca what is not there yet: cert.pem, tokens, crl.pem. Of a request for an intermediate
    /// authority: ca/trust and ca/cert.pem, and ca/key.pem becomes its key. A node that runs here sends the list to all others.
    Accept {
        /// The answer
        file: PathBuf,
    },
    /// Write an encrypted copy of the authority
    ///
    /// Everything in the directory ca: keys, certificates, lists, what was issued. Keep it apart from this host: with it and the
    /// passphrase the cluster loses nothing when the host is lost. Needs ca/key.pem.
    Backup {
        /// The file to write; one that is there is replaced
        file: PathBuf,
        /// A file whose first line is the passphrase, of at least 12 bytes; `-` for standard input
        #[arg(long, value_name = "FILE")]
        passphrase_file: PathBuf,
    },
    /// Put the authority of a backup into the certificate directory
    ///
    /// Beside the certificates of a node that has joined, too: it issues from then on. An authority's key that is there is
    /// never replaced.
    Restore {
        /// The backup
        file: PathBuf,
        /// A file whose first line is the passphrase; `-` for standard input
        #[arg(long, value_name = "FILE")]
        passphrase_file: PathBuf,
    },
    /// List the certificates in the certificate directory
    ///
    /// Shows whom each certificate belongs to, until when it is valid, and what is wrong with it.
    /// Reads no private key.
    Show {
        /// Print a JSON array instead of a table
        #[arg(long)]
        json: bool,
    },
}

/// Runs one command of the group on the directory `certs`, printing to `out`.
pub(crate) fn run(command: CertCommand, certs: &Path, out: &mut dyn Write) -> anyhow::Result<()> {
    match command {
        CertCommand::Init => init(certs, out),
        CertCommand::Issue { name, replace, hosts, can } => {
            let said = can.capabilities()?;
            let options = LeafOptions { hosts: &hosts, capabilities: said.as_ref() };
            issue(&name, replace, options, certs, out)
        }
        CertCommand::Revoke { what } => revoke(&what, certs, out),
        CertCommand::Release { name } => revoke(&Revocee::Node(name), certs, out),
        CertCommand::Request { name: Some(name), hosts, authority: _ } => {
            by_file::request(&name, &hosts, certs, out)
        }
        CertCommand::Request { name: None, .. } => by_file::request_authority(certs, out),
        CertCommand::Sign { file, authority: true, can: _ } => {
            by_file::sign_authority(&file, certs, out)
        }
        CertCommand::Sign { file, authority: false, can } => {
            by_file::sign(&file, can.capabilities()?.unwrap_or(Capabilities::OPERATE), certs, out)
        }
        CertCommand::Accept { file } => by_file::accept(&file, certs, out),
        CertCommand::Backup { file, passphrase_file } => {
            back_up(certs, &file, &passphrase(&passphrase_file)?, out)
        }
        CertCommand::Restore { file, passphrase_file } => {
            let backup =
                std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
            let authority = restore(certs, &backup, &passphrase(&passphrase_file)?)?;
            write_line!(out, "cluster      {}", authority.cluster())?;
            write_line!(out, "fingerprint  {}", authority.fingerprint())?;
            write_line!(out, "restored to  {}/ca", certs.display())?;
            Ok(())
        }
        CertCommand::Show { json: true } => output::pretty_json(out, &inventory(certs)?),
        CertCommand::Show { json: false } => show(certs, out),
    }
}

fn init(certs: &Path, out: &mut dyn Write) -> anyhow::Result<()> {
    let authority = Authority::init(certs, clock::wall())?;
    let dir = certs.display();
    write_line!(out, "cluster      {}", authority.cluster())?;
    write_line!(out, "fingerprint  {}", authority.fingerprint())?;
    write_line!(out, "certificate  {dir}/ca/cert.pem  (every node needs a copy)")?;
    write_line!(out, "private key  {dir}/ca/key.pem   (stays on this host; back it up)")?;
    write_line!(out, "tokens       {dir}/ca/tokens    (goes to all nodes by itself)")?;
    write_line!(out, "token key    {dir}/ca/token.key (stays on this host; back it up)")?;
    write_line!(out)?;
    let word = shell_word(certs);
    write_line!(out, "Next, for each node: xpando-node cert issue NAME@HOST --certs {word}")?;
    Ok(())
}

fn issue(
    name: &NodeName,
    replace: bool,
    options: LeafOptions<'_>,
    certs: &Path,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let authority = Authority::open(certs)?;
    let validity = Validity::leaf(clock::wall());
    let identity = if replace {
        authority.reissue(certs, name, validity, options)?
    } else {
        authority.issue_with(certs, name, validity, options)?
    };
    if authority.others_of(name, identity.id())? > 0 {
        notice(format_args!(
            "{name} has another key, whose certificate counts until it ends: `cert issue {name} --replace` revokes it"
        ));
    }
    let dir = certs.display();
    write_line!(out, "node         {name}")?;
    write_line!(out, "id           {}", identity.id())?;
    write_line!(out, "cluster      {}", identity.cluster())?;
    write_line!(out, "valid until  {}", clock::rfc3339(identity.validity().not_after))?;
    write_line!(out, "may          {}", identity.capabilities())?;
    write_line!(out, "fingerprint  {}", identity.fingerprint())?;
    write_line!(out, "certificate  {dir}/{name}/cert.pem")?;
    write_line!(out, "private key  {dir}/{name}/key.pem")?;
    write_line!(out)?;
    if name.is_loopback() {
        write_line!(out, "The node runs on this host and finds its files there.")?;
    } else {
        write_line!(
            out,
            "Copy to the certificate directory on {}, keeping file modes:",
            name.host()
        )?;
        write_line!(out, "  {dir}/ca/cert.pem  as ca/cert.pem (never ca/key.pem)")?;
        write_line!(out, "  {dir}/{name}/      as {name}/")?;
    }
    Ok(())
}

fn revoke(what: &Revocee, certs: &Path, out: &mut dyn Write) -> anyhow::Result<()> {
    let revoked = Authority::open(certs)?.revoke_for(what, None, clock::wall())?;
    if let Revocee::Node(name) = what {
        write_line!(out, "node         {name}")?;
    }
    if revoked.added.is_empty() {
        write_line!(out, "revoked      nothing new: all its certificates were revoked before")?;
    }
    for serial in &revoked.added {
        write_line!(out, "revoked      serial {serial}")?;
    }
    write_line!(out, "list         {}  ({} in all)", revoked.path.display(), revoked.total)?;
    write_line!(out)?;
    write_line!(
        out,
        "A node that runs with this directory reads the list within seconds and sends it to all others."
    )?;
    if let Revocee::Node(name) = what {
        write_line!(out, "For a fresh certificate and a new key:")?;
        write_line!(out, "  xpando-node cert issue {name} --certs {}", shell_word(certs))?;
    }
    Ok(())
}

fn back_up(certs: &Path, file: &Path, passphrase: &str, out: &mut dyn Write) -> anyhow::Result<()> {
    backup(certs, file, passphrase)?;
    write_line!(out, "backup       {}", file.display())?;
    write_line!(out)?;
    write_line!(out, "On another host, with the same passphrase:")?;
    write_line!(out, "  xpando-node cert restore {} --passphrase-file FILE", shell_word(file))?;
    Ok(())
}

/// The first line of a file.
fn passphrase(file: &Path) -> anyhow::Result<Zeroizing<String>> {
    let mut line = Zeroizing::new(String::new());
    if file == Path::new("-") {
        std::io::stdin().lock().take(MAX_PASSPHRASE).read_line(&mut line)?;
    } else {
        let open = || format!("cannot read {}", file.display());
        let file = std::fs::File::open(file).with_context(open)?;
        BufReader::new(file.take(MAX_PASSPHRASE)).read_line(&mut line)?;
    }
    let text = Zeroizing::new(line.trim_end_matches(['\n', '\r']).to_owned());
    Ok(text)
}

fn show(certs: &Path, out: &mut dyn Write) -> anyhow::Result<()> {
    let found = inventory(certs)?;
    if found.is_empty() {
        let (dir, word) = (certs.display(), shell_word(certs));
        write_line!(
            out,
            "No certificates in {dir}. To start: xpando-node cert init --certs {word}"
        )?;
        return Ok(());
    }
    let now = clock::rfc3339(clock::wall());
    let mut table = Columns::new(&["NAME", "ID", "VALID UNTIL", "STATE"]);
    for info in &found {
        table.row([
            Field::new(title(info)),
            Field::or_dash(info.id.as_ref()),
            Field::or_dash(info.not_after.as_ref()),
            Field::new(state(info, &now)),
        ]);
    }
    table.print(out)?;
    // Explanations are long and would tear the table apart.
    for info in &found {
        if let Some(error) = &info.error {
            write_line!(out)?;
            write_line!(out, "{}: {error}", title(info))?;
            for command in remedy::words(&info.path, &info.remedy) {
                write_line!(out, "  {command}")?;
            }
        }
    }
    Ok(())
}

fn title(info: &CertificateInfo) -> String {
    match &info.name {
        Some(name) => name.to_string(),
        None if info.kind == CertificateKind::Intermediate => "(intermediate)".to_owned(),
        None if info.development => "(development authority)".to_owned(),
        None => "(authority)".to_owned(),
    }
}

/// One word on a certificate. RFC 3339 texts of one length compare as their instants do.
fn state(info: &CertificateInfo, now: &str) -> &'static str {
    let past = |end: &Option<String>| end.as_deref().is_some_and(|end| end < now);
    let future = |start: &Option<String>| start.as_deref().is_some_and(|start| start > now);
    match info {
        _ if info.error.is_some() => "unusable",
        _ if info.revoked => "revoked",
        _ if past(&info.not_after) => "expired",
        _ if future(&info.not_before) => "not yet valid",
        _ => "valid",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn print(command: CertCommand, certs: &Path) -> String {
        let mut out = Vec::new();
        run(command, certs, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn an_authority_and_a_node_are_made_and_shown() {
        let dir = tempfile::tempdir().unwrap();
        let certs = dir.path();
        let empty = print(CertCommand::Show { json: false }, certs);
        assert!(empty.contains("xpando-node cert init --certs"), "{empty}");
        assert_eq!(print(CertCommand::Show { json: true }, certs), "[]\n");

        let made = print(CertCommand::Init, certs);
        assert!(made.contains("fingerprint  ") && made.contains("cert issue NAME@HOST"), "{made}");
        let name: NodeName = "web@10.0.0.7".parse().unwrap();
        let issue = |replace| {
            let (name, can) = (name.clone(), Can::default());
            CertCommand::Issue { name, replace, hosts: vec![], can }
        };
        let issued = print(issue(false), certs);
        for part in ["on 10.0.0.7", "ca/cert.pem", "web@10.0.0.7/cert.pem", "never ca/key.pem"] {
            assert!(issued.contains(part), "{issued}");
        }
        let again = run(issue(false), certs, &mut Vec::new()).unwrap_err();
        assert!(remedy::commands(&again).concat().contains("--replace"), "{again}");
        print(issue(true), certs);

        let table = print(CertCommand::Show { json: false }, certs);
        let lines: Vec<&str> = table.lines().map(str::trim).collect();
        assert!(lines[0].starts_with("NAME"), "{table}");
        assert!(lines[1].starts_with("(authority)") && lines[1].ends_with("valid"), "{table}");
        assert!(lines[2].starts_with("web@10.0.0.7") && lines[2].ends_with("valid"), "{table}");
        let json: serde_json::Value =
            serde_json::from_str(&print(CertCommand::Show { json: true }, certs)).unwrap();
        assert_eq!(json[1]["name"], "web@10.0.0.7");
    }

    #[test]
    fn a_revoked_node_is_shown_as_such_until_it_has_a_fresh_certificate() {
        let dir = tempfile::tempdir().unwrap();
        let certs = dir.path();
        print(CertCommand::Init, certs);
        let name: NodeName = "web@10.0.0.7".parse().unwrap();
        let unknown = CertCommand::Revoke { what: Revocee::Node(name.clone()) };
        let error = run(unknown, certs, &mut Vec::new()).unwrap_err().to_string();
        assert!(error.contains("web@10.0.0.7 was never issued a certificate"), "{error}");
        let issue = || {
            let (name, can) = (name.clone(), Can::default());
            CertCommand::Issue { name, replace: false, hosts: vec![], can }
        };
        print(issue(), certs);
        let told = print(CertCommand::Revoke { what: Revocee::Node(name.clone()) }, certs);
        for part in ["revoked      serial ", "ca/crl.pem  (1 in all)", "cert issue web@10.0.0.7"] {
            assert!(told.contains(part), "{told}");
        }
        let again = print(CertCommand::Revoke { what: Revocee::Node(name.clone()) }, certs);
        assert!(again.contains("nothing new"), "{again}");
        let table = print(CertCommand::Show { json: false }, certs);
        assert!(table.trim_end().ends_with("revoked"), "{table}");
        print(issue(), certs);
        let table = print(CertCommand::Show { json: false }, certs);
        assert!(table.trim_end().ends_with("valid"), "{table}");
    }

    #[test]
    fn what_is_damaged_is_explained_below_the_table() {
        let dir = tempfile::tempdir().unwrap();
        print(CertCommand::Init, dir.path());
        let name: NodeName = "a@h".parse().unwrap();
        let (hosts, can) = (vec![], Can::default());
        print(CertCommand::Issue { name, replace: false, hosts, can }, dir.path());
        std::fs::write(dir.path().join("a@h/cert.pem"), "rubbish").unwrap();
        let table = print(CertCommand::Show { json: false }, dir.path());
        assert!(table.contains("unusable"), "{table}");
        assert!(table.contains("\na@h: the certificate "), "{table}");
    }
}
