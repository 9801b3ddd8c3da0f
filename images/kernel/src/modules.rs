//! Kernel modules: where they are and in which order they have to be loaded.
//!
//! Each module says itself what it needs, in its `.modinfo` section; packages that carry no `modules.dep` (it is
//! made when they are installed) are therefore as good as any.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use vmm_images_archive::compression;

use crate::image::{u16_at, u32_at, u64_at};

/// No module comes near it.
const MODULE_BYTES_MAX: u64 = 256 << 20;
/// Directories below a release's; deeper ones are no kernel's.
const DEPTH_MAX: usize = 16;

/// Why the modules that are needed cannot be gathered.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// The file system, or a compressed module that does not unpack.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file named like a module, but of another kind.
    #[error("{} is no kernel module", path.display())]
    NotAModule {
        /// The file.
        path: PathBuf,
    },
    /// A module, or one that it depends on, is not there.
    #[error("kernel module {name} is missing from {}", directory.display())]
    Missing {
        /// The module.
        name: String,
        /// Where it should be.
        directory: PathBuf,
    },
}

/// A module's content and its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Its name, as `/proc/modules` spells it.
    pub name: String,
    /// Its file's path below the modules' directory.
    pub path: PathBuf,
    /// Its uncompressed content.
    pub content: Vec<u8>,
}

/// The modules of one kernel: the content of `/lib/modules/RELEASE`.
#[derive(Debug)]
pub struct ModuleTree {
    directory: PathBuf,
    files: BTreeMap<String, PathBuf>,
    built_in: HashSet<String>,
}

impl ModuleTree {
    /// Looks through `directory`.
    pub fn scan(directory: &Path) -> Result<Self, ModuleError> {
        let mut files = BTreeMap::new();
        scan_directory(directory, Path::new(""), DEPTH_MAX, &mut files)?;
        let list = fs::read_to_string(directory.join("modules.builtin")).unwrap_or_default();
        let built_in = list.lines().filter_map(|line| module_name(Path::new(line))).collect();
        Ok(Self { directory: directory.to_owned(), files, built_in })
    }

    /// Whether the module is there, as a file or built in.
    pub fn has(&self, name: &str) -> bool {
        self.files.contains_key(name) || self.built_in.contains(name)
    }

    /// The modules of `names` and all that they depend on, each after what it needs. What is built in or not
    /// there is left out, except that dependencies must be there.
    pub fn in_load_order(&self, names: &[&str]) -> Result<Vec<Module>, ModuleError> {
        let mut order = Vec::new();
        let mut seen = BTreeSet::new();
        for name in names.iter().filter(|name| self.files.contains_key(**name)) {
            self.add(name, &mut seen, &mut order)?;
        }
        Ok(order)
    }

    fn add(
        &self,
        name: &str,
        seen: &mut BTreeSet<String>,
        order: &mut Vec<Module>,
    ) -> Result<(), ModuleError> {
        // Marked before its dependencies are followed, so that a circle of them ends.
        if self.built_in.contains(name) || !seen.insert(name.to_owned()) {
            return Ok(());
        }
        let path = self.files.get(name).ok_or_else(|| ModuleError::Missing {
            name: name.to_owned(),
            directory: self.directory.clone(),
        })?;
        let content = self.read(path)?;
        let info = ModuleInfo::of(&content)
            .ok_or_else(|| ModuleError::NotAModule { path: self.directory.join(path) })?;
        for wish in &info.soft_depends {
            for provider in self.providers(wish)? {
                self.add(&provider, seen, order)?;
            }
        }
        for needed in &info.depends {
            self.add(needed, seen, order)?;
        }
        order.push(Module { name: name.to_owned(), path: path.clone(), content });
        Ok(())
    }

    /// The modules that a soft dependency means. It names a module, or an alias: the kernel's crypto modules
    /// are asked for by algorithm ("crc32c" means `crc32c_intel` and `crc32c_generic`), and their own names start
    /// with it, so that not every module has to be opened.
    fn providers(&self, wish: &str) -> Result<Vec<String>, ModuleError> {
        if self.has(wish) {
            return Ok(vec![wish.to_owned()]);
        }
        let mut providers = Vec::new();
        for (name, path) in self.files.range(wish.to_owned()..) {
            if !name.starts_with(wish) {
                break;
            }
            let content = self.read(path)?;
            if ModuleInfo::of(&content).is_some_and(|info| info.aliases.iter().any(|alias| alias == wish)) {
                providers.push(name.clone());
            }
        }
        Ok(providers)
    }

