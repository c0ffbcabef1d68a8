//! What an operator does about an error, as commands that can be copied.

use std::error::Error;
use std::path::Path;

use xpando_node::internals::io::identity::enrol::EnrolError;
use xpando_node::internals::io::identity::provider::ProviderError;
use xpando_node::internals::io::identity::{
    BackupError, IdentityError, Remedy, RotationError, shell_word,
};
use xpando_node::internals::node::StartError;

/// The commands that mend what led to a failure, in their order.
pub(super) fn commands(error: &anyhow::Error) -> Vec<String> {
    let found = error.chain().find_map(identity);
    found.map_or_else(Vec::new, |it| words(it.path().unwrap_or(Path::new("")), &it.remedy()))
}

/// The error about files in another one, which may say nothing but that.
fn identity<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a IdentityError> {
    if let Some(StartError::Identity(inner)) = error.downcast_ref() {
        return Some(inner);
    }
    if let Some(StartError::Provider(ProviderError::File(inner))) = error.downcast_ref() {
        return Some(inner);
    }
    if let Some(ProviderError::File(inner)) = error.downcast_ref() {
        return Some(inner);
    }
    if let Some(EnrolError::Identity(inner)) = error.downcast_ref() {
        return Some(inner);
    }
    if let Some(RotationError::Identity(inner)) = error.downcast_ref() {
        return Some(inner);
    }
    if let Some(BackupError::Identity(inner)) = error.downcast_ref() {
        return Some(inner);
    }
    error.downcast_ref()
}

/// What mends what is wrong with a file; nothing where that is no command.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "what is left is done by hand, or by nobody, and there may be more of it"
)]
pub(super) fn words(path: &Path, remedy: &Remedy) -> Vec<String> {
    // Files lie in a directory of the certificate directory: ca, or a node's.
    let certs = path.ancestors().nth(2).unwrap_or(path);
    let cert = |words: &str| format!("xpando-node cert {words} --certs {}", shell_word(certs));
    let file = shell_word(path);
    match remedy {
        Remedy::Begin(name) => vec![cert("init"), cert(&format!("issue {name}"))],
        Remedy::MakeAuthority | Remedy::ReplaceAuthority => vec![cert("init")],
        Remedy::Issue(name) => vec![cert(&format!("issue {name}"))],
        Remedy::Reissue(name) => vec![cert(&format!("issue {name} --replace"))],
        Remedy::RestorePair => vec![cert("request --authority")],
        Remedy::OtherCerts => vec!["--certs DIRECTORY".to_owned()],
        Remedy::Show => vec![cert("show")],
        Remedy::MakePrivate { .. } => vec![format!("chmod 600 {file}")],
        Remedy::Close => vec![format!("chmod go-w {file}")],
        Remedy::Decrypt => {
            let mut plain = path.as_os_str().to_owned();
            plain.push(".plain");
            let plain = shell_word(Path::new(&plain));
            vec![
                format!("openssl pkey -in {file} -out {plain}"),
                format!("chmod 600 {plain}"),
                format!("mv {plain} {file}"),
            ]
        }
        Remedy::FetchTokenKey => vec!["xpando-node rotate tokens".to_owned()],
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use xpando_node::internals::io::clock::wall;
    use xpando_node::internals::io::identity::{Authority, Identity};
    use xpando_node::internals::proto::node::NodeName;

    #[test]
    fn commands_are_found_behind_any_error_and_name_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let certs = dir.path().join("my certs");
        let a: NodeName = "a@10.0.0.1".parse().unwrap();
        let load = || Identity::load(&certs, &a, wall()).unwrap_err();
        let at = format!("--certs '{}'", certs.display());
        let begin = [
            format!("xpando-node cert init {at}"),
            format!("xpando-node cert issue a@10.0.0.1 {at}"),
        ];
        assert_eq!(commands(&load().into()), begin);
        assert_eq!(commands(&StartError::from(load()).into()), begin);
        let within = anyhow::Error::from(EnrolError::from(load())).context("while it joins");
        assert_eq!(commands(&within), begin);
        Authority::init(&certs, wall()).unwrap();
        assert_eq!(commands(&load().into()), begin[1..]);
        assert_eq!(commands(&anyhow::anyhow!("something else")), [""; 0]);
    }
}
