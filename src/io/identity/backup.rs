//! A copy of an authority that can leave its host: everything in its directory, encrypted with a passphrase.
//!
//! One PEM block, `XPANDO BACKUP`: an EncryptedPrivateKeyInfo (RFC 5958, 3) whose plaintext is the files, encrypted by PBES2 (RFC
//! 8018, 6.2) with scrypt (RFC 7914, N = 2^17, r = 8, p = 1) and AES-256-GCM. The plaintext is postcard of a version and a
//! list of file name, private or not, and contents.
//!
//! Invariants: a backup that was changed, or is read with another passphrase, restores nothing; what is restored appears all at
//! once or not at all, and never in the place of an authority that is there; only the names of [`FILES`] are ever written.

use std::path::Path;

use pkcs8::pkcs5::{pbes2, scrypt};
use pkcs8::{
    EncryptedPrivateKeyInfoOwned, der::Decode as _, der::Encode as _, der::asn1::OctetString,
};
use zeroize::Zeroizing;

use super::disk::{self, Layout};
use super::pki::Bundle;
use super::trust::Trusted;
use super::{Authority, IdentityError, Remedy};
use crate::proto::codec;

/// Label of the block (RFC 7468).
const LABEL: &str = "XPANDO BACKUP";
/// What a backup has of an authority's directory, where it is there.
const FILES: [&str; 10] = [
    disk::CERTIFICATE,
    disk::KEY,
    disk::NEXT_KEY,
    disk::TRUST,
    disk::ISSUED,
    disk::REVOCATIONS,
    disk::TOKEN_KEY,
    disk::NEXT_TOKEN_KEY,
    disk::TOKENS,
    disk::INVITATIONS,
];
/// Shortest passphrase, in bytes: whoever has the backup can try as many as they like.
const SHORTEST: usize = 12;
/// Longest plaintext.
const MAX_PLAIN: usize = 64 * 1024 * 1024;
/// Version of the plaintext.
const VERSION: u8 = 1;

/// Why there is no backup, or nothing is restored. Nothing changed; the operator acts.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// A file of the authority cannot be read or written, or is there already.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The passphrase would be guessed.
    #[error(
        "the passphrase has fewer than {SHORTEST} bytes: choose a longer one, such as five random words"
    )]
    WeakPassphrase,
    /// The file is none that a backup made.
    #[error("it is no backup of an authority, or a part of one")]
    Damaged,
    /// Another passphrase was used, or the backup was changed.
    #[error("the passphrase is another one, or the backup was changed")]
    Passphrase,
    /// The cryptographic library refused: memory or entropy is short.
    #[error("the cryptographic library refused to {0}")]
    Crypto(&'static str),
}

type Files = Vec<(String, Vec<u8>)>;

/// Writes the authority in `certs` to a file that only this passphrase opens. A file that is there is replaced.
///
/// # Errors
/// [`BackupError`]; as [`Authority::open`] when the authority is not whole.
pub fn backup(certs: &Path, to: &Path, passphrase: &str) -> Result<(), BackupError> {
    Ok(disk::write(to, encrypted(certs, passphrase)?.as_bytes(), disk::PRIVATE)?)
}

fn encrypted(certs: &Path, passphrase: &str) -> Result<String, BackupError> {
    if passphrase.len() < SHORTEST {
        return Err(BackupError::WeakPassphrase);
    }
    let layout = Layout::new(certs);
    let _lock = layout.lock()?;
    // What cannot be opened cannot be restored.
    Authority::open(certs)?;
    let mut files = Files::new();
    for name in FILES {
        let contents = disk::read_list(&layout.of_authority(name))?;
        files.extend(contents.map(|contents| (name.to_owned(), contents)));
    }
    let encode = |_detail| BackupError::Crypto("encode the files");
    let plain = Zeroizing::new(codec::encode_versioned(VERSION, &files).map_err(encode)?);
    files.iter_mut().for_each(|(_, contents)| zeroize::Zeroize::zeroize(contents));
    let (mut salt, mut nonce) = ([0; 16], [0; 12]);
    for bytes in [&mut salt[..], &mut nonce[..]] {
        aws_lc_rs::rand::fill(bytes)
            .map_err(|_unspecified| BackupError::Crypto("draw random bytes"))?;
    }
    let refused = |_detail| BackupError::Crypto("encrypt");
    let cost = scrypt::Params::new(17, 8, 1).map_err(|_cost| BackupError::Crypto("encrypt"))?;
    let scheme = pbes2::Parameters::scrypt_aes256gcm(cost, &salt, nonce).map_err(refused)?;
    let encrypted = scheme.encrypt(passphrase, &plain).map_err(refused)?;
    let encrypted_data =
        OctetString::new(encrypted).map_err(|_long| BackupError::Crypto("encrypt so much"))?;
    let info = EncryptedPrivateKeyInfoOwned { encryption_algorithm: scheme.into(), encrypted_data };
    let der = info.to_der().map_err(|_detail| BackupError::Crypto("encode the backup"))?;
    Ok(pem::encode(&pem::Pem::new(LABEL, der)))
}

