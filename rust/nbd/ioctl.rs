// SPDX-License-Identifier: GPL-2.0

//! The ioctl interface.
//!
//! C header: [`include/uapi/linux/nbd.h`](srctree/include/uapi/linux/nbd.h)

use crate::{
    error::Reason,
    protocol::Flags,
    request::Disk, //
};
use kernel::{
    capability,
    ioctl::_IO,
    prelude::*, //
};

/// The type of all nbd ioctls.
const TYPE: u32 = 0xab;

const SET_SOCK: u32 = _IO(TYPE, 0);
const SET_BLKSIZE: u32 = _IO(TYPE, 1);
const SET_SIZE: u32 = _IO(TYPE, 2);
const DO_IT: u32 = _IO(TYPE, 3);
const CLEAR_SOCK: u32 = _IO(TYPE, 4);
const CLEAR_QUE: u32 = _IO(TYPE, 5);
const PRINT_DEBUG: u32 = _IO(TYPE, 6);
const SET_SIZE_BLOCKS: u32 = _IO(TYPE, 7);
const DISCONNECT: u32 = _IO(TYPE, 8);
const SET_TIMEOUT: u32 = _IO(TYPE, 9);
const SET_FLAGS: u32 = _IO(TYPE, 10);

/// Handles an ioctl. Context: may sleep, [`DO_IT`] for as long as the session lasts.
pub(crate) fn ioctl(disk: &Disk, cmd: u32, arg: usize) -> Result<i32> {
    if !capability::sys_admin() {
        return Err(EPERM);
    }
    if kernel::ioctl::_IOC_TYPE(cmd) != TYPE {
        return Err(EINVAL);
    }
    let device = disk.data();
    if cmd != DO_IT {
        device.wait_if_starting();
    }
    match cmd {
        SET_SOCK => {
            let fd = i32::try_from(arg).map_err(|_| EINVAL)?;
            device.set_socket(disk, fd as u32)?;
        }
        SET_BLKSIZE => device.update(disk, "NBD_SET_BLKSIZE", |p| p.with_block_size(arg))?,
        SET_SIZE => device.update(disk, "NBD_SET_SIZE", |p| p.with_size(arg as u64))?,
        SET_SIZE_BLOCKS => {
            device.update(disk, "NBD_SET_SIZE_BLOCKS", |p| p.with_blocks(arg as u64))?
        }
        SET_TIMEOUT => device.update(disk, "NBD_SET_TIMEOUT", |p| p.with_timeout(arg))?,
        SET_FLAGS => device.update(disk, "NBD_SET_FLAGS", |p| {
            Ok(p.with_flags(Flags::new(arg as u32)))
        })?,
        DO_IT => return device.run(disk),
        DISCONNECT => {
            if let Some(session) = device.running(disk, "NBD_DISCONNECT")? {
                session
                    .disconnect()
                    .map_err(|refusal| device.info().refuse(disk, "NBD_DISCONNECT", &refusal))?;
            }
        }
        CLEAR_SOCK => {
            match device.running(disk, "NBD_CLEAR_SOCK")? {
                Some(session) => {
                    session.stop(Reason::Requested).map_err(|refusal| {
                        device.info().refuse(disk, "NBD_CLEAR_SOCK", &refusal)
                    })?;
                }
                None => device.clear_setup(disk),
            }
            disk.force_media_change();
        }
        // These are accepted for old programs. The end of a session fails its requests, and there
        // is no list of requests to print.
        CLEAR_QUE | PRINT_DEBUG => {}
        _ => return Err(ENOTTY),
    }
    Ok(0)
}
