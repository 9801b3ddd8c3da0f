//! Kernel files: what they are, and what is packed into them.
//!
//! A bzImage is described in the kernel's `Documentation/arch/x86/boot.rst`: a setup header at 0x1f1, and (from
//! protocol 2.08 on) where in the file the compressed kernel proper lies.

use std::io::{self, Read};

use vmm_images_archive::compression::{Compression, MAGIC_BYTES};

/// What a payload may unpack to. A distribution's kernel takes 60 to 100 MiB.
pub const VMLINUX_BYTES_MAX: u64 = 1 << 30;

/// How much of a file [`Image::parse`] has to see to tell what it is.
pub const HEAD_BYTES: usize = 4096;

/// Why a file is no kernel that can be booted here.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAKernel {
    /// Nothing in it.
    #[error("the file is empty")]
    Empty,
    /// Cut off.
    #[error("the file is truncated: {what} ends at byte {end}, the file at byte {length}")]
    Truncated {
        /// The part that is missing.
        what: &'static str,
        /// Where that part ends.
        end: u64,
        /// The file's length.
        length: u64,
    },
    /// A kernel, for other processors.
    #[error("it is a kernel or program for {0}; this machine needs one for x86-64")]
    OtherArchitecture(&'static str),
    /// ELF, but made to run under a kernel.
    #[error("it is an ordinary program, not a kernel")]
    Program,
    /// Compressed as a whole.
    #[error("it is a file compressed with {0}; unpack it first")]
    Compressed(Compression),
    /// Too old to be booted by anything but a BIOS.
    #[error("it follows boot protocol {}.{:02}; 2.06 (Linux 2.6.22) or later is needed", .0 >> 8, .0 & 0xff)]
    TooOld(u16),
    /// Anything else.
    #[error("it is neither a bzImage nor an ELF vmlinux")]
    Unknown,
}

/// A kernel file, recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Image {
    /// An uncompressed kernel.
    Elf,
    /// A kernel with setup code and, mostly, a compressed payload.
    BzImage(BzImage),
}

/// The parts of a bzImage's setup header that matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BzImage {
    /// The boot protocol's version, major number in the upper byte.
    pub protocol: u16,
    /// Where in the file the payload starts; zero before protocol 2.08.
    pub payload_offset: u64,
    /// The payload's length in bytes.
    pub payload_bytes: u64,
}

