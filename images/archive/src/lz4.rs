//! The lz4 tool's legacy frame: a magic number, then blocks of 8 MiB, each behind its compressed length.
//!
//! Described in lz4's `doc/lz4_Frame_format.md`, "Legacy frame"; it has neither an end mark nor checksums.

use std::io::{self, Read};

const MAGIC: u32 = 0x184c_2102;
const BLOCK_BYTES: usize = 8 << 20;
/// What incompressible data of one block can grow to (`LZ4_compressBound`).
const COMPRESSED_BYTES_MAX: usize = BLOCK_BYTES + BLOCK_BYTES / 255 + 16;

/// Reads the blocks of one or more legacy frames.
pub(crate) struct LegacyDecoder<R> {
    input: R,
    compressed: Vec<u8>,
    block: Vec<u8>,
    position: usize,
    filled: usize,
}

impl<R: Read> LegacyDecoder<R> {
    pub(crate) fn new(input: R) -> Self {
        Self { input, compressed: Vec::new(), block: Vec::new(), position: 0, filled: 0 }
    }

    /// Decompresses the next block; false at the end of the input.
    fn next_block(&mut self) -> io::Result<bool> {
        let length = loop {
            match self.next_word()? {
                None => return Ok(false),
                // Frames may follow one another.
                Some(MAGIC) => {}
                Some(length) => break length as usize,
            }
        };
        if length > COMPRESSED_BYTES_MAX {
            return Err(invalid(format!(
                "an lz4 block of {length} bytes is larger than a legacy frame's can be"
            )));
        }
        self.compressed.clear();
        (&mut self.input).take(length as u64).read_to_end(&mut self.compressed)?;
        if self.compressed.len() < length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.block.resize(BLOCK_BYTES, 0);
        self.filled = lz4_flex::block::decompress_into(&self.compressed, &mut self.block)
            .map_err(|error| invalid(error.to_string()))?;
        self.position = 0;
        Ok(true)
    }

    /// The next little-endian word, or nothing where the input ends before it.
    fn next_word(&mut self) -> io::Result<Option<u32>> {
        let mut word = Vec::with_capacity(4);
        (&mut self.input).take(4).read_to_end(&mut word)?;
        match <[u8; 4]>::try_from(word.as_slice()) {
            Ok(word) => Ok(Some(u32::from_le_bytes(word))),
            Err(_) if word.is_empty() => Ok(None),
            Err(_) => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl<R: Read> Read for LegacyDecoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // A block may be empty, hence the loop.
        while self.position == self.filled {
            if buffer.is_empty() || !self.next_block()? {
                return Ok(0);
            }
        }
        let count = buffer.len().min(self.filled - self.position);
        buffer[..count].copy_from_slice(&self.block[self.position..self.position + count]);
        self.position += count;
        Ok(count)
    }
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(blocks: &[&[u8]]) -> Vec<u8> {
        let mut frame = MAGIC.to_le_bytes().to_vec();
        for block in blocks {
            let packed = lz4_flex::block::compress(block);
            frame.extend((packed.len() as u32).to_le_bytes());
            frame.extend(packed);
        }
        frame
    }

    #[test]
    fn blocks_and_frames_join_up() {
        let mut input = frame(&[b"one ", b"", b"two "]);
        input.extend(frame(&[b"three"]));
        let mut output = String::new();
        LegacyDecoder::new(input.as_slice()).read_to_string(&mut output).unwrap();
        assert_eq!(output, "one two three");
    }

    #[test]
    fn oversized_and_corrupt_blocks_are_refused() {
        let read = |input: &[u8]| LegacyDecoder::new(input).read_to_end(&mut Vec::new());
        let mut oversized = MAGIC.to_le_bytes().to_vec();
        oversized.extend(u32::MAX.to_le_bytes());
        assert_eq!(read(&oversized).unwrap_err().kind(), io::ErrorKind::InvalidData);
        let mut corrupt = MAGIC.to_le_bytes().to_vec();
        corrupt.extend([3, 0, 0, 0, 0xff, 0xff, 0xff]);
        assert_eq!(read(&corrupt).unwrap_err().kind(), io::ErrorKind::InvalidData);
        let mut short = frame(&[b"text"]);
        short.pop();
        assert_eq!(read(&short).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
