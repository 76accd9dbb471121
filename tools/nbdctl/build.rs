// SPDX-License-Identifier: GPL-2.0

//! Makes the man pages and the completions from the description of the command line, in
//! $NBDCTL_GENERATED if that is set.

#[path = "src/cli.rs"]
mod cli;

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use std::fs::File;
use std::path::{Path, PathBuf};

fn main() -> std::io::Result<()> {
    println!("cargo::rerun-if-changed=src/cli.rs");
    println!("cargo::rerun-if-env-changed=NBDCTL_GENERATED");
    let Some(directory) = std::env::var_os("NBDCTL_GENERATED").map(PathBuf::from) else {
        return Ok(());
    };
    std::fs::create_dir_all(&directory)?;
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        clap_complete::generate_to(shell, &mut cli::Cli::command(), "nbdctl", &directory)?;
    }
    let mut command = cli::Cli::command().disable_help_subcommand(true);
    command.build();
    page(&command, "nbdctl", &directory)?;
    for subcommand in command.get_subcommands() {
        let name = format!("nbdctl-{}", subcommand.get_name());
        page(subcommand, &name, &directory)?;
    }
    Ok(())
}

/// One for administrators, in section 8.
fn page(command: &Command, name: &str, directory: &Path) -> std::io::Result<()> {
    let mut file = File::create(directory.join(format!("{name}.8")))?;
    clap_mangen::Man::new(command.clone())
        .section("8")
        .render(&mut file)
}
