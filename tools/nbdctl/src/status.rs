// SPDX-License-Identifier: GPL-2.0

//! Gathers what is known of the devices, and shows it.

use crate::error::Result;
use crate::export::Flags;
use crate::netlink::Driver;
use crate::output::{table, Bytes, Elapsed};
use crate::record::{Record, Records};
use crate::session::{missing, Connection, Session, SessionState};
use crate::sysfs::{Device, Sysfs};
use serde::Serialize;
use std::fmt::Write;
use std::time::Duration;

/// The version of the JSON: another one if a field goes or changes its meaning. Fields may be added
/// at any time.
const VERSION: u32 = 1;

/// The JSON of `status --json` and `list --json`. The guide describes it.
#[derive(Debug, Serialize)]
pub struct Report {
    version: u32,
    devices: Vec<DeviceReport>,
}

#[derive(Debug, Serialize)]
struct DeviceReport {
    device: String,
    index: u32,
    connected: bool,
    #[serde(flatten)]
    session: Option<SessionReport>,
}

#[derive(Debug, Serialize)]
struct SessionReport {
    size: u64,
    block_size: u64,
    read_only: bool,
    pid: u32,
    backend: Option<String>,
    uri: Option<String>,
    flags: Option<Vec<&'static str>>,
    state: Option<SessionState>,
    age_ms: Option<u64>,
    timeout: Option<u64>,
    dead_conn_timeout: Option<u64>,
    keeper_pid: Option<u32>,
    connections: Connections,
}

#[derive(Debug, Serialize)]
struct Connections {
    total: Option<u32>,
    missing: Option<u32>,
    missing_since: Option<u64>,
    problem: Option<String>,
    /// Empty if the driver does not tell.
    list: Vec<Connection>,
}

impl Report {
    /// What is known of these devices. `unix` is the time, in seconds since 1970.
    pub fn gather(driver: &Driver, devices: &[(u32, bool)], unix: u64) -> Result<Self> {
        let sysfs = Sysfs::default();
        let records = Records::default();
        let mut reports = Vec::new();
        for &(index, connected) in devices {
            let device = Device(index);
            reports.push(DeviceReport {
                device: device.to_string(),
                index,
                connected,
                session: gather_session(driver, &sysfs, &records, device, unix)?,
            });
        }
        Ok(Self {
            version: VERSION,
            devices: reports,
        })
    }

    pub fn is_empty(&self) -> bool {
        self.devices.is_empty()
    }

    pub fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self)
    }

    /// A line for each device.
    pub fn list(&self, unix: u64) -> String {
        let title = [
            "DEVICE",
            "SIZE",
            "MODE",
            "CONNECTIONS",
            "KEPT BY",
            "BACKEND",
        ];
        let mut rows = vec![title.map(String::from).to_vec()];
        for device in &self.devices {
            let Some(session) = &device.session else {
                continue;
            };
            rows.push(vec![
                device.device.clone(),
                Bytes(session.size).to_string(),
                session.mode().to_owned(),
                session.connections.brief(unix),
                session.keeper_pid.map_or("-".into(), |pid| pid.to_string()),
                session.backend.clone().unwrap_or_else(|| "-".into()),
            ]);
        }
        table(&rows)
    }

    /// A paragraph for each device.
    pub fn show(&self, unix: u64) -> String {
        let paragraphs: Vec<String> = self.devices.iter().map(|d| d.show(unix)).collect();
        paragraphs.join("\n")
    }
}

/// The flags of the server. An older driver shows them in debugfs only.
pub fn known_flags(
    told: Option<&Session>,
    record: Option<&Record>,
    sysfs: &Sysfs,
    device: Device,
) -> Option<Flags> {
    told.and_then(|s| s.flags)
        .or_else(|| record?.flags)
        .or_else(|| sysfs.flags(device))
}

