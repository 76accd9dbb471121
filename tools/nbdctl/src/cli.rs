// SPDX-License-Identifier: GPL-2.0

//! The command line. The build script makes the man page and the completions from this file, which
//! therefore uses clap only.

use clap::{Args, Parser, Subcommand};

/// Connect network block devices, show them and keep them connected.
///
/// A URI names an export of an NBD server: nbd://host:port/export, or
/// nbd+unix:///export?socket=/path. A device is named as /dev/nbd0, nbd0 or 0.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Exit status: 0 if all went well, 1 if the kernel refuses or something fails, \
2 for a wrong command line, 3 if the server cannot be reached or does not have the export, \
4 if there is no such device or it is not connected, 5 if the export is not the one \
that the device was connected to, 6 if the driver is not loaded or too old."
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Connect a device to an export
    Connect(ConnectArgs),
    /// Connect a device, and connect it again whenever a connection is lost
    ///
    /// When the device is connected, its name is printed. The process stays until it gets SIGTERM,
    /// which leaves the device as it is, or until the device is disconnected. When it is started
    /// again, it finds the running session by its backend identifier.
    Keep(KeepArgs),
    /// Disconnect a device
    Disconnect(DisconnectArgs),
    /// List the connected devices
    List(ListArgs),
    /// Show all that is known of a device, or of all connected ones
    Status(StatusArgs),
    /// Change the size of a connected device
    Resize(ResizeArgs),
    /// Move the connections of a device to another server of the same export, while both run
    Replace(ReplaceArgs),
    /// Add connections to a connected device
    Add(AddArgs),
    /// Remove a connection from a device
    Remove(RemoveArgs),
}

#[derive(Args, Debug)]
pub struct SessionArgs {
    /// The export
    pub uri: String,

    /// The device; without one, the kernel chooses
    pub device: Option<String>,

    /// How many connections to make; more than one needs a server that offers multi-conn
    #[arg(short = 'n', long, default_value_t = 1, value_name = "NUMBER",
        value_parser = clap::value_parser!(u32).range(1..=256))]
    pub connections: u32,

    /// The text that stands for the data behind the device [default: the URI]
    #[arg(short, long, value_name = "TEXT")]
    pub backend: Option<String>,

    /// The logical block size in bytes [default: the server's minimum, at least 512]
    #[arg(long, value_name = "BYTES")]
    pub block_size: Option<u64>,

    /// Make the device read-only even if the export is not
    #[arg(short, long)]
    pub read_only: bool,

    /// How long to wait for a server to connect and negotiate, in seconds
    #[arg(long, default_value_t = 10, value_name = "SECONDS",
        value_parser = clap::value_parser!(u64).range(1..=86400))]
    pub connect_timeout: u64,
}

#[derive(Args, Debug)]
pub struct ConnectArgs {
    #[command(flatten)]
    pub session: SessionArgs,

    /// How long the server may take to answer a request, in seconds; 0 is no limit
    #[arg(short, long, default_value_t = 0, value_name = "SECONDS")]
    pub timeout: u64,

    /// How long requests wait for a new connection when all are lost, in seconds; 0 fails them at
    /// once
    #[arg(short = 'D', long, default_value_t = 0, value_name = "SECONDS")]
    pub dead_conn_timeout: u64,
}

#[derive(Args, Debug)]
pub struct KeepArgs {
    #[command(flatten)]
    pub session: SessionArgs,

    /// How long the server may take to answer a request, in seconds, before it is asked again over
    /// a new connection; 0 is no limit
    #[arg(short, long, default_value_t = 60, value_name = "SECONDS")]
    pub timeout: u64,

    /// How long requests wait for a new connection when all are lost, in seconds, before they fail
    #[arg(short = 'D', long, default_value_t = 600, value_name = "SECONDS",
        value_parser = clap::value_parser!(u64).range(1..))]
    pub dead_conn_timeout: u64,

    /// The longest pause between two attempts to connect, in seconds
    #[arg(long, default_value_t = 5, value_name = "SECONDS",
        value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub retry_max: u64,

    /// The root file system is on the device: systemd is not to kill this process when it leaves
    /// the initramfs or shuts down
    #[arg(long)]
    pub root: bool,
}

#[derive(Args, Debug)]
pub struct DisconnectArgs {
    pub device: String,

    /// Even if the device is mounted, swap, or part of another device: what is not written yet is
    /// lost
    #[arg(short, long)]
    pub force: bool,
}

#[derive(Args, Debug)]
pub struct ListArgs {
    /// As JSON, like status --json
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct StatusArgs {
    pub device: Option<String>,

    /// As JSON; the guide describes it
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct ResizeArgs {
    pub device: String,

    /// In bytes, or with K, M, G, T or P; without it, the server is asked
    pub size: Option<String>,

    /// Allow the device to become smaller
    #[arg(long)]
    pub shrink: bool,
}

#[derive(Args, Debug)]
pub struct ReplaceArgs {
    pub device: String,

    /// Where the same export is served now
    pub uri: String,

    /// Only this connection, by its number in status
    #[arg(short, long, value_name = "NUMBER")]
    pub connection: Option<u32>,
}

#[derive(Args, Debug)]
pub struct AddArgs {
    pub device: String,

    /// How many
    #[arg(short = 'n', long, default_value_t = 1, value_name = "NUMBER",
        value_parser = clap::value_parser!(u32).range(1..=256))]
    pub connections: u32,
}

#[derive(Args, Debug)]
pub struct RemoveArgs {
    pub device: String,

    /// The number of the connection in status
    pub connection: u32,
}
