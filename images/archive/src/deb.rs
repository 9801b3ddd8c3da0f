//! Debian packages: an `ar` archive of `debian-binary`, `control.tar.*` and `data.tar.*` (deb(5)).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Component, Path, PathBuf};

use crate::compression::{self, Limited};

const AR_MAGIC: &[u8; 8] = b"!<arch>\n";
const AR_HEADER_BYTES: usize = 60;
const AR_HEADER_END: &[u8] = b"`\n";

/// The largest package content unpacked; kernels with all their modules take less than a tenth.
const DATA_BYTES_MAX: u64 = 8 << 30;
/// The control archive holds a few text files.
const CONTROL_BYTES_MAX: u64 = 64 << 20;
const CONTROL_FILE_BYTES_MAX: u64 = 1 << 20;

/// Why a package could not be read.
#[derive(Debug, thiserror::Error)]
pub enum DebError {
    /// The file itself.
    #[error("cannot read {}", path.display())]
    Read {
        /// The package.
        path: PathBuf,
        /// What the system said, or what the visitor of its files returned.
        source: io::Error,
    },
    /// The file is something else, or damaged.
    #[error("{} is not a Debian package: {reason}", path.display())]
    NotAPackage {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// A package file.
#[derive(Debug)]
pub struct Package {
    path: PathBuf,
}

/// What a member of the data archive is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link and its target, which may be anything: never follow it outside a fresh root.
    Symlink(PathBuf),
    /// A second name of an earlier member.
    Hardlink(PathBuf),
    /// A device or a pipe.
    Special,
}

/// A member of the data archive. Reading it yields a regular file's content.
pub struct Member<'a> {
    /// The path below the root: relative, with neither `.` nor `..` in it.
    pub path: PathBuf,
    /// What it is.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u32,
    /// The content's length in bytes.
    pub size: u64,
    content: &'a mut dyn Read,
}

impl Read for Member<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.content.read(buffer)
    }
}

impl Package {
    /// Opens a package and checks that it is one.
    pub fn open(path: &Path) -> Result<Self, DebError> {
        let package = Self { path: path.to_owned() };
        package.member("data.tar", DATA_BYTES_MAX)?;
        Ok(package)
    }

    /// The fields of the control file, such as `Package`, `Version`, `Architecture` and `Depends`.
    pub fn control(&self) -> Result<BTreeMap<String, String>, DebError> {
        let mut archive = tar::Archive::new(self.member("control.tar", CONTROL_BYTES_MAX)?);
        for entry in archive.entries().map_err(|source| self.read_error(source))? {
            let entry = entry.map_err(|source| self.read_error(source))?;
            let name = clean(&entry.path().map_err(|source| self.read_error(source))?);
            if name.as_deref() != Some(Path::new("control")) {
                continue;
            }
            let mut text = String::new();
            Limited::new(entry, CONTROL_FILE_BYTES_MAX)
                .read_to_string(&mut text)
                .map_err(|source| self.read_error(source))?;
            return Ok(parse_control(&text));
        }
        Err(self.not_a_package("it has no control file"))
    }

