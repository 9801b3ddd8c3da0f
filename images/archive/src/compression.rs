//! Compressed streams, recognised by their first bytes.

use std::fmt;
use std::io::{self, BufRead, Read};

use crate::lz4::LegacyDecoder;

/// How many bytes [`Compression::detect`] wants to see.
pub const MAGIC_BYTES: usize = 14;

/// What an xz or lzma stream may ask for in memory; the largest preset needs 65 MiB, and the kernel's own
/// build asks for a dictionary of up to 128 MiB.
const LZMA_MEMORY_BYTES: u64 = 192 << 20;

/// The largest zstd window taken, as a power of two: what `zstd --ultra -22` uses (128 MiB).
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// A compression format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// RFC 1952.
    Gzip,
    /// The xz container, with the branch filter for x86 that kernels use.
    Xz,
    /// The older container of the same algorithm ("`lzma_alone`").
    Lzma,
    /// The lz4 tool's legacy frame: the only one that the kernel's decompressor reads.
    Lz4Legacy,
    /// RFC 8878.
    Zstd,
    /// bzip2.
    Bzip2,
}

impl Compression {
    /// Recognises a stream by its first bytes; [`MAGIC_BYTES`] of them are enough.
    pub fn detect(head: &[u8]) -> Option<Self> {
        match head {
            [0x1f, 0x8b, 0x08, ..] => Some(Self::Gzip),
            [0xfd, b'7', b'z', b'X', b'Z', 0x00, ..] => Some(Self::Xz),
            [0x02, 0x21, 0x4c, 0x18, ..] => Some(Self::Lz4Legacy),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Self::Zstd),
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Some(Self::Bzip2),
            head if is_lzma(head) => Some(Self::Lzma),
            _ => None,
        }
    }

    /// A reader of the decompressed bytes that fails once there are more than `limit` of them.
    pub fn decoder<'a>(
        self,
        input: impl BufRead + 'a,
        limit: u64,
    ) -> io::Result<Limited<Box<dyn Read + 'a>>> {
        let decoder: Box<dyn Read + 'a> = match self {
            Self::Gzip => Box::new(flate2::bufread::GzDecoder::new(input)),
            Self::Xz => {
                let stream = liblzma::stream::Stream::new_stream_decoder(LZMA_MEMORY_BYTES, 0)?;
                Box::new(liblzma::bufread::XzDecoder::new_stream(input, stream))
            }
            Self::Lzma => {
                let stream = liblzma::stream::Stream::new_lzma_decoder(LZMA_MEMORY_BYTES)?;
                Box::new(liblzma::bufread::XzDecoder::new_stream(input, stream))
            }
            Self::Lz4Legacy => Box::new(LegacyDecoder::new(input)),
            Self::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?.single_frame();
                decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
                Box::new(decoder)
            }
            Self::Bzip2 => Box::new(bzip2::bufread::BzDecoder::new(input)),
        };
        Ok(Limited::new(decoder, limit))
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Lzma => "lzma",
            Self::Lz4Legacy => "lz4",
            Self::Zstd => "zstd",
            Self::Bzip2 => "bzip2",
        })
    }
}

/// `lzma_alone` has no magic number: a properties byte (0x5d is what every encoder writes), a dictionary size
/// that encoders round to 2^n or 2^n + 2^(n-1), and an uncompressed size that is unknown (all ones) or sane.
fn is_lzma(head: &[u8]) -> bool {
    let Some((&[properties, d0, d1, d2, d3, ref size @ ..], _)) = head.split_first_chunk::<13>() else {
        return false;
    };
    let dictionary = u32::from_le_bytes([d0, d1, d2, d3]);
    let size = u64::from_le_bytes(*size);
    properties == 0x5d
        && dictionary >= 1 << 12
        && dictionary.count_ones() <= 2
        && (size == u64::MAX || size < 1 << 38)
}

/// The decompressed form of `input`, or `input` itself where its start matches no known format.
pub fn open<'a>(mut input: impl BufRead + 'a, limit: u64) -> io::Result<Limited<Box<dyn Read + 'a>>> {
    // A buffer holds at least this much of any file long enough to matter; a shorter one is not compressed.
    let head = input.fill_buf()?;
    match Compression::detect(&head[..head.len().min(MAGIC_BYTES)]) {
        Some(compression) => compression.decoder(input, limit),
        None => Ok(Limited::new(Box::new(input), limit)),
    }
}

