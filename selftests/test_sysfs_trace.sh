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
EVENTS="nbd_header_received nbd_header_sent nbd_payload_received nbd_payload_sent nbd_reply nbd_requeue nbd_send_request"

nbd_require nbdkit nbd-client fio blkdiscard
[ -d $TRACEFS/events ] || mount -t tracefs nodev $TRACEFS 2>/dev/null
[ -d $TRACEFS/events ] || nbd_skip_all "no tracefs"
nbd_begin 26
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

# traced CMD...: what the events say while CMD runs, in NBD_TMP/trace, and those with times in NBD_TMP/times.
traced() {
	: >$TRACE/trace
	echo 1 >$TRACE/events/nbd/enable
	"$@" || return
	# The last reply may be there before its sender gets to say that all was sent.
	wait_until 5 all_sent
	echo 0 >$TRACE/events/nbd/enable
	grep -v '^#' $TRACE/trace | grep -vE ' nbd_(reply|requeue):' >"$NBD_TMP/trace"
	grep -E ' nbd_(reply|requeue):' $TRACE/trace >"$NBD_TMP/times" || :
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

# times_fit CONNECTIONS: each reply of NBD_TMP/trace is in NBD_TMP/times, on one of these connections, more than one of
# which were used, and no request took less time than it took to send it.
times_fit() {
	awk -v device="nbd$NBD_INDEX:" -v want="$1" '
		function bad(why) { print why ": " $0; failed = 1 }
		FNR == NR {
			for (i = 1; i < NF && $i != "nbd_payload_received:"; i++);
			if (i < NF)
				replies[$(i + 7)]++
			next
		}
		{
			for (i = 1; i < NF && $i != "nbd_reply:"; i++);
			if ($(i + 1) != device || $(i + 2) != "connection" || !($(i + 3) + 0 < want))
				bad("another device or connection")
			used[$(i + 3)]
			handle = $(i + 7)
			sub(/,$/, "", handle)
			if (--replies[handle] < 0)
				bad("no such reply")
			if ($(i + 8) != "read" && $(i + 8) != "write")
				bad("another operation")
			if (!/, error 0, sent after [0-9]+ ns, answered after [0-9]+ ns$/)
				bad("no times")
			if ($(NF - 1) + 0 == 0 || $(NF - 1) + 0 < $(NF - 5) + 0)
				bad("it took less than to send it")
		}
		END {
			$0 = "in all"
			for (handle in replies)
				if (replies[handle] != 0)
					bad("no times of " handle)
			if (length(used) < 2)
				bad(length(used) " connections")
			exit failed
		}' "$NBD_TMP/trace" "$NBD_TMP/times" || { head -n 20 "$NBD_TMP/times"; return 1; }
}

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
check "fields of nbd_reply" is fields "$(fields nbd_reply)" \
	"req handle sector sent_ns latency_ns dev_index connection bytes error op"
check "fields of nbd_requeue" is fields "$(fields nbd_requeue)" "req handle latency_ns dev_index connection"
check "each has an id of its own" is ids "$(event_ids | sort -u | wc -l)" 7

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
# Two processors have different connections.
on_two_cpus() {
	local cpu
	for cpu in 0 1; do
		taskset -c $cpu dd if="$NBD_DEV" of=/dev/null iflag=direct bs=4k count=20 status=none || return
		taskset -c $cpu dd if=/dev/zero of="$NBD_DEV" oflag=direct bs=4k count=20 status=none || return
	done
}
check "few requests on two of them" trace_of 80 on_two_cpus
check "each with its connection and times" times_fit 4
# As the guide has it.
RECIPE='tracepoint:nbd:nbd_reply { @us[args.dev_index, args.connection] = hist(args.latency_ns / 1000); }'
histogram() {
	within 120 bpftrace -e "$RECIPE" -c "/usr/bin/dd if=$NBD_DEV of=/dev/null bs=4k count=1000 iflag=direct" \
		>"$NBD_TMP/bpftrace" 2>&1
	if ! grep -q "^@us\[$NBD_INDEX, [0-3]\]:" "$NBD_TMP/bpftrace"; then
		cat "$NBD_TMP/bpftrace"
		return 1
	fi
	is "requests" "$(awk -F '[])|]' '/^[[(].*\|@* *\|$/ { n += $2 } END { print n + 0 }' "$NBD_TMP/bpftrace")" 1000
}
if ! command -v bpftrace >/dev/null; then
	ktap_test_skip "a histogram of them by bpftrace: there is none"
elif [ ! -e /sys/kernel/btf/vmlinux ]; then
	ktap_test_skip "a histogram of them by bpftrace: the kernel has no BTF"
else
	check "a histogram of them by bpftrace" histogram
fi
check "detach" io_detach

# A server that is slow to answer goes away: the request is taken from one connection and answered on the next.
taken_back() {
	local reader
	io_read_one 60 &
	reader=$!
	wait_until 10 grep -q nbd_payload_sent $TRACE/trace || return
	kill -9 "$IO_PID"
	wait_until 10 io_said dead 1 || return
	io_server sock memory 64M || return
	wait $reader || return
	sed -nE 's/.*(nbd_re[a-z]+): nbd[0-9]+: (connection [0-9]+),.* after ([0-9]+ ns)$/\1 \2 \3/p' $TRACE/trace \
		>"$NBD_TMP/taken"
	is "events" "$(cut -d " " -f 1-3 "$NBD_TMP/taken" | uniq | paste -sd ,)" "nbd_requeue connection 0,nbd_reply connection 0"
	is "without a time" "$(grep -c ' 0 ns' "$NBD_TMP/taken")" 0
}
io_server sock --filter=delay memory 64M delay-read=30
io_persist 30
wait_until 10 nbd_connected
echo 1 >$TRACE/events/nbd/enable
: >$TRACE/trace
check "a request is taken from a connection that is lost" taken_back
echo 0 >$TRACE/events/nbd/enable
check "disconnect" "$NBD_DIR/helper_genl" disconnect "$NBD_INDEX"

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