/// Why a payload cannot be unpacked here; the kernel unpacks itself then.
#[derive(Debug, thiserror::Error)]
pub enum PayloadError {
    /// The setup header does not say where it is.
    #[error("boot protocol {}.{:02} does not say where the payload is", .0 >> 8, .0 & 0xff)]
    NotStated(u16),
    /// An algorithm such as LZO.
    #[error("its payload's compression is not known here (first bytes {0:02x?})")]
    UnknownCompression(Vec<u8>),
    /// Damaged, or larger than any kernel.
    #[error("its {compression} payload does not unpack")]
    Unpack {
        /// The algorithm.
        compression: Compression,
        /// What the decompressor said.
        source: io::Error,
    },
    /// What came out is not a kernel.
    #[error("its payload unpacks to something else than an ELF kernel")]
    NotElf(#[source] NotAKernel),
}

impl Image {
    /// Tells what a file is from its first [`HEAD_BYTES`] (or all, if shorter) and its length.
    pub fn parse(head: &[u8], length: u64) -> Result<Self, NotAKernel> {
        if length == 0 || head.is_empty() {
            return Err(NotAKernel::Empty);
        }
        if head.starts_with(b"\x7fELF") {
            return parse_elf(head, length).map(|()| Self::Elf);
        }
        // Documentation/arch/arm64/booting.rst and Documentation/arch/riscv/boot-image-header.rst: both may
        // also start as a PE file for EFI does, and so does a bzImage.
        match head.get(0x38..0x3c) {
            Some(b"ARM\x64") => return Err(NotAKernel::OtherArchitecture("64-bit Arm")),
            Some(b"RSC\x05") => return Err(NotAKernel::OtherArchitecture("RISC-V")),
            _ => {}
        }
        if head.get(0x202..0x206) == Some(b"HdrS") && u16_at(head, 0x1fe) == Some(0xaa55) {
            return parse_bzimage(head, length).map(Self::BzImage);
        }
        match Compression::detect(&head[..head.len().min(MAGIC_BYTES)]) {
            Some(compression) => Err(NotAKernel::Compressed(compression)),
            None => Err(NotAKernel::Unknown),
        }
    }
}

impl BzImage {
    /// Unpacks the payload of the whole file `file`: an ELF vmlinux.
    pub fn unpack(&self, file: &[u8]) -> Result<Vec<u8>, PayloadError> {
        if self.payload_offset == 0 || self.payload_bytes == 0 {
            return Err(PayloadError::NotStated(self.protocol));
        }
        let end = (self.payload_offset + self.payload_bytes).min(file.len() as u64);
        let payload = file.get(self.payload_offset as usize..end as usize).unwrap_or_default();
        let head = &payload[..payload.len().min(MAGIC_BYTES)];
        if head.starts_with(b"\x7fELF") {
            return Image::parse(payload, payload.len() as u64)
                .map(|_| payload.to_vec())
                .map_err(PayloadError::NotElf);
        }
        let compression = Compression::detect(head)
            .ok_or_else(|| PayloadError::UnknownCompression(head[..head.len().min(4)].to_vec()))?;
        // The kernel's build appends the unpacked length to streams that do not end with it (all but gzip);
        // an lz4 legacy frame has no end mark, so there it would be taken for a block.
        let unpacked_bytes = payload.last_chunk::<4>().map_or(0, |word| u32::from_le_bytes(*word));
        let stream = match compression {
            Compression::Lz4Legacy => &payload[..payload.len() - 4],
            _ => payload,
        };
        let failed = |source| PayloadError::Unpack { compression, source };
        // The capacity is a hint only: the length is the file's own claim.
        let mut vmlinux = Vec::with_capacity((unpacked_bytes as usize).min(128 << 20));
        compression
            .decoder(stream, VMLINUX_BYTES_MAX)
            .and_then(|mut decoder| decoder.read_to_end(&mut vmlinux))
            .map_err(failed)?;
        match Image::parse(&vmlinux, vmlinux.len() as u64) {
            Ok(Image::Elf) => Ok(vmlinux),
            Ok(Image::BzImage(_)) => Err(PayloadError::NotElf(NotAKernel::Unknown)),
            Err(reason) => Err(PayloadError::NotElf(reason)),
        }
    }
}

/// Checks the file header of an ELF kernel (System V ABI, "ELF Header").
fn parse_elf(head: &[u8], length: u64) -> Result<(), NotAKernel> {
    const EM_X86_64: u16 = 62;
    const PT_LOAD: u32 = 1;
    const PT_INTERP: u32 = 3;
    let truncated = |what, end| NotAKernel::Truncated { what, end, length };

    if head.len() < 64 {
        return Err(truncated("the ELF header", 64));
    }
    let big_endian = head[5] == 2;
    let machine =
        if big_endian { u16::from_be_bytes([head[18], head[19]]) } else { u16_at(head, 18).unwrap_or(0) };
    match machine {
        EM_X86_64 if head[4] == 2 && !big_endian => {}
        3 => return Err(NotAKernel::OtherArchitecture("32-bit x86")),
        20 | 21 => return Err(NotAKernel::OtherArchitecture("PowerPC")),
        22 => return Err(NotAKernel::OtherArchitecture("S/390")),
        40 => return Err(NotAKernel::OtherArchitecture("32-bit Arm")),
        183 => return Err(NotAKernel::OtherArchitecture("64-bit Arm")),
        243 => return Err(NotAKernel::OtherArchitecture("RISC-V")),
        258 => return Err(NotAKernel::OtherArchitecture("LoongArch")),
        _ => return Err(NotAKernel::OtherArchitecture("another processor")),
    }
    let mut has_note = false;
    let mut in_upper_half = false;
    let mut loads = 0;
    let segments =
        program_headers(head).ok_or_else(|| truncated("the program header table", HEAD_BYTES as u64))?;
    for segment in segments {
        match segment.kind {
            PT_INTERP => return Err(NotAKernel::Program),
            PT_LOAD => {
                loads += 1;
                in_upper_half |= segment.address >> 63 == 1;
                let end = segment.offset.saturating_add(segment.file_bytes);
                if end > length {
                    return Err(truncated("a segment", end));
                }
            }
            PT_NOTE => has_note = true,
            _ => {}
        }
    }
    // Linux is linked to the upper half of the address space; anything else must at least carry the note
    // with the PVH entry point to be more than a static program.
    if loads == 0 || !(in_upper_half || has_note) {
        return Err(NotAKernel::Program);
    }
    Ok(())
}

pub(crate) const PT_NOTE: u32 = 4;

/// One entry of an ELF program header table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    pub(crate) kind: u32,
    pub(crate) offset: u64,
    pub(crate) address: u64,
    pub(crate) file_bytes: u64,
}

