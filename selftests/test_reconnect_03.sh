#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# nbd-client with the ioctl interface. With -persist and a timeout: when a request times out, NBD_DO_IT fails,
# and the same process connects again and is never told that the device is busy. A server that dies ends
# NBD_DO_IT without an error, and so the client. -d on a device without a session is no error.

. "$(dirname "$0")/test_common.sh"
. "$(dirname "$0")/test_io_common.sh"

nbd_require nbdkit nbd-client cmp
nbd_begin 20
nbd_pick

disk=$NBD_TMP/disk
head -c 1M /dev/urandom >"$disk"
serve() { io_server sock file "$disk"; }
free() { nbd_is_free "$NBD_INDEX"; }
end_idle() { within 10 nbd-client -L -d "$NBD_DEV" >"$NBD_TMP/idle.log" 2>&1 || { cat "$NBD_TMP/idle.log"; false; }; }
held() { exec 5<"$NBD_DEV" && end_idle; }
pid() { cat "$NBD_SYS/pid" 2>/dev/null; }

check "-d on an idle device" end_idle
check "-d on one that is open elsewhere" held
exec 5<&-

fails_with_eio() {
	within 15 dd if="$NBD_DEV" of=/dev/null bs=4096 count=1 iflag=direct 2>"$NBD_TMP/dd"
	grep -q 'Input/output error' "$NBD_TMP/dd" || { cat "$NBD_TMP/dd"; return 1; }
}
# The client tries once a second until there is a server. All other openers have closed the device by then.
reconnected() { [ "$(grep -c "^bs=" "$NBD_TMP/nbd-client.log")" -gt "$1" ] && nbd_connected; }

serve
nbd_log_mark
io_attach_unix -b 4096 -persist -t 1
check "attached" is pid "$(pid)" "$IO_CLIENT"
for round in 1 2 3; do
	kill -STOP "$IO_PID"
	stopped=$IO_PID
	rm "$IO_SOCK"
	check "a request times out, $round" fails_with_eio
	head -c 1M /dev/urandom >"$disk"
	serve
	check "there is a session again, $round" wait_until 10 reconnected "$round"
	check "of the same client, $round" is pid "$(pid)" "$IO_CLIENT"
	check "with the server's new data, $round" io_same "$disk" 1048576
	kill -9 "$stopped"
done
refusals() { grep -iE "busy" "$NBD_TMP/nbd-client.log"; nbd_log | grep -iE "refused|busy"; }
check "nothing was refused" is refusals "$(refusals)" ""
check "-d ends it" io_detach
check "-d after that" end_idle
kill -9 "$IO_PID"

serve
io_attach_unix -b 4096 -persist
kill -9 "$IO_PID"
check "a server that dies ends the session, and the client" wait_until 5 io_gone "$IO_CLIENT"
check "the device is free" free
nbd_end
