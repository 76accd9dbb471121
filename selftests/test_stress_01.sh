#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Case E: qemu-nbd is attached, and detached or killed, again and again with I/O running and with
# another process that holds the device. The holder's I/O ends with the session; once the holder
# has closed the device, the next attach works at the first try. NBD_ROUNDS says how often, 200 by
# default: half of them end with a kill.

. "$(dirname "$0")/test_common.sh"
. "$(dirname "$0")/test_io_common.sh"

nbd_require qemu-nbd
nbd_begin 6
nbd_pick

rounds=${NBD_ROUNDS:-$(nbd_scaled_down 200)}
# The C driver takes seconds to end a session that way.
[ "$NBD_DRIVER" = rust ] || rounds=${NBD_ROUNDS:-10}
truncate -s 64M "$NBD_TMP/disk"
attach=0 ended=0 io=0 busy=0 gone=0 n=0

attach() { io_attach_qemu -f raw "$NBD_TMP/disk"; }

# wrong COUNTER MESSAGE: count it and end the rounds.
wrong() {
	eval "$1=1"
	note "round $n: $2"
}

for ((n = 0; n < rounds; n++)); do
	rm -f "$NBD_TMP"/io.*
	attach || { wrong attach "qemu-nbd -c fails"; break; }
	# It reads and writes until that fails, and keeps the device open until it is told to go.
	"$NBD_DIR/helper_io" hold "$NBD_DEV" "$NBD_TMP/io.started" "$NBD_TMP/io.ended" 2>"$NBD_TMP/io.error" &
	holder=$!
	disown
	nbd_defer kill -9 $holder
	wait_until 10 [ -e "$NBD_TMP/io.started" ] ||
		{ wrong io "no I/O: $(<"$NBD_TMP/io.error")"; break; }

	if ((n % 2)); then
		kill -9 "$IO_PID"
	else
		within 5 qemu-nbd -d "$NBD_DEV" >/dev/null 2>&1
	fi
	wait_until 2 nbd_gone "$IO_PID" || { wrong ended "qemu-nbd is still there"; break; }
	wait_until 2 [ -e "$NBD_TMP/io.ended" ] || { wrong io "I/O goes on or hangs"; break; }

	# As long as the old holder is there, a new session must not get it.
	if ((n % 8 < 2)) && (attach >/dev/null); then
		wrong busy "attached although a holder of the old session is there"
		break
	fi
	kill $holder
	wait_until 5 nbd_gone $holder || { wrong gone "the holder is stuck"; break; }
done
note "$n of $rounds rounds"
check "attach works at the first try" is "failures and rounds" "$attach, $n" "0, $rounds"
check "qemu-nbd ends within 2 s" is failures "$ended" 0
check "the holder's I/O ends within 2 s" is failures "$io" 0
check "no new session for an old holder" is failures "$busy" 0
check "the holder can go" is failures "$gone" 0
check "the device is free after that" wait_until 2 nbd_is_free "$NBD_INDEX"
nbd_end