    fn read(&self, path: &Path) -> Result<Vec<u8>, ModuleError> {
        let path = self.directory.join(path);
        let mut content = Vec::new();
        File::open(&path)
            .and_then(|file| compression::open(BufReader::new(file), MODULE_BYTES_MAX))
            .and_then(|mut stream| stream.read_to_end(&mut content))
            .map_err(|source| ModuleError::Read { path, source })?;
        Ok(content)
    }
}

fn scan_directory(
    root: &Path,
    below: &Path,
    depth: usize,
    files: &mut BTreeMap<String, PathBuf>,
) -> Result<(), ModuleError> {
    let directory = root.join(below);
    let error = |source| ModuleError::Read { path: directory.clone(), source };
    for entry in fs::read_dir(&directory).map_err(error)? {
        let entry = entry.map_err(error)?;
        let path = below.join(entry.file_name());
        // Links, such as `build` to the kernel's headers, are not followed.
        let kind = entry.file_type().map_err(error)?;
        if kind.is_dir() && depth > 0 {
            scan_directory(root, &path, depth - 1, files)?;
        } else if kind.is_file()
            && let Some(name) = module_name(&path)
        {
            files.insert(name, path);
        }
    }
    Ok(())
}

/// "kernel/crypto/crc32c-intel.ko.xz" holds the module `crc32c_intel`.
pub(crate) fn module_name(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let stem = ["", ".xz", ".zst", ".gz"]
        .iter()
        .find_map(|suffix| file.strip_suffix(suffix)?.strip_suffix(".ko"))?;
    Some(stem.replace('-', "_"))
}

/// What a module says of itself.
#[derive(Debug, Default, PartialEq, Eq)]
struct ModuleInfo {
    depends: Vec<String>,
    soft_depends: Vec<String>,
    aliases: Vec<String>,
}

impl ModuleInfo {
    /// Reads the `.modinfo` section of a 64-bit ELF object: strings `key=value`, each with a zero at its end.
    fn of(module: &[u8]) -> Option<Self> {
        let mut info = Self::default();
        for entry in section(module, b".modinfo")?.split(|&byte| byte == 0) {
            let Some((key, value)) = std::str::from_utf8(entry).ok().and_then(|text| text.split_once('='))
            else {
                continue;
            };
            let name = |word: &str| word.replace('-', "_");
            match key {
                "depends" => info.depends.extend(value.split(',').filter(|word| !word.is_empty()).map(name)),
                "softdep" => {
                    // "pre: a b post: c"; only what should come before matters here.
                    let before = value.split_once("pre:").map_or("", |(_, rest)| rest);
                    let before = before.split_once("post:").map_or(before, |(before, _)| before);
                    info.soft_depends.extend(before.split_whitespace().map(name));
                }
                "alias" => info.aliases.push(name(value)),
                _ => {}
            }
        }
        Some(info)
    }
}

