//! The kernel's command line.

use linux_loader::cmdline::Cmdline;

/// The longest command line, with its final zero, in bytes (`COMMAND_LINE_SIZE` of Linux on x86).
pub(super) const MAX: usize = 2048;

/// The command line cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CmdlineError {
    /// It is too long.
    #[error("the kernel command line is {len} bytes long, {max} are the most")]
    TooLong {
        /// How long it is.
        len: usize,
        /// The most.
        max: usize,
    },
    /// It has characters that a command line cannot have.
    #[error("the kernel command line has characters other than printable ASCII")]
    Characters,
}

/// Checks `text` and makes a command line of it. What follows ` -- ` goes to init.
pub fn command_line(text: &str) -> Result<Cmdline, CmdlineError> {
    if text.len() >= MAX {
        return Err(CmdlineError::TooLong { len: text.len(), max: MAX - 1 });
    }
    if !text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return Err(CmdlineError::Characters);
    }
    Cmdline::try_from(text, MAX).map_err(|_| CmdlineError::Characters)
}

/// Adds a word for the kernel to a command line, ahead of what is meant for init.
pub fn insert_word(text: &mut String, word: &str) {
    let at = text.find(" -- ").unwrap_or(text.len());
    text.insert_str(at, &format!(" {word}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn length_and_characters_are_checked() {
        let fits = "x".repeat(MAX - 1);
        assert_eq!(command_line(&fits).unwrap().as_cstring().unwrap().as_bytes().len(), MAX - 1);
        assert!(matches!(command_line(&"x".repeat(MAX)), Err(CmdlineError::TooLong { len: MAX, .. })));
        assert!(matches!(command_line("a\nb"), Err(CmdlineError::Characters)));
    }

    #[test]
    fn arguments_of_init_come_last() {
        let line = command_line("quiet -- sh -c ls").unwrap();
        assert_eq!(line.as_cstring().unwrap().to_str().unwrap(), "quiet -- sh -c ls");
    }

    #[test]
    fn words_for_the_kernel_come_before_those_for_init() {
        let mut text = String::from("quiet -- sh -c ls");
        insert_word(&mut text, "virtio_mmio.device=4096@0xd0000000:6");
        assert_eq!(text, "quiet virtio_mmio.device=4096@0xd0000000:6 -- sh -c ls");
        let mut text = String::from("quiet");
        insert_word(&mut text, "ro");
        assert_eq!(text, "quiet ro");
    }
}
