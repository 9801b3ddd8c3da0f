//! Directories as EROFS stores them: sorted entries, packed into blocks.
//!
//! A block starts with its entries and ends with their names; no entry crosses a block. The kernel searches the
//! first names of the blocks, then the entries of one block.

use super::format::{BLOCK, DIRENT_SIZE, FileType};

/// One entry of a directory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry<'a> {
    pub(super) name: &'a [u8],
    pub(super) nid: u64,
    pub(super) file_type: FileType,
}

/// Bytes that a directory with these names takes, which have to be sorted.
pub(super) fn encoded_size<'a>(names: impl Iterator<Item = &'a [u8]>) -> u64 {
    let mut full_blocks = 0;
    let mut used = 0;
    for name in names {
        let size = (DIRENT_SIZE + name.len()) as u64;
        if used + size > BLOCK {
            full_blocks += 1;
            used = 0;
        }
        used += size;
    }
    full_blocks * BLOCK + used
}

/// Encodes a directory. The entries have to be sorted by name.
pub(super) fn encode(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = entries;
    while !rest.is_empty() {
        let (block, later) = rest.split_at(entries_in_block(rest));
        encode_block(block, &mut bytes);
        if !later.is_empty() {
            bytes.resize(bytes.len().next_multiple_of(BLOCK as usize), 0);
        }
        rest = later;
    }
    bytes
}

fn entries_in_block(entries: &[Entry<'_>]) -> usize {
    let mut used = 0;
    entries
        .iter()
        .take_while(|entry| {
            used += DIRENT_SIZE + entry.name.len();
            used <= BLOCK as usize
        })
        .count()
}

fn encode_block(entries: &[Entry<'_>], bytes: &mut Vec<u8>) {
    let mut name_offset = entries.len() * DIRENT_SIZE;
    for entry in entries {
        bytes.extend(entry.nid.to_le_bytes());
        bytes.extend((name_offset as u16).to_le_bytes());
        bytes.extend([entry.file_type as u8, 0]);
        name_offset += entry.name.len();
    }
    for entry in entries {
        bytes.extend(entry.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(names: &[Vec<u8>]) -> Vec<Entry<'_>> {
        names.iter().map(|name| Entry { name, nid: 36, file_type: FileType::Regular }).collect()
    }

    #[test]
    fn a_small_directory_is_entries_then_names() {
        let names = [b".".to_vec(), b"..".to_vec()];
        let bytes = encode(&entries(&names));
        assert_eq!(bytes[..12], [36, 0, 0, 0, 0, 0, 0, 0, 24, 0, 1, 0]);
        assert_eq!(bytes[20..22], [25, 0]);
        assert_eq!(&bytes[24..], b"...");
    }

    #[test]
    fn no_entry_crosses_a_block_and_sizes_agree() {
        for length in [1, 100, 254, 255] {
            let names: Vec<_> = (0..1000_u32)
                .map(|n| {
                    let mut name = format!("{n:04}").into_bytes();
                    name.resize(length.max(4), b'x');
                    name
                })
                .collect();
            let entries = entries(&names);
            let bytes = encode(&entries);
            assert_eq!(bytes.len() as u64, encoded_size(names.iter().map(Vec::as_slice)));

            let mut found = 0;
            for block in bytes.chunks(BLOCK as usize) {
                let count = usize::from(u16::from_le_bytes([block[8], block[9]])) / DIRENT_SIZE;
                assert!(count > 0);
                found += count;
            }
            assert_eq!(found, names.len());
        }
    }

    #[test]
    fn a_block_may_be_filled_to_its_last_byte() {
        // 4096 = 16 * (12 + 244)
        let names: Vec<_> = (0..17_u8).map(|n| vec![b'a' + n; 244]).collect();
        let bytes = encode(&entries(&names));
        assert_eq!(bytes.len(), 4096 + 256);
        assert_eq!(bytes[4095], b'a' + 15);
    }
}
