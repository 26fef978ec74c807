//! The `peregrine` command.
#![forbid(unsafe_code)]
#![deny(clippy::print_stdout, reason = "it panics where nobody reads any more: output::print_line")]

mod args;
mod bench;
mod doctor;
mod embedded;
mod error;
mod generate;
mod machine;
mod output;
mod plan;
mod progress;
mod prompts;
mod table;
mod text;

use args::{Cli, Command};
use clap::Parser;
use error::Error;
use std::io::ErrorKind;
use std::process::ExitCode;

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Generate(args) => generate::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Doctor(args) => doctor::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read has seen enough, as `head` does.
        Err(Error::Output(error)) if error.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            // As clap does for a bad command line: 1 is left to mean a defect (a panic ends with 101).
            ExitCode::from(2)
        }
    }
}
