//! `poweroff`, `reboot` and `halt`: what a user inside the guest calls.

use std::path::Path;
use std::process::ExitCode;

use nix::sys::signal::kill;
use nix::unistd::Pid;

use crate::report::complain;
use crate::shutdown::{self, Ending};

const USAGE: &str = "usage: poweroff|reboot|halt [-f]

Asks the init of this guest to end all programs and to power off or to restart. Halting powers off
too: a stopped guest would only hold memory.

  -f  at once, without asking init; data is still written to the disks
";

/// Runs the applet that `words` (the program's name and its arguments) ask for.
pub(crate) fn run(words: &[String]) -> ExitCode {
    match parse(words) {
        Ok(Request::Help) => {
            print!("{USAGE}");
            ExitCode::SUCCESS
        }
        Ok(Request::End { ending, force: true }) => {
            let error = shutdown::sync_and_reboot(ending);
            complain(&format_args!("cannot end the system: {}", error.desc()));
            ExitCode::FAILURE
        }
        Ok(Request::End { ending, force: false }) => match kill(Pid::from_raw(1), ending.signal()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(errno) => {
                complain(&format_args!("cannot signal init: {}", errno.desc()));
                ExitCode::FAILURE
            }
        },
        Err(word) => {
            complain(&format_args!("{word}: not understood\n{}", USAGE.trim_end()));
            ExitCode::from(2)
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Request {
    Help,
    End { ending: Ending, force: bool },
}

/// The error is the word that was not understood.
fn parse(words: &[String]) -> Result<Request, String> {
    let name = words.first().map(|word| Path::new(word).file_name().unwrap_or_default().to_string_lossy());
    let mut ending = name.as_deref().and_then(ending_of);
    let mut force = false;
    for word in words.iter().skip(1) {
        match word.as_str() {
            "-h" | "--help" => return Ok(Request::Help),
            "-f" => force = true,
            other if ending.is_none() => ending = Some(ending_of(other).ok_or(other)?),
            other => return Err(other.to_owned()),
        }
    }
    Ok(ending.map_or(Request::Help, |ending| Request::End { ending, force }))
}

fn ending_of(name: &str) -> Option<Ending> {
    match name {
        "poweroff" | "halt" => Some(Ending::PowerOff),
        "reboot" => Some(Ending::Reboot),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_words(line: &str) -> Result<Request, String> {
        parse(&line.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn the_name_or_the_first_argument_says_what_to_do() {
        let end = |ending, force| Ok(Request::End { ending, force });
        assert_eq!(parse_words("/sbin/poweroff"), end(Ending::PowerOff, false));
        assert_eq!(parse_words("halt"), end(Ending::PowerOff, false));
        assert_eq!(parse_words("reboot -f"), end(Ending::Reboot, true));
        assert_eq!(parse_words("/sbin/vmm-init reboot"), end(Ending::Reboot, false));
    }

    #[test]
    fn anything_else_is_help_or_an_error() {
        assert_eq!(parse_words("vmm-init"), Ok(Request::Help));
        assert_eq!(parse_words("poweroff --help"), Ok(Request::Help));
        assert_eq!(parse_words("vmm-init dance"), Err("dance".to_owned()));
        assert_eq!(parse_words("poweroff now"), Err("now".to_owned()));
    }
}