/// Puts the authority of a backup into `certs`, where there is none, or beside the certificates that a node of the same
/// cluster has there.
///
/// # Errors
/// [`BackupError`]; [`IdentityError::Exists`] when there is an authority's key, or another cluster's certificate;
/// [`KeyFault::Mismatch`](super::KeyFault::Mismatch) when the cluster trusts another authority meanwhile.
pub fn restore(certs: &Path, backup: &[u8], passphrase: &str) -> Result<Authority, BackupError> {
    let damaged = BackupError::Damaged;
    let Some(block) = pem::parse(backup).ok().filter(|block| block.tag() == LABEL) else {
        return Err(damaged);
    };
    let Ok(info) = EncryptedPrivateKeyInfoOwned::from_der(block.contents()) else {
        return Err(damaged);
    };
    let plain = info.encryption_algorithm.decrypt(passphrase, info.encrypted_data.as_bytes());
    let plain = Zeroizing::new(plain.map_err(|_detail| BackupError::Passphrase)?);
    let files: Files = codec::decode_versioned(VERSION, &plain, MAX_PLAIN)
        .map_err(|_detail| BackupError::Damaged)?;
    if !files.iter().all(|(name, _)| FILES.contains(&name.as_str())) {
        return Err(damaged);
    }
    let layout = Layout::new(certs);
    let _lock = layout.lock()?;
    // An empty directory that an earlier start has left is in nobody's way.
    disk::check_directory(layout.certs())?;
    let mode = |name: &str| match name {
        disk::KEY | disk::NEXT_KEY | disk::TOKEN_KEY | disk::NEXT_TOKEN_KEY | disk::INVITATIONS => {
            disk::PRIVATE
        }
        _ => disk::PUBLIC,
    };
    let written: Vec<(&str, &[u8], u32)> =
        files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice(), mode(name))).collect();
    let has = |file| layout.of_authority(file).exists();
    if has(disk::CERTIFICATE) && !has(disk::KEY) {
        return add(layout, written);
    }
    disk::write_directory(&layout.authority(), &written)?;
    Ok(Authority::open(certs)?)
}

