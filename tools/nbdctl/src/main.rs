// SPDX-License-Identifier: GPL-2.0

//! Connects network block devices, shows them and keeps them connected.

mod backoff;
mod change;
mod cli;
mod connect;
mod error;
mod export;
mod keep;
mod libnbd;
mod links;
mod log;
mod negotiate;
mod netlink;
mod output;
mod process;
mod record;
mod session;
mod status;
mod sysfs;

use clap::Parser;
use cli::{Cli, Command, ConnectArgs, DisconnectArgs};
use connect::{parse_device, Request};
use error::{Error, Kind, Result};
use netlink::Driver;
use record::{unix_time, Records};
use status::Report;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;
use sysfs::{Device, Sysfs};

fn main() -> ExitCode {
    match run(&Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            log::error(format_args!("{e}"));
            ExitCode::from(e.kind as u8)
        }
    }
}

fn run(command: &Command) -> Result<()> {
    match command {
        Command::Connect(args) => connect(args),
        Command::Keep(args) => {
            let request = Request::new(&args.session, args.timeout, args.dead_conn_timeout)?;
            keep::run(&request, Duration::from_secs(args.retry_max), args.root)
        }
        Command::Disconnect(args) => disconnect(args),
        Command::List(args) => list(args.json),
        Command::Status(args) => show(args.device.as_deref(), args.json),
        Command::Resize(args) => change::resize(args),
        Command::Replace(args) => change::replace(args),
        Command::Add(args) => change::add(args),
        Command::Remove(args) => change::remove(args),
    }
}

fn print(text: &str) -> Result<()> {
    std::io::stdout()
        .write_all(text.as_bytes())
        .map_err(|e| Error::new(Kind::Failed, format!("standard output: {e}")))
}

fn connect(args: &ConnectArgs) -> Result<()> {
    let request = Request::new(&args.session, args.timeout, args.dead_conn_timeout)?;
    let driver = Driver::open()?;
    let sysfs = Sysfs::default();
    let records = Records::default();
    let started = connect::start(&driver, &sysfs, &records, &request, None)?;
    print(&format!("/dev/{}\n", started.device))
}

fn disconnect(args: &DisconnectArgs) -> Result<()> {
    let device = parse_device(&args.device)?;
    let driver = Driver::open()?;
    let sysfs = Sysfs::default();
    let session = sysfs.require(device)?;
    if !args.force {
        if let Some(user) = sysfs.users(device).first() {
            return Err(Error::new(
                Kind::Failed,
                format!("{device}: not disconnected, for {user}"),
            )
            .hint("--force does it anyway"));
        }
    }
    driver.disconnect(device.0).map_err(|e| e.context(device))?;
    Records::default().remove(device, &session);
    Ok(())
}

fn print_json(report: &Report) -> Result<()> {
    let json = report
        .json()
        .map_err(|e| Error::new(Kind::Failed, format!("JSON: {e}")))?;
    print(&format!("{json}\n"))
}

fn connected(driver: &Driver) -> Result<Vec<(u32, bool)>> {
    Ok(driver
        .devices()?
        .into_iter()
        .filter(|(_, connected)| *connected)
        .collect())
}

fn list(json: bool) -> Result<()> {
    let driver = Driver::open()?;
    let report = Report::gather(&driver, &connected(&driver)?, unix_time())?;
    if json {
        print_json(&report)
    } else {
        print(&report.list(unix_time()))
    }
}

fn show(device: Option<&str>, json: bool) -> Result<()> {
    let device = device.map(parse_device).transpose()?;
    let driver = Driver::open()?;
    let devices = match device {
        None => connected(&driver)?,
        Some(device) => vec![find(&driver, device)?],
    };
    let report = Report::gather(&driver, &devices, unix_time())?;
    if json {
        print_json(&report)
    } else if report.is_empty() {
        print("no device is connected\n")
    } else {
        print(&report.show(unix_time()))
    }
}

fn find(driver: &Driver, device: Device) -> Result<(u32, bool)> {
    driver
        .devices()?
        .into_iter()
        .find(|(index, _)| *index == device.0)
        .ok_or_else(|| Error::new(Kind::NoDevice, format!("{device}: there is no such device")))
}
