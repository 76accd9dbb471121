#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# nbdctl keep and an export that is not what it was: it is refused, the device waits, and goes on when the right one is
# back. Servers that come late, and sessions that are somebody else's.

. "$(dirname "$0")/test_common.sh"
. "$(dirname "$0")/test_io_common.sh"
. "$(dirname "$0")/test_keep_common.sh"

nbd_require nbdkit fio python3
keep_need
nbd_begin 33
nbd_pick
nbd_defer "$NBD_DIR/helper_genl" disconnect "$NBD_INDEX"

uri="nbd+unix:///?socket=$NBD_TMP/sock"
keep=(-D 120 -b "the data" "$uri")
serve() { io_server sock "$@"; }
# instead WORDS ARG...: another server takes the place of the server, and is refused with these words.
instead() {
	local words=$1
	shift
	kill -9 "$IO_PID"
	: >"$NBD_TMP/keep.log"
	serve "$@" && keep_log "$words" && status 'v["connections"]["missing"]' 1
}
back() {
	kill -9 "$IO_PID"
	: >"$NBD_TMP/keep.log"
	serve memory 16M && keep_log "connected again"
}
problem() { is problem "$(keep_status "'$1' in v['connections']['problem']")" True; }
since() {
	local since
	since=$(keep_status 'v["connections"]["missing_since"]')
	[ $((since + 60 * NBD_TIME_SCALE)) -gt "$EPOCHSECONDS" ] && [ "$since" -le "$EPOCHSECONDS" ]
}
shows() { ctl status "$NBD_DEV" | grep -qE -- "$1"; }
reads() { io_read_one 10; }

# The server is not there yet.
keep_begin "${keep[@]}"
check "it waits for the first server" keep_log "trying again"
check "the device is not connected" nbd_is_free "$NBD_INDEX"
serve memory 16M
check "the server comes" keep_log "connected to"
check "it is connected" wait_until 5 nbd_connected

check "another size is refused" instead "shrunk from 16 MiB to 8 MiB" memory 8M
check "status says why" problem "shrunk"
check "status says since when" since
check "for people, too" shows "0 of 1, missing for [0-9]+"
check "the right one is taken" back
check "there is no problem any more" status 'v["connections"]["problem"]' None
check "and it reads" reads
check "one that has grown is refused" instead "grown from 16 MiB to 32 MiB" memory 32M
check "until the device has" ctl resize "$NBD_DEV" 32M
check "then it is taken" keep_log "connected again"
check "the size" is size "$(cat "$NBD_SYS/size")" 65536
check "and back" ctl resize --shrink "$NBD_DEV" 16M
check "one that is read-only is refused" instead "become read-only" -r memory 16M
check "the writable one is taken" back
# shellcheck disable=SC2016 # for the server
check "one that cannot flush is refused" instead "lost \"flush\"" eval get_size='echo 16777216' pread='head -c $3 /dev/zero' \
	pwrite='cat >/dev/null' can_write='exit 0' can_flush='exit 3'
check "the one that can is taken" back

# What it knows of the export outlives it.
check "the keeper is killed" keep_kill KILL
check "the next one finds the session" keep_start "${keep[@]}"
check "and refuses as well" instead "become read-only" -r memory 16M
check "the writable one is taken again" back

# SIGTERM leaves the session.
check "it ends with SIGTERM" keep_kill TERM
check "and says what it leaves" keep_logged "stays connected"
check "another backend is not adopted" keep_says 1 "the data" keep -D 5 -b other "$uri" "$NBD_DEV"

# What systemd is told.
python3 -c '
import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind(sys.argv[1])
while True:
    print(s.recv(4096).decode(), flush=True)' "$NBD_TMP/notify" >"$NBD_TMP/told" 2>&1 &
nbd_defer kill -9 $!
wait_until 10 [ -S "$NBD_TMP/notify" ]
export NOTIFY_SOCKET=$NBD_TMP/notify
told() { wait_until 10 grep -qE -- "$1" "$NBD_TMP/told" || { cat "$NBD_TMP/told"; return 1; }; }
check "the session is found by its backend" keep_start "${keep[@]}"
check "systemd is told when it is" told "^READY=1"
kill -9 "$IO_PID"
check "and that a connection is missing" told "^STATUS=nbd$NBD_INDEX: 1 of 1 connections missing: .*refused"
check "disconnect" ctl disconnect "$NBD_DEV"
check "ends the keeper" keep_ends
check "and systemd is told" told "^STOPPING=1"
nbd_end