    /// Calls `visit` for each member of the data archive, in the archive's order.
    pub fn visit(&self, mut visit: impl FnMut(Member<'_>) -> io::Result<()>) -> Result<(), DebError> {
        let mut archive = tar::Archive::new(self.member("data.tar", DATA_BYTES_MAX)?);
        let read_error = |source| self.read_error(source);
        for entry in archive.entries().map_err(read_error)? {
            let mut entry = entry.map_err(read_error)?;
            let name = entry.path().map_err(read_error)?.into_owned();
            let path = clean(&name)
                .ok_or_else(|| self.not_a_package(format!("{} leads out of it", name.display())))?;
            if path.as_os_str().is_empty() {
                continue;
            }
            let target = entry.link_name().map_err(read_error)?.unwrap_or_default().into_owned();
            let kind = match entry.header().entry_type() {
                tar::EntryType::Regular | tar::EntryType::Continuous => Kind::File,
                tar::EntryType::Directory => Kind::Directory,
                tar::EntryType::Symlink => Kind::Symlink(target),
                tar::EntryType::Link => Kind::Hardlink(
                    clean(&target)
                        .ok_or_else(|| self.not_a_package(format!("{} leads out of it", target.display())))?,
                ),
                _ => Kind::Special,
            };
            let mode = entry.header().mode().map_err(read_error)? & 0o7777;
            let size = entry.size();
            visit(Member { path, kind, mode, size, content: &mut entry }).map_err(read_error)?;
        }
        Ok(())
    }

    /// The content of the regular file at `path`, if there is one of at most `limit` bytes.
    pub fn read(&self, path: &Path, limit: u64) -> Result<Option<Vec<u8>>, DebError> {
        let mut found = None;
        self.visit(|mut member| {
            if member.kind == Kind::File && member.path == path {
                let mut content = Vec::new();
                Limited::new(&mut member, limit).read_to_end(&mut content)?;
                found = Some(content);
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// The decompressed member of the outer archive whose name starts with `name`.
    fn member(&self, name: &str, limit: u64) -> Result<impl Read + use<>, DebError> {
        let file = File::open(&self.path).map_err(|source| self.read_error(source))?;
        if file.metadata().is_ok_and(|metadata| metadata.is_dir()) {
            return Err(self.not_a_package("it is a directory"));
        }
        match find_member(BufReader::new(file), name) {
            Ok(Some(member)) => compression::open(BufReader::with_capacity(1 << 16, member), limit)
                .map_err(|e| self.read_error(e)),
            Ok(None) => Err(self.not_a_package(format!("it has no member {name}"))),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(self.not_a_package("it ends too early"))
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                Err(self.not_a_package(error.to_string()))
            }
            Err(error) => Err(self.read_error(error)),
        }
    }

    fn read_error(&self, source: io::Error) -> DebError {
        DebError::Read { path: self.path.clone(), source }
    }

    fn not_a_package(&self, reason: impl Into<String>) -> DebError {
        DebError::NotAPackage { path: self.path.clone(), reason: reason.into() }
    }
}

/// Walks an `ar` archive to the first member whose name starts with `prefix`.
fn find_member<R: Read>(mut archive: R, prefix: &str) -> io::Result<Option<io::Take<R>>> {
    let invalid = |message: &str| io::Error::new(io::ErrorKind::InvalidData, message);
    let mut magic = [0; AR_MAGIC.len()];
    archive.read_exact(&mut magic)?;
    if &magic != AR_MAGIC {
        return Err(invalid("it does not start as an ar archive does"));
    }
    let mut header = Vec::with_capacity(AR_HEADER_BYTES);
    loop {
        header.clear();
        (&mut archive).take(AR_HEADER_BYTES as u64).read_to_end(&mut header)?;
        match header.len() {
            0 => return Ok(None),
            AR_HEADER_BYTES if header.ends_with(AR_HEADER_END) => {}
            AR_HEADER_BYTES => return Err(invalid("a member's header is damaged")),
            _ => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
        let name = String::from_utf8_lossy(&header[..16]);
        let size: u64 = std::str::from_utf8(&header[48..58])
            .ok()
            .and_then(|digits| digits.trim_end().parse().ok())
            .ok_or_else(|| invalid("a member's size is no number"))?;
        if name.starts_with(prefix) {
            return Ok(Some(archive.take(size)));
        }
        // Members start at even offsets.
        let skip = size + size % 2;
        if io::copy(&mut (&mut archive).take(skip), &mut io::sink())? < skip {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Makes a path from an archive relative to the root; nothing where it would leave it.
fn clean(path: &Path) -> Option<PathBuf> {
    let mut cleaned = PathBuf::new();
    for component in path.components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => cleaned.push(name),
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    Some(cleaned)
}

/// Fields in the form of RFC 822 headers; a line that starts with a blank continues the one before.
fn parse_control(text: &str) -> BTreeMap<String, String> {
    let mut fields: BTreeMap<String, String> = BTreeMap::new();
    let mut last = None;
    for line in text.lines() {
        if line.starts_with([' ', '\t']) {
            if let Some(value) = last.as_ref().and_then(|name| fields.get_mut(name)) {
                value.push('\n');
                value.push_str(line.trim());
            }
        } else if let Some((name, value)) = line.split_once(':') {
            fields.insert(name.to_owned(), value.trim().to_owned());
            last = Some(name.to_owned());
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn ar(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut archive = AR_MAGIC.to_vec();
        for (name, content) in members {
            writeln!(archive, "{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`", 0, 0, 0, "100644", content.len())
                .unwrap();
            archive.extend_from_slice(content);
            if content.len() % 2 == 1 {
                archive.push(b'\n');
            }
        }
        archive
    }

    fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, content) in files {
            let mut header = tar::Header::new_gnu();
            // The safe setter refuses the hostile names that these tests are about.
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            header.set_entry_type(tar::EntryType::Regular);
            header.set_cksum();
            builder.append(&header, *content).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn package(content: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content).unwrap();
        file
    }

    fn deb(data: &[(&str, &[u8])]) -> tempfile::NamedTempFile {
        let control = tar(&[("./control", b"Package: tool\nVersion: 1:2-3\nDescription: one\n more\n")]);
        let control = zstd::encode_all(control.as_slice(), 1).unwrap();
        let members: [(&str, &[u8]); 3] =
            [("debian-binary", b"2.0\n"), ("control.tar.zst", &control), ("data.tar", &tar(data))];
        package(&ar(&members))
    }

    #[test]
    fn control_fields_and_files_are_read() {
        let file = deb(&[("./usr/", b""), ("./usr/bin/tool", b"#!tool"), ("/abs/olute", b"x")]);
        let package = Package::open(file.path()).unwrap();
        let control = package.control().unwrap();
        assert_eq!(control["Package"], "tool");
        assert_eq!(control["Version"], "1:2-3");
        assert_eq!(control["Description"], "one\nmore");
        assert_eq!(package.read(Path::new("usr/bin/tool"), 10).unwrap().unwrap(), b"#!tool");
        assert_eq!(package.read(Path::new("abs/olute"), 10).unwrap().unwrap(), b"x");
        assert_eq!(package.read(Path::new("missing"), 10).unwrap(), None);
        assert!(package.read(Path::new("usr/bin/tool"), 3).is_err());
    }

    #[test]
    fn a_path_that_leads_out_is_refused() {
        let file = deb(&[("./../../etc/passwd", b"root")]);
        let error = Package::open(file.path()).unwrap().visit(|_| Ok(())).unwrap_err();
        assert!(error.to_string().contains("leads out of it"), "{error}");
    }

    #[test]
    fn other_and_broken_files_say_what_they_are() {
        let whole = std::fs::read(deb(&[("./a", b"a")]).path()).unwrap();
        for (content, reason) in [
            (b"".as_slice(), "ends too early"),
            (b"PK\x03\x04 a zip archive", "does not start as an ar archive"),
            (&whole[..90], "ends too early"),
            (&ar(&[("debian-binary", b"2.0\n")]), "no member data.tar"),
        ] {
            let file = package(content);
            let error = Package::open(file.path()).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
        let directory = tempfile::tempdir().unwrap();
        assert!(Package::open(directory.path()).unwrap_err().to_string().contains("a directory"));
    }
}
