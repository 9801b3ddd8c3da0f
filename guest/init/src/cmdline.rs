//! The kernel's command line, split as the kernel splits it (`lib/cmdline.c`, `next_arg`).

use std::time::Duration;

/// How long to wait for the root device unless `rootwait=SECONDS` says otherwise.
const DEFAULT_ROOT_WAIT: Duration = Duration::from_secs(30);

/// The parameters that concern PID 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CommandLine {
    /// `root=`: the device with the root file system.
    pub(crate) root: Option<String>,
    /// `rootfstype=`: file systems to try, in order; empty if not given.
    pub(crate) root_types: Vec<String>,
    /// `rootflags=`: options for the mount.
    pub(crate) root_flags: Option<String>,
    /// `ro` or `rw`, whichever comes last; the kernel's default is read-only.
    pub(crate) read_only: bool,
    /// `rootwait=SECONDS`: how long the root device may take to appear.
    pub(crate) root_wait: Duration,
    /// `init=`: the program to run as PID 1.
    pub(crate) init: Option<String>,
    /// The words after a lone `--`, which the kernel leaves to init.
    pub(crate) init_words: Vec<String>,
}

impl CommandLine {
    /// Reads the running kernel's command line; `/proc` has to be mounted.
    pub(crate) fn of_kernel() -> std::io::Result<Self> {
        // Bytes beyond ASCII are as good as any other in a file name, but no name of ours has them.
        std::fs::read("/proc/cmdline").map(|bytes| Self::parse(&String::from_utf8_lossy(&bytes)))
    }

    /// Takes a command line apart. Later parameters win over earlier ones, as they do in the kernel.
    pub(crate) fn parse(line: &str) -> Self {
        let mut parsed = Self {
            root: None,
            root_types: Vec::new(),
            root_flags: None,
            read_only: true,
            root_wait: DEFAULT_ROOT_WAIT,
            init: None,
            init_words: Vec::new(),
        };
        let mut words = split(line).into_iter();
        for word in words.by_ref() {
            match word.split_once('=') {
                None if word == "--" => break,
                None if word == "ro" => parsed.read_only = true,
                None if word == "rw" => parsed.read_only = false,
                Some(("root", device)) => parsed.root = Some(device.to_owned()),
                Some(("rootfstype", types)) => {
                    parsed.root_types =
                        types.split(',').filter(|t| !t.is_empty()).map(str::to_owned).collect();
                }
                Some(("rootflags", flags)) => parsed.root_flags = Some(flags.to_owned()),
                Some(("rootwait", seconds)) => {
                    if let Ok(seconds) = seconds.parse() {
                        parsed.root_wait = Duration::from_secs(seconds);
                    }
                }
                Some(("init", program)) => parsed.init = Some(program.to_owned()),
                _ => {}
            }
        }
        parsed.init_words = words.collect();
        parsed
    }
}

/// Splits at white space outside double quotes; quotes around a word or around the value of `key=value` are
/// taken off. There is no escape for a quote: the kernel has none.
fn split(line: &str) -> Vec<String> {
    let mut in_quotes = false;
    line.split(|c: char| {
        in_quotes ^= c == '"';
        !in_quotes && c.is_ascii_whitespace()
    })
    .filter(|word| !word.is_empty())
    .map(unquote)
    .collect()
}

fn unquote(word: &str) -> String {
    if let Some(rest) = word.strip_prefix('"') {
        return rest.strip_suffix('"').unwrap_or(rest).to_owned();
    }
    match word.split_once('=') {
        Some((key, value)) if value.starts_with('"') => {
            let value = &value[1..];
            format!("{key}={}", value.strip_suffix('"').unwrap_or(value))
        }
        _ => word.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_without_parameters_has_the_kernels_defaults() {
        let line = CommandLine::parse("quiet console=hvc0\n");
        assert_eq!(line.root, None);
        assert!(line.read_only);
        assert_eq!(line.root_wait, DEFAULT_ROOT_WAIT);
        assert!(line.init_words.is_empty());
    }

    #[test]
    fn parameters_of_the_root_are_taken() {
        let line = CommandLine::parse(
            "root=/dev/vda rootfstype=erofs,ext4 rootflags=dax=always ro rw rootwait=5 init=/bin/true",
        );
        assert_eq!(line.root.as_deref(), Some("/dev/vda"));
        assert_eq!(line.root_types, ["erofs", "ext4"]);
        assert_eq!(line.root_flags.as_deref(), Some("dax=always"));
        assert!(!line.read_only);
        assert_eq!(line.root_wait, Duration::from_secs(5));
        assert_eq!(line.init.as_deref(), Some("/bin/true"));
    }

    #[test]
    fn the_last_of_equal_parameters_wins() {
        let line = CommandLine::parse("root=/dev/sda rw root=/dev/vda ro");
        assert_eq!(line.root.as_deref(), Some("/dev/vda"));
        assert!(line.read_only);
    }

    #[test]
    fn what_follows_the_dashes_is_left_to_init() {
        let line = CommandLine::parse("root=/dev/vda -- root=/dev/vdb \"echo a  b\" x=\"y z\" -- -v");
        assert_eq!(line.root.as_deref(), Some("/dev/vda"));
        assert_eq!(line.init_words, ["root=/dev/vdb", "echo a  b", "x=y z", "--", "-v"]);
    }

    #[test]
    fn quotes_keep_white_space_together() {
        assert_eq!(split("a \"b c\" d=\"e f\" \"g=h i\""), ["a", "b c", "d=e f", "g=h i"]);
    }

    #[test]
    fn an_open_quote_ends_with_the_line() {
        assert_eq!(split("a \"b c"), ["a", "b c"]);
        assert_eq!(split("\""), [""]);
    }

    #[test]
    fn a_root_wait_that_is_no_number_is_the_default() {
        assert_eq!(CommandLine::parse("rootwait=soon rootwait").root_wait, DEFAULT_ROOT_WAIT);
    }
}
