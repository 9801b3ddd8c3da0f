//! What the harness and the agent in a host say to each other.
//!
//! A byte stream of frames: length of the payload (`u32`, little-endian), number of the command that it belongs
//! to (`u32`; 0 for the host itself), kind (`u8`), payload. What commands read and write goes as it is, the rest
//! as JSON.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

/// The command number of frames that concern the host as a whole.
pub(crate) const HOST: u32 = 0;

/// Longest payload that is taken, in bytes: beyond it the stream is not one of frames.
const PAYLOAD_MAX: u32 = 16 << 20;
const HEADER_BYTES: usize = 9;

const KIND_MESSAGE: u8 = 0;
const KIND_STDIN: u8 = 1;
const KIND_STDOUT: u8 = 2;
const KIND_STDERR: u8 = 3;

/// One frame's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    /// Anything but a command's data.
    Message(Message),
    /// What a command is to read; empty at the end.
    Stdin(Vec<u8>),
    /// What a command wrote. A command on a terminal writes only this.
    Stdout(Vec<u8>),
    /// What a command wrote to its standard error.
    Stderr(Vec<u8>),
}

/// Everything that is said besides data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Message {
    /// The host is up, and waits for [`Message::Begin`].
    Hello,
    /// Use it.
    Begin {
        /// The time, in nanoseconds since the epoch.
        time_ns: u64,
    },
    /// The agent takes commands.
    Ready,
    /// The agent still runs.
    Heartbeat,
    /// Start a command.
    Exec(Exec),
    /// Signal a command's process group.
    Signal(i32),
    /// Change the size of a command's terminal.
    Resize(WindowSize),
    /// A command ended.
    Exited(Exit),
    /// Write what the mailbox holds to a file.
    Store {
        /// The file; parents are made.
        path: String,
        /// Where the mailbox's content belongs.
        pieces: Vec<Piece>,
        /// Whether this is the first message about this file: it replaces an older one.
        first: bool,
        /// What the file is like besides its content.
        metadata: Metadata,
    },
    /// Make a directory, with its parents.
    MakeDirectory {
        /// The directory.
        path: String,
    },
    /// Make a symbolic link in place of what is there.
    MakeLink {
        /// The link.
        path: String,
        /// What it says.
        target: String,
    },
    /// Put a file's content into the mailbox, from an offset on.
    Load {
        /// The file.
        path: String,
        /// Where to start, in bytes.
        from: u64,
    },
    /// The answer to [`Message::Load`].
    Loaded {
        /// Where the mailbox's content belongs.
        pieces: Vec<Piece>,
        /// What the file is like besides its content.
        metadata: Metadata,
        /// Where to go on, if this is not all.
        next: Option<u64>,
    },
    /// It was done.
    Done,
    /// It could not be done.
    Failed(String),
}

/// A command to run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// Variables besides the host's usual ones.
    pub env: Vec<(String, String)>,
    /// The working directory, made if need be.
    pub cwd: Option<String>,
    /// Whether it gets a terminal, and of which size.
    pub terminal: Option<WindowSize>,
}

/// Size of a terminal in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// By itself, with this status.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl Exit {
    /// Whether it ended with status 0.
    pub fn success(self) -> bool {
        self == Self::Code(0)
    }

    /// As a shell would say it: 128 and more for signals.
    pub fn code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal,
        }
    }
}

/// A part of a file that holds data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Piece {
    /// Where it starts in the file, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub length: u64,
}

/// What a copied file keeps besides its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Metadata {
    /// Length in bytes.
    pub length: u64,
    /// Permission bits.
    pub mode: u32,
    /// Time of the last change, in nanoseconds since the epoch.
    pub modified_ns: u64,
}

/// Reads a frame and the number of its command; none at the end of the stream.
pub(crate) fn read(input: &mut impl Read) -> io::Result<Option<(u32, Frame)>> {
    let mut header = [0; HEADER_BYTES];
    // A stream may end between frames only.
    loop {
        match input.read(&mut header[..1]) {
            Ok(0) => return Ok(None),
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    input.read_exact(&mut header[1..])?;
    let word =
        |at: usize| header[at..at + 4].iter().rev().fold(0, |value, &byte| value << 8 | u32::from(byte));
    let (length, command, kind) = (word(0), word(4), header[8]);
    if length > PAYLOAD_MAX || kind > KIND_STDERR {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("no frame starts with {header:02x?}"),
        ));
    }
    let mut payload = vec![0; length as usize];
    input.read_exact(&mut payload)?;
    let frame = match kind {
        KIND_STDIN => Frame::Stdin(payload),
        KIND_STDOUT => Frame::Stdout(payload),
        KIND_STDERR => Frame::Stderr(payload),
        _ => Frame::Message(serde_json::from_slice(&payload)?),
    };
    Ok(Some((command, frame)))
}

/// Writes a frame that belongs to `command`.
pub(crate) fn write(output: &mut impl Write, command: u32, frame: &Frame) -> io::Result<()> {
    let json;
    let (kind, payload) = match frame {
        Frame::Message(message) => {
            json = serde_json::to_vec(message)?;
            (KIND_MESSAGE, &json)
        }
        Frame::Stdin(data) => (KIND_STDIN, data),
        Frame::Stdout(data) => (KIND_STDOUT, data),
        Frame::Stderr(data) => (KIND_STDERR, data),
    };
    let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
    bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&command.to_le_bytes());
    bytes.push(kind);
    bytes.extend_from_slice(payload);
    output.write_all(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_as_they_were() {
        let frames = [
            (HOST, Frame::Message(Message::Ready)),
            (7, Frame::Stdin(Vec::new())),
            (7, Frame::Stdout(vec![0, 255, b'\n'])),
            (8, Frame::Message(Message::Exited(Exit::Signal(9)))),
        ];
        let mut stream = Vec::new();
        for (command, frame) in &frames {
            write(&mut stream, *command, frame).unwrap();
        }
        let mut input = stream.as_slice();
        for expected in frames {
            assert_eq!(read(&mut input).unwrap(), Some(expected));
        }
        assert_eq!(read(&mut input).unwrap(), None);
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        let mut stream = Vec::new();
        write(&mut stream, 1, &Frame::Stdout(b"text".to_vec())).unwrap();
        stream.pop();
        assert_eq!(read(&mut stream.as_slice()).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(read(&mut [0xff; 32].as_slice()).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
