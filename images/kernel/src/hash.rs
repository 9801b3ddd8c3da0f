//! Names for things made from other things.

use sha2::{Digest, Sha256};

/// The first 64 bits of a SHA-256 over all parts and where each ends, in hexadecimal.
pub(crate) fn hash(parts: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let digest = hash.finalize();
    let head = digest[..8].iter().fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
    format!("{head:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_depends_on_each_part_and_on_where_it_ends() {
        let base = hash(&[b"a", b"b"]);
        assert_eq!(base.len(), 16);
        assert_eq!(base, hash(&[b"a", b"b"]));
        for other in [hash(&[b"x", b"b"]), hash(&[b"a", b"x"]), hash(&[b"ab", b""]), hash(&[b"ab"])] {
            assert_ne!(base, other);
        }
    }
}
