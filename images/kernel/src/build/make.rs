//! Runs the kernel's own build.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use super::{BuildError, Progress, tools};

/// How many objects the guest configuration comes to; only the progress line depends on it.
const OBJECTS_ESTIMATE: u64 = 2150;
/// How much of a line of output is looked at.
const LINE_BYTES_MAX: usize = 4096;

/// Compiles `vmlinux` and `bzImage`; going on from what is there.
pub(super) fn compile(
    tree: &Path,
    output: &Path,
    jobs: usize,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), BuildError> {
    let log_path = output.join("build.log");
    let mut log = File::create(&log_path).map_err(BuildError::io("write", &log_path))?;
    let stderr = log.try_clone().map_err(BuildError::io("write", &log_path))?;
    let mut command = make_command();
    command
        .arg("-C")
        .arg(tree)
        .arg(format!("O={}", output.display()))
        .arg(format!("-j{}", jobs.max(1)))
        .args(["ARCH=x86_64", "vmlinux", "bzImage"])
        // The same source and configuration make the same kernel.
        .args(["KBUILD_BUILD_TIMESTAMP=@1", "KBUILD_BUILD_USER=vmm", "KBUILD_BUILD_HOST=vmm"])
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(stderr);
    let mut child = command.spawn().map_err(BuildError::io("run", Path::new("make")))?;

    let mut done = count_objects(output);
    let total = OBJECTS_ESTIMATE.max(done);
    progress(Progress::Compile { done, total });
    if let Some(stdout) = child.stdout.take() {
        let mut lines = BufReader::new(stdout);
        let mut line = Vec::new();
        // An error here means that make is gone; its status tells how.
        while lines.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
            log.write_all(&line).map_err(BuildError::io("write", &log_path))?;
            if makes_object(&line[..line.len().min(LINE_BYTES_MAX)]) {
                done += 1;
                progress(Progress::Compile { done: done.min(total), total });
            }
            line.clear();
        }
    }
    let status = child.wait().map_err(BuildError::io("wait for", Path::new("make")))?;
    if status.success() {
        return Ok(());
    }
    let text = fs::read(&log_path).map_err(BuildError::io("read", &log_path))?;
    Err(BuildError::Compile { message: first_error(&String::from_utf8_lossy(&text)), log: log_path })
}

/// `vmlinux` without its symbols and debugging sections; segments stay where they are in the file.
pub(super) fn strip(from: &Path, to: &Path) -> Result<(), BuildError> {
    let result = Command::new("strip")
        .arg("-o")
        .args([to, from])
        .stdin(Stdio::null())
        .output()
        .map_err(BuildError::io("run", Path::new("strip")))?;
    if result.status.success() {
        return Ok(());
    }
    let message = last_line(&String::from_utf8_lossy(&result.stderr));
    Err(BuildError::Io { action: "strip", path: from.to_owned(), source: std::io::Error::other(message) })
}

/// make, at low priority; where util-linux is there, it ends with us even if we are killed.
fn make_command() -> Command {
    let mut words = Vec::new();
    if tools::present("setpriv") {
        words.extend(["setpriv", "--pdeathsig", "TERM"]);
    }
    if tools::present("nice") {
        words.extend(["nice", "-n", "10"]);
    }
    words.push("make");
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    command
}

/// Whether a line of quiet output ("  CC      kernel/fork.o") tells of an object.
fn makes_object(line: &[u8]) -> bool {
    let mut words = line.trim_ascii().split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    line.starts_with(b"  ")
        && matches!(words.next(), Some(b"CC" | b"AS" | b"AR" | b"LD"))
        && words.next().is_some_and(|path| path.ends_with(b".o") || path.ends_with(b".a"))
}

/// The objects that an earlier, interrupted build made.
fn count_objects(directory: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(directory) else { return 0 };
    let mut count = 0;
    for entry in entries.flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => count += count_objects(&entry.path()),
            Ok(_) => count += u64::from(matches!(entry.path().extension(), Some(e) if e == "o" || e == "a")),
            Err(_) => {}
        }
    }
    count
}

fn first_error(text: &str) -> String {
    let telling =
        |line: &&str| line.contains("error:") || line.contains("Error ") || line.contains(": not found");
    text.lines().find(telling).map_or_else(|| last_line(text), |line| line.trim().to_owned())
}

/// The last line with something on it.
pub(super) fn last_line(text: &str) -> String {
    text.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or("it said nothing").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_counted_from_quiet_output() {
        for line in
            ["  CC      kernel/fork.o", "  AS      arch/x86/entry/entry.o", "  AR      kernel/built-in.a"]
        {
            assert!(makes_object(line.as_bytes()), "{line}");
        }
        for line in ["", "make[1]: Entering directory", "  HOSTCC  scripts/basic/fixdep", "  LD      vmlinux"]
        {
            assert!(!makes_object(line.as_bytes()), "{line}");
        }
    }

    #[test]
    fn the_first_error_is_the_telling_one() {
        let log = "  CC a.o\na.c:1:2: error: expected ';'\nmake[2]: *** [a.o] Error 1\nmake: *** Error 2\n";
        assert_eq!(first_error(log), "a.c:1:2: error: expected ';'");
        assert_eq!(first_error("nothing\ntelling \n\n"), "telling");
    }
}
