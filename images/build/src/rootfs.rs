//! Root file systems as image files.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::erofs::{self, ErofsError};
use crate::ext4::{self, Ext4Error};
use crate::tree::Tree;

/// Names the file system inside the image.
const LABEL: &str = "vmm-root";

/// What kind of image to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Read-only, as small as its content; guests can share its pages.
    Erofs,
    /// Writable.
    Ext4 {
        /// Least length in bytes, rounded up to a multiple of [`ext4::GRANULARITY`].
        size: u64,
    },
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    /// The directory for the image cannot be made.
    #[error("cannot make the directory {path:?}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The file for the image cannot be made.
    #[error("cannot make {path:?}")]
    Create {
        /// The image.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Writing an EROFS image failed.
    #[error("cannot make the EROFS image {path:?}")]
    Erofs {
        /// The image.
        path: PathBuf,
        /// The cause.
        source: ErofsError,
    },
    /// Writing an ext4 image failed.
    #[error("cannot make the ext4 image {path:?}")]
    Ext4 {
        /// The image.
        path: PathBuf,
        /// The cause.
        source: Ext4Error,
    },
}

/// Writes `tree` as an image to `output`, whole or not at all. Returns its length in bytes.
pub fn write(tree: &Tree, format: Format, output: &Path) -> Result<u64, RootfsError> {
    let directory = match output.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(directory)
        .map_err(|source| RootfsError::Directory { path: directory.to_owned(), source })?;
    let create_error = |source| RootfsError::Create { path: output.to_owned(), source };
    // Readable by all as far as the user's mask allows, like any file that a program makes.
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    let file = tempfile::Builder::new()
        .prefix(".vmm-image-")
        .permissions(permissions)
        .tempfile_in(directory)
        .map_err(create_error)?;

    let size = match format {
        Format::Erofs => {
            let options = erofs::Options { label: LABEL.to_owned(), ..erofs::Options::default() };
            erofs::write(tree, &options, file.as_file())
                .map_err(|source| RootfsError::Erofs { path: output.to_owned(), source })?
                .size
        }
        Format::Ext4 { size } => {
            let options = ext4::Options { size, label: LABEL.to_owned() };
            ext4::write(tree, &options, file.path())
                .map_err(|source| RootfsError::Ext4 { path: output.to_owned(), source })?
        }
    };
    file.as_file().sync_all().map_err(create_error)?;
    file.persist(output).map_err(|error| create_error(error.error))?;
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{Content, Kind, Metadata, Timestamp};

    fn tree(content: Content) -> Tree {
        let metadata = |permissions| Metadata::new(permissions, Timestamp::default());
        let mut tree = Tree::new(metadata(0o755));
        tree.insert("/file", metadata(0o644), Kind::File(content)).unwrap();
        tree
    }

    #[test]
    fn an_image_replaces_another_in_one_step() {
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().join("images/root.erofs");
        for format in [Format::Ext4 { size: 0 }, Format::Erofs] {
            let size = write(&tree(Content::Bytes(b"text".to_vec())), format, &output).unwrap();
            assert_eq!(fs::metadata(&output).unwrap().len(), size);
        }
        assert_eq!(fs::read_dir(output.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_failure_leaves_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().join("root.image");
        let missing = Content::File { path: "/nonexistent".into(), offset: 0, length: 1 };
        for format in [Format::Erofs, Format::Ext4 { size: 0 }] {
            write(&tree(missing.clone()), format, &output).unwrap_err();
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
