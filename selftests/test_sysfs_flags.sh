#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# What NBD_SET_FLAGS makes of the disk.

# shellcheck source-path=SCRIPTDIR source=test_common.sh
. "$(dirname "$0")/test_common.sh"

HAS=0x1 READ_ONLY=0x2 FLUSH=0x4 FUA=0x8 ROTATIONAL=0x10 TRIM=0x20 ZEROES=0x40
# The largest request in bytes that counts whole sectors in 32 bits.
MAX=4294966784

nbd_begin 16
nbd_require helper_nbd blockdev
nbd_pick

# features FLAG...: a session with these flags; prints "cache fua rotational discard zeroes ro".
features() {
	local flags=$HAS f
	for f; do
		flags=$((flags | f))
	done
	nbd_session -f $flags -b 512 >&2 || return
	show_features
	nbd_session_end >&2
	wait_until 2 nbd_is_free "$NBD_INDEX"
}
show_features() {
	(
		cd "$NBD_SYS" || exit
		cat queue/write_cache queue/fua queue/rotational queue/discard_max_hw_bytes \
			queue/write_zeroes_max_bytes ro | tr ' ' _ | paste -sd ' '
	)
}
features_are() {
	local want=$1
	shift
	is features "$(features "$@")" "$want"
}
write_block() { dd if=/dev/zero of="$NBD_DEV" bs=4096 count=1 oflag=direct conv=notrunc; }
write_fails() {
	local out
	out=$(LC_ALL=C write_block 2>&1) && return 1
	case $out in
	*"not permitted"* | *"Permission denied"* | *"Read-only"*) ;;
	*) echo "$out"; return 1 ;;
	esac
}

check "no flags" features_are "write_through 0 0 0 0 0"
check "SEND_FLUSH is a write cache" features_are "write_back 0 0 0 0 0" $FLUSH
check "SEND_FLUSH and SEND_FUA" features_are "write_back 1 0 0 0 0" $FLUSH $FUA
check "SEND_FUA alone does nothing" features_are "write_through 0 0 0 0 0" $FUA
check "ROTATIONAL" features_are "write_through 0 1 0 0 0" $ROTATIONAL
check "SEND_TRIM" features_are "write_through 0 0 $MAX 0 0" $TRIM
check "SEND_WRITE_ZEROES" features_are "write_through 0 0 0 $MAX 0" $ZEROES
check "all of them" features_are "write_back 1 1 $MAX $MAX 1" \
	$READ_ONLY $FLUSH $FUA $ROTATIONAL $TRIM $ZEROES
check "nothing of it stays" features_are "write_through 0 0 0 0 0"

nbd_session -f $((HAS | READ_ONLY))
check "READ_ONLY: blockdev --getro" is getro "$(blockdev --getro "$NBD_DEV")" 1
check "READ_ONLY: writing is refused" write_fails
check "READ_ONLY: reading works" dd if="$NBD_DEV" of=/dev/null bs=4096 count=1 iflag=direct
nbd_session_end
wait_until 2 nbd_is_free "$NBD_INDEX"

nbd_session
check "writable again" is getro "$(blockdev --getro "$NBD_DEV")" 0
check "writing works" write_block
nbd_session_end
wait_until 2 nbd_is_free "$NBD_INDEX"
check "after the session nothing is left" is features "$(show_features)" "write_through 0 0 0 0 0"

# More than one connection.
check "CAN_MULTI_CONN with 4 connections" nbd_session -n 4 -f $((HAS | 0x100))
nbd_end
