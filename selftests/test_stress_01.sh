#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Case E: qemu-nbd is attached, and detached or killed, again and again with I/O running and with another process
# that holds the device. The holder's I/O ends with the session; once the holder has closed the device, the next
# attach works at the first try. NBD_ROUNDS says how often.

. "$(dirname "$0")/test_common.sh"
. "$(dirname "$0")/test_io_common.sh"

nbd_require qemu-nbd
nbd_begin 6
nbd_pick

rounds=${NBD_ROUNDS:-16}
truncate -s 64M "$NBD_TMP/disk"
attach=0 ended=0 io=0 busy=0 gone=0 free=0 n=0

# The holder reads until it fails, and keeps the device open until it is told to go.
holder() {
	exec 8<>"$NBD_DEV" 2>/dev/null
	while dd if="$NBD_DEV" of=/dev/null bs=64k count=16 iflag=direct status=none 2>/dev/null &&
		dd if=/dev/zero of="$NBD_DEV" bs=64k count=16 oflag=direct conv=notrunc status=none 2>/dev/null; do
		: >"$NBD_TMP/io.started"
	done
	: >"$NBD_TMP/io.ended"
	read -r <>"$NBD_TMP/hold"
}
mkfifo "$NBD_TMP/hold"
dead() { ! kill -0 "$1" 2>/dev/null; }

for ((n = 0; n < rounds; n++)); do
	rm -f "$NBD_TMP"/io.*
	io_attach_qemu -f raw "$NBD_TMP/disk" || { attach=$((attach + 1)); note "round $n: attach failed"; break; }
	holder &
	holder=$!
	disown
	nbd_defer kill -9 $holder
	wait_until 10 [ -e "$NBD_TMP/io.started" ] || { io=$((io + 1)); note "round $n: no I/O"; break; }

	if ((n % 2)); then
		kill -9 "$IO_PID"
	else
		within 5 qemu-nbd -d "$NBD_DEV" >/dev/null 2>&1
	fi
	wait_until 2 dead "$IO_PID" || { ended=$((ended + 1)); note "round $n: qemu-nbd is still there"; break; }
	wait_until 2 [ -e "$NBD_TMP/io.ended" ] || { io=$((io + 1)); note "round $n: I/O goes on or hangs"; break; }

	# As long as the old holder is there, a new session must not get it.
	if ((n % 4 < 2)) && within 5 qemu-nbd -c "$NBD_DEV" -f raw "$NBD_TMP/disk" >/dev/null 2>&1; then
		busy=$((busy + 1))
		note "round $n: attached although a holder of the old session is there"
		break
	fi
	echo >"$NBD_TMP/hold"
	wait_until 5 dead $holder || { gone=$((gone + 1)); note "round $n: the holder is stuck"; break; }
	wait_until 2 nbd_is_free "$NBD_INDEX" || { free=$((free + 1)); note "round $n: the device is not free"; break; }
done
note "$n of $rounds rounds"
check "attach works at the first try" is failures "$attach, $((n == rounds))" "0, 1"
check "qemu-nbd ends within 2 s" is failures $ended 0
check "the holder's I/O ends within 2 s" is failures $io 0
check "no new session for an old holder" is failures $busy 0
check "the holder can go" is failures $gone 0
check "the device is free after that" is failures $free 0
nbd_end
