#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# The largest device: nbdkit's pattern plugin says of each offset where it is.

. "$(dirname "$0")/test_common.sh"
. "$(dirname "$0")/test_io_common.sh"

nbd_require nbdkit nbd-client
nbd_begin 8
nbd_pick

start() { io_server sock -r pattern "$1" && io_attach_unix -b 512; }
# sector N: the first number in it, which must be its offset.
sector() {
	local hex
	hex=$(within 10 dd if="$NBD_DEV" bs=512 skip="$1" count=1 iflag=direct status=none |
		head -c 8 | od -An -tx1 | tr -d ' ')
	echo "0x$hex"
}
last=$(((1 << 54) - 2))

start $(((1 << 63) - 512))
check "size" is size "$(<"$NBD_SYS/size")" $((last + 1))
check "the first sector" is sector "$(sector 0)" 0x0000000000000000
check "a sector in the middle" is sector "$(sector $((1 << 40)))" "$(printf 0x%016x $((1 << 49)))"
check "the last sector" is sector "$(sector $last)" "$(printf 0x%016x $((last * 512)))"
check "none behind it" is sector "$(sector $((last + 1)) 2>/dev/null)" 0x
check "read-only, as the server is" is read-only "$(blockdev --getro "$NBD_DEV")" 1
check "detach" io_detach
check "not read-only for the next one" is read-only "$(blockdev --getro "$NBD_DEV")" 0
nbd_end
