//! Writing a file from its start to its end, with holes where it is zero.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Unit of holes: a block of the usual file systems.
const BLOCK: usize = 4096;

/// Bytes gathered before they are written.
const BUFFER: usize = 64 * BLOCK;

/// Appends to a file, leaving out aligned blocks of zeros.
#[derive(Debug)]
pub(crate) struct SparseWriter<'a> {
    file: &'a File,
    /// Where the buffer goes; a multiple of [`BLOCK`].
    offset: u64,
    buffer: Vec<u8>,
}

impl<'a> SparseWriter<'a> {
    /// Empties `file` and starts at its beginning.
    pub(crate) fn new(file: &'a File) -> io::Result<Self> {
        file.set_len(0)?;
        Ok(Self { file, offset: 0, buffer: Vec::with_capacity(BUFFER) })
    }

    /// Bytes appended so far.
    pub(crate) fn position(&self) -> u64 {
        self.offset + self.buffer.len() as u64
    }

    /// Appends `bytes`.
    pub(crate) fn append(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(BUFFER - self.buffer.len()));
            self.buffer.extend_from_slice(now);
            bytes = later;
            if self.buffer.len() == BUFFER {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Appends zeros up to `position`, which is not behind the current one.
    pub(crate) fn pad_to(&mut self, position: u64) -> io::Result<()> {
        const ZEROS: [u8; BLOCK] = [0; BLOCK];
        while self.position() < position {
            let missing = position - self.position();
            self.append(&ZEROS[..missing.min(BLOCK as u64) as usize])?;
        }
        Ok(())
    }

    /// Writes what is left. The file has exactly the bytes that were appended.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        let length = self.position();
        self.flush()?;
        self.file.set_len(length)
    }

    /// Writes the runs of blocks that are not all zero, each with one call.
    fn flush(&mut self) -> io::Result<()> {
        let mut start = 0;
        let is_zero = |block: &[u8]| block.iter().all(|&byte| byte == 0);
        for run in self.buffer.chunks(BLOCK).collect::<Vec<_>>().chunk_by(|a, b| is_zero(a) == is_zero(b)) {
            let length: usize = run.iter().map(|block| block.len()).sum();
            if !is_zero(run[0]) {
                self.file.write_all_at(&self.buffer[start..start + length], self.offset + start as u64)?;
            }
            start += length;
        }
        self.offset += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn the_file_has_what_was_appended() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "what was there before").unwrap();
        let mut expected = Vec::new();
        let mut writer = SparseWriter::new(file.as_file()).unwrap();
        for (index, length) in [1, 4095, 8192, 300_000, 5000, 17].into_iter().enumerate() {
            let bytes = vec![if index % 2 == 0 { b'x' } else { 0 }; length];
            writer.append(&bytes).unwrap();
            expected.extend(bytes);
        }
        writer.pad_to(500_000).unwrap();
        expected.resize(500_000, 0);
        writer.finish().unwrap();
        assert!(std::fs::read(file.path()).unwrap() == expected);
    }

    #[test]
    fn zeros_take_no_room() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut writer = SparseWriter::new(file.as_file()).unwrap();
        writer.append(b"start").unwrap();
        writer.pad_to(1 << 20).unwrap();
        writer.finish().unwrap();
        let metadata = file.as_file().metadata().unwrap();
        assert_eq!(metadata.len(), 1 << 20);
        assert!(metadata.blocks() * 512 <= 64 << 10, "{} blocks", metadata.blocks());
    }
}