/// A reader that fails, instead of ending, when there is more to read than allowed.
pub struct Limited<R> {
    inner: R,
    left: u64,
    limit: u64,
}

impl<R: Read> Limited<R> {
    /// Lets `limit` bytes through.
    pub fn new(inner: R, limit: u64) -> Self {
        Self { inner, left: limit, limit }
    }
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            // Exactly at the limit the stream may end, and no more.
            let mut probe = [0];
            return match self.inner.read(&mut probe)? {
                0 => Ok(0),
                _ => Err(io::Error::new(
                    io::ErrorKind::FileTooLarge,
                    format!("unpacks to more than {} bytes", self.limit),
                )),
            };
        }
        let most = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let read = self.inner.read(&mut buffer[..most])?;
        self.left -= read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const TEXT: &[u8] = b"The quick brown fox jumps over the lazy dog. The quick brown fox.";

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    /// Every format's encoding of `data`.
    fn encodings(data: &[u8]) -> Vec<(Compression, Vec<u8>)> {
        use liblzma::stream::{Check, Filters, LzmaOptions, Stream};
        let lzma = |stream| {
            let mut encoder = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
            encoder.write_all(data).unwrap();
            encoder.finish().unwrap()
        };
        let options = LzmaOptions::new_preset(1).unwrap();
        let mut filters = Filters::new();
        filters.x86().lzma2(&options);
        let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        bzip2.write_all(data).unwrap();
        let block = lz4_flex::block::compress(data);
        let mut lz4 = 0x184c_2102_u32.to_le_bytes().to_vec();
        lz4.extend((block.len() as u32).to_le_bytes());
        lz4.extend(block);
        vec![
            (Compression::Gzip, gzip(data)),
            (Compression::Xz, lzma(Stream::new_stream_encoder(&filters, Check::Crc32).unwrap())),
            (Compression::Lzma, lzma(Stream::new_lzma_encoder(&options).unwrap())),
            (Compression::Lz4Legacy, lz4),
            (Compression::Zstd, zstd::encode_all(data, 3).unwrap()),
            (Compression::Bzip2, bzip2.finish().unwrap()),
        ]
    }

    fn unpack(packed: &[u8], limit: u64) -> io::Result<Vec<u8>> {
        let mut data = Vec::new();
        open(packed, limit)?.read_to_end(&mut data)?;
        Ok(data)
    }

    #[test]
    fn every_format_is_recognised_and_read_back() {
        for (compression, packed) in encodings(TEXT) {
            assert_eq!(Compression::detect(&packed), Some(compression));
            assert_eq!(unpack(&packed, 1 << 20).unwrap(), TEXT, "{compression}");
        }
    }

    #[test]
    fn truncated_streams_fail_or_end_early_but_never_invent() {
        for (compression, packed) in encodings(TEXT) {
            for length in 0..packed.len() {
                if let Ok(data) = unpack(&packed[..length], 1 << 20) {
                    // Too short to be recognised, and so returned as it is, or cut at a block boundary.
                    assert!(data == packed[..length] || TEXT.starts_with(&data), "{compression} at {length}");
                }
            }
        }
    }

    #[test]
    fn the_limit_is_exact() {
        for (compression, packed) in encodings(TEXT) {
            assert_eq!(unpack(&packed, TEXT.len() as u64).unwrap(), TEXT, "{compression}");
            let error = unpack(&packed, TEXT.len() as u64 - 1).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::FileTooLarge, "{compression}");
        }
    }

    #[test]
    fn a_bomb_stops_at_the_limit() {
        let packed = gzip(&vec![0; 10 << 20]);
        assert!(packed.len() < 20_000);
        assert!(unpack(&packed, 1 << 20).is_err());
    }

    #[test]
    fn plain_data_passes_through() {
        assert_eq!(unpack(b"plain", 100).unwrap(), b"plain");
        assert_eq!(unpack(b"", 0).unwrap(), b"");
        // An LZMA properties byte alone does not make an LZMA stream.
        assert_eq!(Compression::detect(b"]\x01\x02\x03\x04 not lzma at all"), None);
    }
}
