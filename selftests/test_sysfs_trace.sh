#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# The trace events nbd:*.

# shellcheck source-path=SCRIPTDIR source=test_common.sh
. "$(dirname "$0")/test_common.sh"
# shellcheck source=test_io_common.sh
. "$(dirname "$0")/test_io_common.sh"

TRACEFS=/sys/kernel/tracing
TRACE=$TRACEFS/instances/nbd-selftest
EVENTS="nbd_header_received nbd_header_sent nbd_payload_received nbd_payload_sent nbd_send_request"

nbd_require nbdkit nbd-client fio blkdiscard
[ -d $TRACEFS/events ] || mount -t tracefs nodev $TRACEFS 2>/dev/null
[ -d $TRACEFS/events ] || nbd_skip_all "no tracefs"
nbd_begin 19
nbd_pick

trace_end() { [ ! -d $TRACE ] || rmdir $TRACE; }
nbd_defer trace_end
trace_end
mkdir $TRACE || ktap_exit_fail_msg "no trace instance"
echo 4096 >$TRACE/buffer_size_kb
# One clock for all CPUs: the order counts.
echo global >$TRACE/trace_clock

# fields EVENT: the names of its own fields.
fields() {
	sed -n 's/^\tfield:.*[ *]\([a-z_]*\);\toffset.*/\1/p' "$TRACE/events/nbd/$1/format" |
		grep -v '^common_' | paste -sd ' '
}
# all_fields EVENT...: those of all these, which are the same.
all_fields() { for e; do fields "$e"; done | sort -u; }
event_ids() { cat $TRACE/events/nbd/*/id; }

# traced CMD...: what the events say while CMD runs, in NBD_TMP/trace.
traced() {
	: >$TRACE/trace
	echo 1 >$TRACE/events/nbd/enable
	"$@" || return
	# The last reply may be there before its sender gets to say that all was sent.
	wait_until 5 all_sent
	echo 0 >$TRACE/events/nbd/enable
	grep -v '^#' $TRACE/trace >"$NBD_TMP/trace"
}
all_sent() {
	awk '/ nbd_send_request:/ { n++ } / nbd_payload_sent:/ { n-- } END { exit n != 0 }' $TRACE/trace
}

# consistent [N]: NBD_TMP/trace has each event once for each of N requests (default: any number
# but 0), about the same request and with the same handle, in the order of what happens. Of that,
# nothing is sure between the sending and the receiving side but that a request comes first.
consistent() {
	awk -v device="nbd$NBD_INDEX:" -v want="${1:-0}" '
		function bad(why) { print why ": " $0; failed = 1 }
		# The event has not happened more often than the one before it.
		function follows(event, before, key) {
			if (++n[event, key] > n[before, key])
				bad("without " before)
			count[event]++
		}
		{
			for (i = 1; i < NF && $i !~ /^nbd_[a-z_]*:$/; i++);
			event = $i
		}
		event == "nbd_send_request:" {
			if ($(i + 1) != device || $(i + 2) != "request")
				bad("another device or text")
			n[event, $(i + 3)]++
			sent++
			next
		}
		{
			request = $(i + 5)
			sub(/,$/, "", request)
			handle = $(i + 7)
			if (handle !~ /^0x[0-9a-f]+$/ || length(handle) != 18)
				bad("no handle")
			pair[request " " handle]
		}
		event == "nbd_header_sent:" {
			follows("sent", "nbd_send_request:", request)
			n[event, request " " handle]++
		}
		event == "nbd_payload_sent:" { follows(event, "nbd_header_sent:", request " " handle) }
		event == "nbd_header_received:" {
			follows("received", "nbd_send_request:", request)
			n[event, request " " handle]++
		}
		event == "nbd_payload_received:" { follows(event, "nbd_header_received:", request " " handle) }
		END {
			$0 = "in all"
			if (sent == 0 || (want && sent != want))
				bad(sent + 0 " requests, not " want)
			if (count["sent"] != sent)
				bad(count["sent"] + 0 " headers sent, not " sent)
			for (p in pair) {
				$0 = "request " p
				all = n["nbd_header_sent:", p]
				if (n["nbd_payload_sent:", p] != all || n["nbd_header_received:", p] != all ||
				    n["nbd_payload_received:", p] != all)
					bad("not each event as often as the others")
			}
			exit failed
		}' "$NBD_TMP/trace" || { head -n 40 "$NBD_TMP/trace"; return 1; }
}
trace_of() {
	local want=$1
	shift
	traced "$@" && consistent "$want"
}
trace_is_empty() { is "trace" "$(grep -v '^#' $TRACE/trace)" ""; }

# zero_dd ARGS...; read_dd ARGS...: write zeroes, or read, past the page cache.
zero_dd() { dd if=/dev/zero of="$NBD_DEV" oflag=direct conv=notrunc status=none "$@"; }
read_dd() { dd if="$NBD_DEV" of=/dev/null iflag=direct status=none "$@"; }
random_io() {
	within 60 fio --name=trace --filename="$NBD_DEV" --direct=1 --ioengine=libaio --iodepth=16 \
		--rw=randrw --bsrange=4k-256k --blockalign=4k --size=8m --output=/dev/null
}
# The partition scan is over, which the first open of the device does.
quiet() {
	local before
	: <"$NBD_DEV"
	nbd_settle
	before=$(<"$NBD_SYS/stat")
	sleep 0.5
	[ "$(<"$NBD_SYS/stat")" = "$before" ]
}
# start_of OFFSET: the number that nbdkit's pattern has at that place of the device.
start_of() {
	dd if="$NBD_DEV" iflag=direct bs=512 count=1 skip=$(($1 / 512)) status=none |
		od -An -tu8 --endian=big -N8 | tr -d ' '
}

check "the events" is events "$(cd $TRACE/events/nbd && echo nbd_*)" "$EVENTS"
check "fields of nbd_send_request" is fields "$(fields nbd_send_request)" "nbd_request dev_index request"
check "fields of the others" is fields \
	"$(all_fields nbd_header_sent nbd_payload_sent nbd_header_received nbd_payload_received)" "req handle"
check "each has an id of its own" is ids "$(event_ids | sort -u | wc -l)" 5

io_server sock memory 64M
io_attach_unix -b 4096
wait_until 10 quiet
check "a read" trace_of 1 read_dd bs=4096 count=1
check "a write" trace_of 1 zero_dd bs=4096 count=1
check "a flush" trace_of 1 sync "$NBD_DEV"
check "a discard" trace_of 1 blkdiscard -f -l 65536 "$NBD_DEV"
check "a write of zeroes" trace_of 1 blkdiscard -f -z -l 65536 "$NBD_DEV"
check "ten reads" trace_of 10 read_dd bs=4096 count=10
check "more than a socket has room for" trace_of "" zero_dd bs=16M count=2
: >$TRACE/trace
read_dd bs=4096 count=4
check "switched off: nothing" trace_is_empty
check "detach" io_detach

io_server sock4 -t 4 memory 64M
io_attach_unix -b 4096 -C 4
wait_until 10 quiet
check "many requests on four connections" trace_of "" random_io
check "detach" io_detach

# The tracepoint nbd_send_request is one that BPF programs may write through: bytes 16 to 23 of
# the header are the position on the disk, big end first.
BPF=$NBD_DIR/helper_bpf
has_bpf=yes
"$BPF" 22 0 true >/dev/null 2>&1
[ $? != 4 ] || has_bpf=
# bpf_check NAME CMD...
bpf_check() {
	if [ -n "$has_bpf" ]; then
		check "$@"
	else
		ktap_test_skip "$1"
	fi
}
# Reads byte 0 from 64 KiB on.
elsewhere() {
	is "without the program" "$(start_of 0)" 0 &&
		is "with the program" "$("$BPF" 21 1 bash -c "$(declare -f start_of); start_of 0")" 65536 &&
		is "afterwards" "$(start_of 0)" 0
}
# What is written to the first 16 MiB goes to 48 MiB, many requests at a time.
in_parts() {
	head -c 16M /dev/urandom >"$NBD_TMP/data"
	"$BPF" 20 3 dd if="$NBD_TMP/data" of="$NBD_DEV" bs=16M oflag=direct conv=notrunc status=none || return
	dd if="$NBD_DEV" bs=1M skip=48 count=16 iflag=direct status=none | cmp - "$NBD_TMP/data" || return
	dd if="$NBD_DEV" bs=1M count=48 iflag=direct status=none | cmp -n 50331648 - /dev/zero
}
io_server pattern pattern size=1M
io_attach_unix -b 512
bpf_check "a program can change a header" elsewhere
check "detach" io_detach
io_server parts memory 64M
io_attach_unix -b 4096
bpf_check "it stays changed however it is sent" in_parts
check "detach" io_detach
nbd_end
