//! Extended attributes as EROFS stores them behind an inode.

use std::collections::BTreeMap;

/// Attribute names start with one of these, which is stored as its number. The ACLs are names of their own.
const PREFIXES: [(&[u8], u8); 5] = [
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
];

/// A name filter and a count of shared attributes, neither of which is used.
const HEADER_SIZE: usize = 12;

const ENTRY_SIZE: usize = 4;

/// `i_xattr_icount` has 16 bits, one of which's values counts the header and each other four bytes.
const MAX_SIZE: usize = HEADER_SIZE + (u16::MAX as usize - 1) * 4;

/// Why attributes cannot be stored.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum XattrError {
    /// The name has no prefix that EROFS knows.
    #[error(
        "extended attribute {0:?}: EROFS stores user., trusted. and security. attributes and POSIX ACLs only"
    )]
    Name(String),
    /// The name or the value is too long.
    #[error("extended attribute {0:?} has more than 255 bytes of name or 65535 bytes of value")]
    TooLong(String),
    /// All attributes of a file together are too long.
    #[error("extended attributes of {0} bytes; EROFS stores {MAX_SIZE} bytes at most")]
    TooMany(usize),
}

/// Encodes all attributes of a file; none take no bytes at all.
pub(super) fn encode(xattrs: &BTreeMap<Vec<u8>, Vec<u8>>) -> Result<Vec<u8>, XattrError> {
    if xattrs.is_empty() {
        return Ok(Vec::new());
    }
    let mut bytes = vec![0; HEADER_SIZE];
    for (name, value) in xattrs {
        let shown = || String::from_utf8_lossy(name).into_owned();
        let (prefix, suffix) = split_name(name).ok_or_else(|| XattrError::Name(shown()))?;
        let suffix_length = u8::try_from(suffix.len()).map_err(|_| XattrError::TooLong(shown()))?;
        let value_length = u16::try_from(value.len()).map_err(|_| XattrError::TooLong(shown()))?;
        bytes.extend([suffix_length, prefix]);
        bytes.extend(value_length.to_le_bytes());
        bytes.extend(suffix);
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(ENTRY_SIZE), 0);
    }
    if bytes.len() > MAX_SIZE {
        return Err(XattrError::TooMany(bytes.len()));
    }
    Ok(bytes)
}

fn split_name(name: &[u8]) -> Option<(u8, &[u8])> {
    PREFIXES.iter().find_map(|&(prefix, number)| {
        let suffix = name.strip_prefix(prefix)?;
        // A prefix that ends in a dot wants something behind it, a whole name nothing.
        (prefix.ends_with(b".") != suffix.is_empty()).then_some((number, suffix))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(name: &[u8], value: &[u8]) -> Result<Vec<u8>, XattrError> {
        encode(&BTreeMap::from([(name.to_vec(), value.to_vec())]))
    }

    #[test]
    fn nothing_takes_nothing() {
        assert_eq!(encode(&BTreeMap::new()), Ok(Vec::new()));
    }

    #[test]
    fn a_name_is_stored_as_its_prefix_and_the_rest() {
        let bytes = one(b"security.capability", b"\x01\x02").unwrap();
        assert_eq!(bytes[..12], [0; 12]);
        assert_eq!(bytes[12..16], [10, 6, 2, 0]);
        assert_eq!(&bytes[16..28], b"capability\x01\x02");
        assert_eq!(bytes.len(), 28);
    }

    #[test]
    fn an_acl_is_its_prefix() {
        assert_eq!(one(b"system.posix_acl_default", b"").unwrap()[12..], [0, 3, 0, 0]);
    }

    #[test]
    fn what_cannot_be_stored_is_said() {
        assert_eq!(one(b"system.advise", b""), Err(XattrError::Name("system.advise".into())));
        assert_eq!(one(b"user.", b""), Err(XattrError::Name("user.".into())));
        assert!(matches!(one(b"user.a", &vec![0; 65536]), Err(XattrError::TooLong(_))));
        let many = (0..5).map(|n| (format!("user.{n}").into_bytes(), vec![0; 60000])).collect();
        assert!(matches!(encode(&many), Err(XattrError::TooMany(_))));
    }
}