fn gather_session(
    driver: &Driver,
    sysfs: &Sysfs,
    records: &Records,
    device: Device,
    unix: u64,
) -> Result<Option<SessionReport>> {
    let Some(attributes) = sysfs.session(device) else {
        return Ok(None);
    };
    let record = records.load(device, &attributes);
    let told = driver.session(device.0)?;
    let list = match &told {
        Some(session) => session.connections.clone(),
        None => sysfs.connections(device).unwrap_or_default(),
    };
    let kept = record.as_ref().and_then(|r| r.missing.clone());
    let keeper_pid = records.keeper(device);
    let (count, since) = missing(&list, unix);
    let count = if list.is_empty() {
        // Only a keeper has counted them.
        keeper_pid.map(|_| kept.as_ref().map_or(0, |m| m.count))
    } else {
        Some(count)
    };
    let flags = known_flags(told.as_ref(), record.as_ref(), sysfs, device);
    let total = match list.len() {
        0 => record.as_ref().map(|r| r.connections),
        n => u32::try_from(n).ok(),
    };
    Ok(Some(SessionReport {
        size: attributes.size,
        block_size: attributes.block_size,
        read_only: attributes.read_only,
        pid: attributes.pid,
        backend: attributes.backend,
        uri: record.as_ref().map(|r| r.uri.clone()),
        flags: flags.map(Flags::names),
        state: told.as_ref().map(|s| s.state),
        age_ms: told.as_ref().and_then(|s| s.age_ms),
        timeout: told.as_ref().and_then(|s| s.timeout),
        dead_conn_timeout: told.as_ref().and_then(|s| s.dead_conn_timeout),
        keeper_pid,
        connections: Connections {
            total,
            missing: count,
            missing_since: count
                .filter(|c| *c > 0)
                .and_then(|_| since.or_else(|| kept.as_ref().map(|m| m.since))),
            problem: count.filter(|c| *c > 0).and_then(|_| kept?.problem),
            list,
        },
    }))
}

impl Connections {
    fn since(&self, unix: u64) -> Option<Elapsed> {
        self.missing_since
            .map(|then| Elapsed(Duration::from_secs(unix.saturating_sub(then))))
    }

    /// As "3 of 4, missing for 5 s".
    fn brief(&self, unix: u64) -> String {
        match (self.total, self.missing) {
            (Some(total), Some(0)) => total.to_string(),
            (Some(total), Some(missing)) => {
                let there = total.saturating_sub(missing);
                match self.since(unix) {
                    Some(time) => format!("{there} of {total}, missing for {time}"),
                    None => format!("{there} of {total}"),
                }
            }
            (Some(total), None) => format!("{total}?"),
            (None, _) => "?".into(),
        }
    }
}

impl SessionReport {
    fn mode(&self) -> &'static str {
        if self.read_only {
            "read-only"
        } else {
            "read-write"
        }
    }

    fn state(&self) -> String {
        match (self.state, self.connections.total, self.connections.missing) {
            (Some(state), ..) => state.to_string(),
            (None, Some(total), Some(missing)) if missing >= total => {
                "no connection is open".into()
            }
            _ => "connected".into(),
        }
    }
}

impl DeviceReport {
    fn show(&self, unix: u64) -> String {
        let Some(session) = &self.session else {
            return format!("{}: not connected\n", self.device);
        };
        let mut text = format!(
            "{}: {}, {}, {}, blocks of {}\n",
            self.device,
            session.state(),
            Bytes(session.size),
            session.mode(),
            Bytes(session.block_size)
        );
        let seconds = |s: u64| {
            if s == 0 {
                "none".to_owned()
            } else {
                format!("{s} s")
            }
        };
        let mut rows = vec![];
        let mut row = |name: &str, value: Option<String>| {
            rows.extend(value.map(|value| vec![format!("  {name}"), value]));
        };
        row("server", session.uri.clone());
        row("backend", session.backend.clone());
        row("flags", session.flags.as_ref().map(|f| f.join(" ")));
        row("connected by", Some(format!("process {}", session.pid)));
        row(
            "connected for",
            session
                .age_ms
                .map(|ms| Elapsed(Duration::from_millis(ms)).to_string()),
        );
        row("timeout", session.timeout.map(seconds));
        row(
            "dead connections",
            session.dead_conn_timeout.map(|s| match s {
                0 => "requests fail at once".into(),
                s => format!("requests wait for {s} s"),
            }),
        );
        row(
            "kept by",
            Some(match session.keeper_pid {
                Some(pid) => format!("process {pid}"),
                None => "nobody: lost connections stay lost".into(),
            }),
        );
        row("connections", Some(session.connections.brief(unix)));
        row("problem", session.connections.problem.clone());
        text.push_str(&table(&rows));
        if !session.connections.list.is_empty() {
            text.push_str(&indent(&connection_table(&session.connections.list)));
        }
        text
    }
}