/// Puts what a node lacks beside what it has. Its lists stay: they come from other nodes, and are not older than the backup's.
fn add(layout: Layout<'_>, mut files: Vec<(&str, &[u8], u32)>) -> Result<Authority, BackupError> {
    let certificate = files.iter().find(|(name, ..)| *name == disk::CERTIFICATE);
    let bundle = certificate.and_then(|(_, pem, _)| Bundle::of_pem(pem).ok());
    let bundle = bundle.ok_or(BackupError::Damaged)?;
    let trusted = Trusted::read(layout, Remedy::CopyAuthority)?;
    if bundle.cluster() != trusted.bundle.cluster() {
        let path = layout.of_authority(disk::CERTIFICATE);
        return Err(IdentityError::Exists { path, remedy: Remedy::MoveAuthority }.into());
    }
    files.retain(|(name, ..)| !layout.of_authority(name).exists());
    // The key goes last: without it nothing is issued.
    files.sort_by_key(|(name, ..)| *name == disk::KEY);
    let paths: Vec<_> = files.iter().map(|(name, ..)| layout.of_authority(name)).collect();
    let written = files
        .iter()
        .zip(&paths)
        .try_for_each(|((_, bytes, mode), path)| disk::write(path, bytes, *mode))
        .and_then(|()| Authority::open(layout.certs()));
    written.map_err(|error| {
        // Half of an authority is worth less than none.
        paths.iter().for_each(|path| drop(std::fs::remove_file(path)));
        error.into()
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::io::clock::wall;
    use crate::io::identity::Validity;

    const PHRASE: &str = "correct horse battery staple";

    #[test]
    fn an_authority_is_restored_on_another_host_and_issues_there() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let authority = Authority::init(here.path(), wall()).unwrap();
        let name = "a@h".parse().unwrap();
        let a = authority.issue(here.path(), &name, Validity::leaf(wall())).unwrap();
        authority.revoke(&name, wall()).unwrap();
        let file = here.path().join("backup");
        backup(here.path(), &file, PHRASE).unwrap();
        let text = fs::read_to_string(&file).unwrap();
        let key = fs::read_to_string(here.path().join("ca/key.pem")).unwrap();
        let line = key.lines().nth(1).unwrap();
        assert!(!text.contains(line) && text.starts_with("-----BEGIN XPANDO BACKUP-----"));

        let restored = restore(there.path(), text.as_bytes(), PHRASE).unwrap();
        assert_eq!(restored.fingerprint(), authority.fingerprint());
        for file in ["cert.pem", "key.pem", "issued", "crl.pem", "token.key", "tokens"] {
            let read =
                |dir: &tempfile::TempDir| fs::read(dir.path().join("ca").join(file)).unwrap();
            assert_eq!(read(&here), read(&there), "{file}");
        }
        let mode = fs::metadata(there.path().join("ca/key.pem")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let b = restored.issue(there.path(), &"b@h".parse().unwrap(), Validity::leaf(wall()));
        assert!(b.unwrap().verifier().peer(&a.certificate(), wall()).is_err(), "it is revoked");
        let again = restore(there.path(), text.as_bytes(), PHRASE).unwrap_err();
        assert!(again.to_string().contains("already exists"), "{again}");
    }

    #[test]
    fn a_node_that_joined_becomes_the_one_that_issues_and_keeps_its_lists() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let authority = Authority::init(here.path(), wall()).unwrap();
        let (a, b) = ("a@h".parse().unwrap(), "b@h".parse().unwrap());
        authority.issue(here.path(), &a, Validity::leaf(wall())).unwrap();
        let text = encrypted(here.path(), PHRASE).unwrap();
        // What a node has that joined: certificates, and a list that is later than the backup.
        authority.revoke(&a, wall()).unwrap();
        let ca = there.path().join("ca");
        disk::make_directory(&ca).unwrap();
        for file in ["cert.pem", "crl.pem", "tokens"] {
            fs::copy(here.path().join("ca").join(file), ca.join(file)).unwrap();
        }
        let list = fs::read(ca.join("crl.pem")).unwrap();
        let restored = restore(there.path(), text.as_bytes(), PHRASE).unwrap();
        assert_eq!(fs::read(ca.join("crl.pem")).unwrap(), list, "the later list stays");
        let b = restored.issue(there.path(), &b, Validity::leaf(wall())).unwrap();
        let revoked = Authority::open(there.path()).unwrap().revoke(&a, wall()).unwrap();
        assert_eq!((revoked.added.len(), revoked.total), (0, 1), "what was issued is known");
        assert!(b.verifier().peer(&b.certificate(), wall()).is_ok());
        let again = restore(there.path(), text.as_bytes(), PHRASE).unwrap_err();
        assert!(again.to_string().contains("already exists"), "{again}");
    }

    #[test]
    fn a_backup_of_another_authority_changes_nothing() {
        let [here, there, other] = [(); 3].map(|()| tempfile::tempdir().unwrap());
        Authority::init(here.path(), wall()).unwrap();
        let text = encrypted(here.path(), PHRASE).unwrap();
        let ca = there.path().join("ca");
        disk::make_directory(&ca).unwrap();
        // Another cluster's, and another authority of the same cluster, as after a rotation.
        Authority::init(other.path(), wall()).unwrap();
        fs::copy(other.path().join("ca/cert.pem"), ca.join("cert.pem")).unwrap();
        let error = restore(there.path(), text.as_bytes(), PHRASE).unwrap_err();
        assert!(error.to_string().contains("ca/cert.pem already exists"), "{error}");
        let authority = Authority::open(here.path()).unwrap();
        authority.begin_rotation("ann", wall()).unwrap();
        let moved = Authority::open(here.path()).unwrap();
        moved.move_rotation(wall()).unwrap();
        Authority::open(here.path()).unwrap().finish_rotation(None, wall()).unwrap();
        for file in ["cert.pem", "trust"] {
            fs::copy(here.path().join("ca").join(file), ca.join(file)).unwrap();
        }
        let error = restore(there.path(), text.as_bytes(), PHRASE).unwrap_err();
        assert!(error.to_string().contains("key.pem does not belong"), "{error}");
        let mut left: Vec<_> =
            fs::read_dir(&ca).unwrap().map(|it| it.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["cert.pem", "trust"]);
    }

    #[test]
    fn what_was_changed_or_is_not_known_opens_nothing() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        Authority::init(here.path(), wall()).unwrap();
        assert!(matches!(encrypted(here.path(), "short"), Err(BackupError::WeakPassphrase)));
        assert!(encrypted(there.path(), PHRASE).is_err(), "there is no authority");
        let text = encrypted(here.path(), PHRASE).unwrap();
        let refused = |bytes: &[u8], phrase: &str| {
            let refused = restore(there.path(), bytes, phrase).unwrap_err();
            assert!(!there.path().join("ca").exists());
            refused
        };
        let other = refused(text.as_bytes(), "correct horse battery stable");
        assert!(matches!(other, BackupError::Passphrase), "{other}");
        let block = pem::parse(&text).unwrap();
        let mut changed = block.contents().to_vec();
        *changed.last_mut().unwrap() ^= 1;
        let changed = pem::encode(&pem::Pem::new(LABEL, changed));
        assert!(matches!(refused(changed.as_bytes(), PHRASE), BackupError::Passphrase));
        for rubbish in ["", "rubbish", &text[..text.len() / 2], &text.replace(LABEL, "X")] {
            assert!(matches!(refused(rubbish.as_bytes(), PHRASE), BackupError::Damaged));
        }
    }
}
