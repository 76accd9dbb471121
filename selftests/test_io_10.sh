#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# How often the driver calls the socket: once for a request with all of its payload, however many pages that is
# in, once for the payload of a reply, and once for several requests that come together.

. "$(dirname "$0")/test_common.sh"

TRACEFS=/sys/kernel/tracing
TRACE=$TRACEFS/instances/nbd-selftest
GROUP=nbd_selftest
PAGES=32 WRITES=16
reqs=0 sends=0 receives=0

[ -d $TRACEFS/events ] || mount -t tracefs nodev $TRACEFS 2>/dev/null
[ -d $TRACEFS/events ] || nbd_skip_all "no tracefs"
[ -e $TRACEFS/kprobe_events ] || nbd_skip_all "no probes in the kernel (CONFIG_KPROBE_EVENTS)"
nbd_begin 10
nbd_pick

# probe NAME FUNCTION: an event of this name at each call of the function.
probe() { echo "p:$GROUP/$1 $2" >>$TRACEFS/kprobe_events; }
probes_end() {
	[ ! -d $TRACE ] || rmdir $TRACE
	echo "-:$GROUP/send" >>$TRACEFS/kprobe_events
	echo "-:$GROUP/receive" >>$TRACEFS/kprobe_events
} 2>/dev/null
nbd_defer probes_end
probes_end
# The socket's own functions, whatever the driver has called.
if ! probe send unix_stream_sendmsg || ! probe receive unix_stream_recvmsg; then
	nbd_skip_all "no probes at the functions of Unix sockets"
fi
mkdir $TRACE || ktap_exit_fail_msg "no trace instance"
echo 0 >$TRACE/tracing_on
echo 1 >$TRACE/events/$GROUP/enable

# requests: how many reads and writes the device has had.
requests() { awk '{ print $1 + $5 }' "$NBD_SYS/stat"; }

# traced WHAT N: have helper_io do that, with the calls of sockets in the trace. Sets sends, receives and
# reqs, the number of requests that it was for the driver.
traced() {
	local before
	before=$(requests)
	: >$TRACE/trace
	within 5 "$NBD_DIR/helper_io" "$1" "$NBD_DEV" "$2" $TRACE/tracing_on || return
	reqs=$(($(requests) - before))
	sends=$(calls send) receives=$(calls receive)
}
counted() { note "$reqs request(s), $sends send(s), $receives receive(s)"; }
# calls EVENT: how often the kernel itself, or the program in its place, has called it. The server is not meant.
calls() { grep -cE "^ *(kworker|nbd|helper_io)[^ ]*-[0-9]+ .* $1: " $TRACE/trace || :; }

# at_most WHAT LIMIT: of that there were so many, and some.
at_most() {
	if [ "${!1}" -lt 1 ] || [ "${!1}" -gt "$2" ]; then
		echo "${!1} $1"
		cat $TRACE/trace
		return 1
	fi
}

# With room for all that is sent here, so that nothing is sent in parts.
check "a session" nbd_session -s 16777216 -b 4096 -w 4194304
# The first one to open the device reads the partition table.
: <"$NBD_DEV"
nbd_settle

check "a write of $PAGES pages" traced write $PAGES
counted
check "it is one request" is requests "$reqs" 1
check "it is sent by one call" at_most sends 1
check "a read of $PAGES pages" traced read $PAGES
counted
check "it is one request, too, sent by one call" is "requests and sends" "$reqs $sends" "1 1"
# One for its header, one for its payload, and one that finds or waits for nothing more.
check "the reply takes two receives" at_most receives 3
check "$WRITES writes at once" traced batch $WRITES
counted
check "they are $WRITES requests, several sent by one call" \
	eval "is requests $reqs $WRITES && at_most sends $((WRITES / 2))"
check "disconnect" nbd_session_end
nbd_end
