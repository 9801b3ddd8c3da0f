//! The `vmm` command: reads arguments, carries them out, and is the only place that prints errors.

#![forbid(unsafe_code)]

mod commands;
mod console;
mod duration;
mod guest_init;
mod hint;
mod home;
mod size;

use std::process::ExitCode;

use clap::Parser;

use commands::Command;
use hint::Hinted;

/// Run workloads in microVMs and containers.
#[derive(Debug, Parser)]
#[command(name = "vmm", version, arg_required_else_help = true, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// Our own failure, as container tools have it.
const FAILURE: u8 = 125;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // A reader that has gone needs no help text.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(FAILURE) } else { ExitCode::SUCCESS };
        }
    };
    match cli.command.run() {
        Ok(code) => code,
        Err(error) => {
            report(&error);
            ExitCode::from(FAILURE)
        }
    }
}

/// Prints an error with its causes on one line, and what to do about it on the next.
fn report(error: &anyhow::Error) {
    eprintln!("vmm: {error:#}");
    if let Some(hint) = Hinted::of(error) {
        eprintln!("hint: {hint}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