/// The program headers of a 64-bit little-endian ELF file; nothing where the table lies beyond `file`.
pub(crate) fn program_headers(file: &[u8]) -> Option<impl Iterator<Item = Segment> + '_> {
    const ENTRY_BYTES: usize = 56;
    let offset = usize::try_from(u64_at(file, 32)?).ok()?;
    let count = usize::from(u16_at(file, 56)?);
    if u16_at(file, 54)? as usize != ENTRY_BYTES {
        return None;
    }
    let table = file.get(offset..offset.checked_add(count * ENTRY_BYTES)?)?;
    Some(table.chunks_exact(ENTRY_BYTES).filter_map(|entry| {
        Some(Segment {
            kind: u32_at(entry, 0)?,
            offset: u64_at(entry, 8)?,
            address: u64_at(entry, 16)?,
            file_bytes: u64_at(entry, 32)?,
        })
    }))
}

/// Reads the setup header (boot.rst, "The Real-Mode Kernel Header").
fn parse_bzimage(head: &[u8], length: u64) -> Result<BzImage, NotAKernel> {
    /// The first protocol with a 4 KiB command line, and the first that the monitor's loader takes.
    const PROTOCOL_MIN: u16 = 0x0206;
    const PROTOCOL_PAYLOAD: u16 = 0x0208;
    const SECTOR_BYTES: u64 = 512;

    let field = |offset| u32_at(head, offset).map(u64::from);
    let truncated = |what, end| NotAKernel::Truncated { what, end, length };
    let header = || truncated("the setup header", 0x268);
    let protocol = u16_at(head, 0x206).ok_or_else(header)?;
    if protocol < PROTOCOL_MIN {
        return Err(NotAKernel::TooOld(protocol));
    }
    // "For backwards compatibility, if the setup_sects field contains 0, the real value is 4."
    let setup_sectors = match head[0x1f1] {
        0 => 4,
        sectors => u64::from(sectors),
    };
    let code_start = (setup_sectors + 1) * SECTOR_BYTES;
    // syssize: the protected-mode code in 16-byte paragraphs.
    let code_end = code_start + field(0x1f4).ok_or_else(header)? * 16;
    if protocol < PROTOCOL_PAYLOAD {
        return if code_start < length {
            Ok(BzImage { protocol, payload_offset: 0, payload_bytes: 0 })
        } else {
            Err(truncated("the setup code", code_start))
        };
    }
    let (offset, payload_bytes) = (field(0x248).ok_or_else(header)?, field(0x24c).ok_or_else(header)?);
    let payload_offset = code_start + offset;
    // What a signing tool appended, or padding that a copy dropped, is of no account; the payload is.
    let end = if payload_bytes == 0 { code_end } else { payload_offset + payload_bytes };
    if end > length {
        return Err(truncated("the compressed kernel", end));
    }
    Ok(BzImage { protocol, payload_offset, payload_bytes })
}

pub(crate) fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

