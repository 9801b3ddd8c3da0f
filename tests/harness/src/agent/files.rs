//! Files that the harness puts into the host or wants from it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::Path;

use crate::protocol::Message;
use crate::transfer;

/// Does what `request` asks for.
pub(super) fn answer(request: Message, mailbox: &File) -> Message {
    perform(request, mailbox).unwrap_or_else(|error| Message::Failed(error.to_string()))
}

fn perform(request: Message, mailbox: &File) -> io::Result<Message> {
    match request {
        Message::Store { path, pieces, first, metadata } => {
            let path = Path::new(&path);
            if first {
                make_way(path)?;
            }
            let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
            transfer::empty(mailbox, &file, &pieces)?;
            transfer::apply(&file, &metadata)?;
            Ok(Message::Done)
        }
        Message::MakeDirectory { path } => {
            fs::create_dir_all(path)?;
            Ok(Message::Done)
        }
        Message::MakeLink { path, target } => {
            make_way(Path::new(&path))?;
            std::os::unix::fs::symlink(target, path)?;
            Ok(Message::Done)
        }
        Message::Load { path, from } => {
            let file = File::open(path)?;
            let metadata = transfer::metadata(&file)?;
            let batch = transfer::batch(&file, from)?;
            transfer::fill(mailbox, &file, &batch.pieces)?;
            mailbox.sync_data()?;
            Ok(Message::Loaded { pieces: batch.pieces, metadata, next: batch.next })
        }
        other => Err(io::Error::new(io::ErrorKind::InvalidInput, format!("nothing to do for {other:?}"))),
    }
}

/// Removes an older file, which may be a program that runs, and makes the directories above it.
fn make_way(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