/// The content of an ELF section (System V ABI, "Sections").
fn section<'a>(file: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    const ENTRY_BYTES: usize = 64;
    if !file.starts_with(b"\x7fELF\x02\x01") || u16_at(file, 58)? as usize != ENTRY_BYTES {
        return None;
    }
    let table = usize::try_from(u64_at(file, 40)?).ok()?;
    let count = usize::from(u16_at(file, 60)?);
    let headers = file.get(table..table.checked_add(count * ENTRY_BYTES)?)?;
    let content = |header: &[u8]| {
        let start = usize::try_from(u64_at(header, 24)?).ok()?;
        let bytes = usize::try_from(u64_at(header, 32)?).ok()?;
        file.get(start..start.checked_add(bytes)?)
    };
    let names = content(headers.chunks_exact(ENTRY_BYTES).nth(usize::from(u16_at(file, 62)?))?)?;
    let header = headers.chunks_exact(ENTRY_BYTES).find(|header| {
        let start = u32_at(header, 0).unwrap_or(u32::MAX) as usize;
        names
            .get(start..)
            .is_some_and(|rest| rest.strip_prefix(name).is_some_and(|rest| rest.first() == Some(&0)))
    })?;
    content(header)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::image::tests::gzip;

    /// An ELF object with nothing but a `.modinfo` section.
    pub(crate) fn module(info: &[&str]) -> Vec<u8> {
        let names = b"\0.modinfo\0";
        let info: Vec<u8> = info.iter().flat_map(|line| line.bytes().chain([0])).collect();
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(64, 0);
        let table = 64 + names.len() + info.len();
        file[40..48].copy_from_slice(&(table as u64).to_le_bytes());
        file[58] = 64;
        file[60] = 2;
        file.extend(names);
        file.extend(&info);
        for (name, start, bytes) in [(0_u32, 64, names.len()), (1, 64 + names.len(), info.len())] {
            let mut header = vec![0; 64];
            header[0..4].copy_from_slice(&name.to_le_bytes());
            header[24..32].copy_from_slice(&(start as u64).to_le_bytes());
            header[32..40].copy_from_slice(&(bytes as u64).to_le_bytes());
            file.extend(header);
        }
        file
    }

    pub(crate) fn write(directory: &Path, path: &str, content: &[u8]) {
        let path = directory.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn names(modules: &[Module]) -> Vec<&str> {
        modules.iter().map(|module| module.name.as_str()).collect()
    }

    #[test]
    fn modules_come_after_what_they_need() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        write(
            root,
            "kernel/fs/ext4.ko",
            &module(&["depends=mbcache,jbd2", "softdep=pre: crc32c post: other"]),
        );
        write(root, "kernel/fs/jbd2.ko", &module(&["license=GPL", "depends="]));
        write(root, "kernel/fs/mbcache.ko.gz", &gzip(&module(&["depends="])));
        write(root, "kernel/crypto/crc32c-intel.ko", &module(&["alias=crypto-crc32c", "alias=crc32c"]));
        write(root, "kernel/crypto/crc32c_test.ko", &module(&["alias=unrelated"]));
        write(root, "kernel/virtio_blk.ko", &module(&["depends=virtio,virtio_ring"]));
        write(root, "kernel/virtio_ring.ko", &module(&["depends="]));
        write(root, "modules.builtin", b"kernel/drivers/virtio/virtio.ko\n");
        let tree = ModuleTree::scan(root).unwrap();
        let modules = tree.in_load_order(&["virtio_blk", "ext4", "virtio", "absent", "jbd2"]).unwrap();
        assert_eq!(names(&modules), ["virtio_ring", "virtio_blk", "crc32c_intel", "mbcache", "jbd2", "ext4"]);
        assert!(modules.iter().all(|module| module.content.starts_with(b"\x7fELF")), "uncompressed");
        assert!(tree.has("virtio") && tree.has("ext4") && !tree.has("absent"));
    }

    #[test]
    fn circles_end_and_gaps_are_named() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        write(root, "a.ko", &module(&["depends=b"]));
        write(root, "b.ko", &module(&["depends=a"]));
        write(root, "c.ko", &module(&["depends=gone"]));
        let tree = ModuleTree::scan(root).unwrap();
        assert_eq!(names(&tree.in_load_order(&["a"]).unwrap()), ["b", "a"]);
        let error = tree.in_load_order(&["c"]).unwrap_err();
        assert!(matches!(error, ModuleError::Missing { name, .. } if name == "gone"));
    }

    #[test]
    fn broken_modules_are_errors() {
        let whole = module(&["depends=x"]);
        for length in 0..whole.len() {
            assert_eq!(ModuleInfo::of(&whole[..length]), None);
        }
        for offset in [40, 58, 60, 62] {
            let mut broken = whole.clone();
            broken[offset..offset + 2].fill(0xff);
            assert_eq!(ModuleInfo::of(&broken), None);
        }
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), "a.ko", b"text");
        let tree = ModuleTree::scan(directory.path()).unwrap();
        assert!(matches!(tree.in_load_order(&["a"]), Err(ModuleError::NotAModule { .. })));
    }
}
