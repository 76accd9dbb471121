/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Headers that the kernel's own rust/bindings/bindings_helper.h would gain.
 */

#include <linux/moduleparam.h>
