// SPDX-License-Identifier: GPL-2.0
/*
 * Shims for static inline functions and macros that Rust cannot call. Out of
 * tree they form one object; each file becomes a part of the kernel's
 * rust/helpers/ file of the same name.
 */

#include <linux/compiler_types.h>

#include "../bindings/bindings_helper.h"

#define __rust_helper

#include "blk.c"
#include "bvec.c"
#include "cred.c"
#include "debugfs.c"
#include "mm.c"
#include "net.c"
#include "netlink.c"
#include "ratelimit.c"
#include "signal.c"
#include "sysfs.c"
#include "task.c"
