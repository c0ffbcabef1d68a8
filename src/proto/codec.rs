//! The one binary codec: postcard with a cap.
//!
//! Invariants: the length is checked before a byte is decoded, so hostile input allocates no more
//! than its own size; a value is the whole input, trailing bytes are an error. Enums on the wire
//! only ever grow at their end.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Why bytes are not a value. Nothing changed; whoever sent the bytes is at fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The input is longer than its kind may be.
    #[error("{length} bytes where at most {cap} are allowed")]
    TooLong {
        /// Bytes received.
        length: usize,
        /// Bytes allowed.
        cap: usize,
    },
    /// The bytes are not a value of the expected kind.
    #[error("malformed")]
    Malformed,
    /// A value was followed by more bytes.
    #[error("{0} bytes after the end")]
    Trailing(usize),
    /// The value is of a version this node does not speak.
    #[error("version {0} is not spoken here")]
    Version(u8),
}

/// Encodes a value.
///
/// # Errors
/// [`CodecError::Malformed`] when the value's own `Serialize` refuses, which no wire type does.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    postcard::to_stdvec(value).map_err(|_refused_by_serialize| CodecError::Malformed)
}

/// Decodes a value of at most `cap` bytes that fills the input.
///
/// # Errors
/// Any [`CodecError`] but `Version`.
pub fn decode<T: DeserializeOwned>(bytes: &[u8], cap: usize) -> Result<T, CodecError> {
    if bytes.len() > cap {
        return Err(CodecError::TooLong { length: bytes.len(), cap });
    }
    let (value, rest) = postcard::take_from_bytes(bytes)
        .map_err(|_detail_is_the_sender_s| CodecError::Malformed)?;
    if rest.is_empty() { Ok(value) } else { Err(CodecError::Trailing(rest.len())) }
}

/// As [`encode`], behind one byte that says which version of the format follows.
///
/// # Errors
/// As [`encode`].
pub fn encode_versioned<T: Serialize>(version: u8, value: &T) -> Result<Vec<u8>, CodecError> {
    postcard::to_extend(value, vec![version]).map_err(|_refused_by_serialize| CodecError::Malformed)
}

/// As [`decode`], after checking the version byte.
///
/// # Errors
/// Any [`CodecError`].
pub fn decode_versioned<T: DeserializeOwned>(
    version: u8,
    bytes: &[u8],
    cap: usize,
) -> Result<T, CodecError> {
    match bytes.split_first() {
        Some((found, rest)) if *found == version => decode(rest, cap),
        Some((found, _)) => Err(CodecError::Version(*found)),
        None => Err(CodecError::Malformed),
    }
}

/// Cuts a list into words so that no piece is larger than `limit` bytes, or has more than `most` things.
#[must_use]
pub fn chunks<T>(
    most: usize,
    items: impl IntoIterator<Item = T>,
    limit: usize,
    size: fn(&T) -> usize,
) -> Vec<Vec<T>> {
    let (mut done, mut piece, mut filled) = (Vec::new(), Vec::new(), 0);
    for item in items {
        let size = size(&item);
        if !piece.is_empty() && (filled + size > limit || piece.len() >= most) {
            done.push(std::mem::take(&mut piece));
            filled = 0;
        }
        filled += size;
        piece.push(item);
    }
    if !piece.is_empty() {
        done.push(piece);
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_fills_its_input_and_keeps_its_cap() {
        let bytes = encode(&("abc".to_owned(), 7_u64)).expect("plain values encode");
        let back: (String, u64) = decode(&bytes, 16).expect("its own bytes");
        assert_eq!(back, ("abc".to_owned(), 7));
        let long = [bytes.clone(), vec![0]].concat();
        assert_eq!(decode::<(String, u64)>(&long, 16), Err(CodecError::Trailing(1)));
        assert_eq!(
            decode::<(String, u64)>(&bytes, 2),
            Err(CodecError::TooLong { length: 5, cap: 2 })
        );
        assert_eq!(decode::<(String, u64)>(&bytes[..3], 16), Err(CodecError::Malformed));
    }

    #[test]
    fn another_version_is_named() {
        let bytes = encode_versioned(1, &5_u32).expect("plain values encode");
        assert_eq!(decode_versioned::<u32>(1, &bytes, 8), Ok(5));
        assert_eq!(decode_versioned::<u32>(2, &bytes, 8), Err(CodecError::Version(1)));
        assert_eq!(decode_versioned::<u32>(1, &[], 8), Err(CodecError::Malformed));
    }
}