pub(crate) fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write;

    use super::*;

    /// An ELF kernel of one upper-half segment holding `content`, and a PVH note if asked for.
    pub(crate) fn elf(content: &[u8], pvh: bool) -> Vec<u8> {
        let mut note = Vec::new();
        if pvh {
            for word in [4_u32, 4, 18, u32::from_le_bytes(*b"Xen\0"), 0x100_0000] {
                note.extend(word.to_le_bytes());
            }
        }
        let data_offset = 64 + 2 * 56;
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(64, 0);
        file[16] = 2;
        file[18] = 62;
        file[32] = 64;
        file[54] = 56;
        file[56] = 2;
        let mut header = |kind: u32, offset: usize, address: u64, bytes: usize| {
            file.extend(kind.to_le_bytes());
            file.extend(7_u32.to_le_bytes());
            for field in [offset as u64, address, 0x100_0000, bytes as u64, bytes as u64, 4] {
                file.extend(field.to_le_bytes());
            }
        };
        header(PT_NOTE, data_offset, 0, note.len());
        header(1, data_offset + note.len(), 0xffff_ffff_8100_0000, content.len());
        file.extend(note);
        file.extend(content);
        file
    }

    /// A bzImage around `payload`, as the kernel's build lays it out.
    pub(crate) fn bzimage(payload: &[u8]) -> Vec<u8> {
        const OFFSET: usize = 0x20;
        let mut file = vec![0; 1024 + OFFSET];
        file[0x1f1] = 1;
        file[0x1f4..0x1f8].copy_from_slice(&((OFFSET + payload.len()).div_ceil(16) as u32).to_le_bytes());
        file[0x1fe..0x200].copy_from_slice(&0xaa55_u16.to_le_bytes());
        file[0x202..0x206].copy_from_slice(b"HdrS");
        file[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
        file[0x248..0x24c].copy_from_slice(&(OFFSET as u32).to_le_bytes());
        file[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        file.extend(payload);
        file
    }

    pub(crate) fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn parse(file: &[u8]) -> Result<Image, NotAKernel> {
        Image::parse(&file[..file.len().min(HEAD_BYTES)], file.len() as u64)
    }

    fn unpack(file: &[u8]) -> Result<Vec<u8>, PayloadError> {
        match parse(file).unwrap() {
            Image::BzImage(image) => image.unpack(file),
            Image::Elf => panic!("an ELF file"),
        }
    }

    #[test]
    fn a_payload_comes_out_as_it_went_in() {
        let kernel = elf(b"Linux version 6.12.1 (", true);
        assert_eq!(parse(&kernel), Ok(Image::Elf));
        assert_eq!(unpack(&bzimage(&gzip(&kernel))).unwrap(), kernel);
        assert_eq!(unpack(&bzimage(&kernel)).unwrap(), kernel);

        // One lz4 block of literals, and the length that the kernel's build appends.
        let mut lz4 = 0x184c_2102_u32.to_le_bytes().to_vec();
        let mut block = vec![0xf0, (kernel.len() - 15) as u8];
        block.extend(&kernel);
        lz4.extend((block.len() as u32).to_le_bytes());
        lz4.extend(block);
        lz4.extend((kernel.len() as u32).to_le_bytes());
        assert_eq!(unpack(&bzimage(&lz4)).unwrap(), kernel);
    }

    #[test]
    fn payloads_that_cannot_be_unpacked_say_why() {
        let lzo = b"\x89LZO\x00\x0d\x0a\x1a\x0a and so on";
        assert!(matches!(unpack(&bzimage(lzo)), Err(PayloadError::UnknownCompression(_))));
        let text = gzip(b"not a kernel");
        assert!(matches!(unpack(&bzimage(&text)), Err(PayloadError::NotElf(NotAKernel::Unknown))));
        let mut damaged = gzip(&elf(&[7; 1000], true));
        damaged.truncate(40);
        assert!(matches!(unpack(&bzimage(&damaged)), Err(PayloadError::Unpack { .. })));
        let mut old = bzimage(&gzip(b""));
        old[0x206] = 0x07;
        assert!(matches!(unpack(&old), Err(PayloadError::NotStated(0x207))));
    }

    #[test]
    fn other_files_are_told_apart() {
        use NotAKernel::*;
        let mut arm = vec![0; 100];
        arm[0x38..0x3c].copy_from_slice(b"ARM\x64");
        let mut arm_elf = elf(b"", true);
        arm_elf[18] = 183;
        let mut program = elf(b"", false);
        program[64 + 56 + 16 + 7] = 0;
        program[64] = 6;
        let mut interpreted = elf(b"", true);
        interpreted[64] = 3;
        let mut too_old = bzimage(b"x");
        too_old[0x206] = 0x03;
        for (file, expected) in [
            (b"".to_vec(), Empty),
            (b"#!/bin/sh".to_vec(), Unknown),
            (gzip(b"vmlinux"), Compressed(Compression::Gzip)),
            (arm, OtherArchitecture("64-bit Arm")),
            (arm_elf, OtherArchitecture("64-bit Arm")),
            (program, Program),
            (interpreted, Program),
            (too_old, TooOld(0x203)),
        ] {
            assert_eq!(parse(&file), Err(expected));
        }
    }

    #[test]
    fn truncation_is_noticed_wherever_it_falls() {
        for file in [elf(&[1; 100], true), bzimage(&gzip(&elf(&[1; 100], true)))] {
            assert!(parse(&file).is_ok());
            for length in 0..file.len() {
                assert!(parse(&file[..length]).is_err(), "at {length}");
            }
        }
    }

    #[test]
    fn lying_headers_are_survived() {
        let mut huge = bzimage(&gzip(b""));
        huge[0x248..0x250].fill(0xff);
        assert!(matches!(parse(&huge), Err(NotAKernel::Truncated { .. })));
        for (offset, bytes) in [(32, 8), (56, 2), (64 + 8, 8), (64 + 56 + 8, 8), (64 + 56 + 32, 8)] {
            let mut file = elf(&[1; 100], true);
            file[offset..offset + bytes].fill(0xff);
            let _ = parse(&file);
            let _ = crate::facts::Facts::of_vmlinux(&file);
        }
    }
}