fn connection_table(connections: &[Connection]) -> String {
    let title = [
        "#",
        "STATE",
        "FOR",
        "SERVER",
        "REQUESTS",
        "IN FLIGHT",
        "REPLAYED",
        "SENT",
        "RECEIVED",
        "LAST ERROR",
    ];
    let mut rows = vec![title.map(String::from).to_vec()];
    let dash = || "-".to_owned();
    let number = |n: Option<u64>| n.map_or_else(dash, |n| n.to_string());
    let bytes = |n: Option<u64>| n.map_or_else(dash, |n| Bytes(n).to_string());
    for c in connections {
        rows.push(vec![
            c.index.to_string(),
            c.state.to_string(),
            c.age_ms
                .map_or_else(dash, |ms| Elapsed(Duration::from_millis(ms)).to_string()),
            c.peer.clone().unwrap_or_else(dash),
            number(c.requests),
            number(c.in_flight.map(u64::from)),
            number(c.replayed),
            bytes(c.sent_bytes),
            bytes(c.received_bytes),
            c.last_error.clone().unwrap_or_else(dash),
        ]);
    }
    // A column of which nothing is known says nothing.
    let used: Vec<bool> = (0..title.len())
        .map(|i| i < 2 || rows[1..].iter().any(|r| r[i] != "-"))
        .collect();
    for row in &mut rows {
        let mut i = 0;
        row.retain(|_| {
            i += 1;
            used[i - 1]
        });
    }
    table(&rows)
}

fn indent(text: &str) -> String {
    text.lines().fold(String::new(), |mut all, line| {
        // Writing to a string does not fail.
        let _ = writeln!(all, "  {line}");
        all
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::parse_debugfs;

    fn report() -> Report {
        let list = parse_debugfs("0: open last-error none\n1: closed last-error gone\n");
        Report {
            version: VERSION,
            devices: vec![
                DeviceReport {
                    device: "nbd0".into(),
                    index: 0,
                    connected: true,
                    session: Some(SessionReport {
                        size: 1 << 30,
                        block_size: 512,
                        read_only: false,
                        pid: 5,
                        backend: Some("disk".into()),
                        uri: Some("nbd://host".into()),
                        flags: Some(vec!["flush", "fua"]),
                        state: None,
                        age_ms: None,
                        timeout: None,
                        dead_conn_timeout: Some(600),
                        keeper_pid: Some(6),
                        connections: Connections {
                            total: Some(2),
                            missing: Some(1),
                            missing_since: Some(1000),
                            problem: Some("Connection refused".into()),
                            list,
                        },
                    }),
                },
                DeviceReport {
                    device: "nbd1".into(),
                    index: 1,
                    connected: false,
                    session: None,
                },
            ],
        }
    }

    #[test]
    fn the_list() {
        let text = report().list(1012);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(
            lines[1].starts_with("nbd0    1 GiB  read-write  1 of 2, missing for 12 s  6"),
            "{text}"
        );
    }

    #[test]
    fn the_story() {
        let text = report().show(1012);
        for part in [
            "nbd0: connected, 1 GiB, read-write, blocks of 512 B",
            "requests wait for 600 s",
            "process 6",
            "1 of 2, missing for 12 s",
            "Connection refused",
            "missing  gone",
            "nbd1: not connected",
        ] {
            assert!(text.contains(part), "no {part:?} in\n{text}");
        }
        // Nothing is known of these.
        assert!(!text.contains("REPLAYED"), "{text}");
    }

    #[test]
    fn json_is_stable() {
        let json: serde_json::Value = serde_json::from_str(&report().json().unwrap()).unwrap();
        assert_eq!(json["version"], 1);
        let device = &json["devices"][0];
        assert_eq!(device["size"], 1 << 30);
        assert_eq!(device["uri"], "nbd://host");
        assert_eq!(device["flags"][1], "fua");
        assert_eq!(device["connections"]["missing_since"], 1000);
        assert_eq!(device["connections"]["list"][1]["state"], "vacant");
        assert_eq!(json["devices"][1]["connected"], false);
        assert!(json["devices"][1].get("size").is_none());
    }

    #[test]
    fn brief() {
        let connections = |total, missing| Connections {
            total,
            missing,
            missing_since: None,
            problem: None,
            list: vec![],
        };
        assert_eq!(connections(Some(4), Some(0)).brief(0), "4");
        assert_eq!(connections(Some(4), Some(1)).brief(0), "3 of 4");
        assert_eq!(connections(Some(4), None).brief(0), "4?");
        assert_eq!(connections(None, None).brief(0), "?");
    }
}
