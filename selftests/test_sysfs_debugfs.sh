#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# What debugfs says of a device: as much as the C driver, in the same words, and beyond that which
# state the device is in, whose it is, and what each of its connections does.

# shellcheck source-path=SCRIPTDIR source=test_common.sh
. "$(dirname "$0")/test_common.sh"
# shellcheck source=test_io_common.sh
. "$(dirname "$0")/test_io_common.sh"

DEBUGFS=/sys/kernel/debug
FILES="blocksize_bits flags size_bytes tasks timeout"

nbd_require helper_nbd helper_genl nbdkit nbd-client
grep -q " $DEBUGFS debugfs " /proc/mounts || mount -t debugfs debugfs $DEBUGFS 2>/dev/null ||
	nbd_skip_all "no debugfs"
nbd_begin 87
nbd_pick
DIR=$DEBUGFS/nbd/nbd$NBD_INDEX

# soon CMD...: CMD succeeds within a few seconds; what it says the last time is shown.
soon() { wait_until 5 "$@" >/dev/null || "$@"; }
# ours NAME CMD...: a test of what the C driver does not have. step CMD...: what only these need.
ours() {
	if [ "$NBD_DRIVER" = c ]; then
		note "the C driver has neither state nor connections, nor a directory before a session"
		ktap_test_skip "$1"
	else
		check "$@"
	fi
}
step() { [ "$NBD_DRIVER" = c ] || "$@" || note "failed: $*"; }

file_is() { is "$1" "$(<"$DIR/$1")" "$2"; }
no_directory() { [ ! -e "$DIR" ]; }
free() { nbd_is_free "$NBD_INDEX"; }
files() { (cd "$DIR" && echo *); }
# The kernel's Rust crate knows no mode but 400.
for_readers() { [[ $(cd "$DIR" && stat -c %a ./* | sort -u) == 4[04][04] ]]; }

# As the kernel counts them; without its configuration any of the usual ticks will do.
HZ=$({ zcat /proc/config.gz || cat "/boot/config-$(uname -r)"; } 2>/dev/null | sed -n 's/^CONFIG_HZ=//p')
timeout_is() {
	local jiffies hz
	jiffies=$(<"$DIR/timeout")
	for hz in ${HZ:-100 250 300 1000}; do
		[ "$jiffies" != $(($1 * hz)) ] || return 0
	done
	echo "the timeout is $jiffies jiffies, with ${HZ:-an unknown number} in a second"
	return 1
}
# flags_are HEX NAME...: without the one that only we have a name for.
flags_are() {
	local want name
	want=$(printf 'Hex: %s\n\nKnown flags:' "$1")
	shift
	for name; do
		want+=$'\n'NBD_FLAG_$name
	done
	is flags "$(grep -vx NBD_FLAG_CAN_MULTI_CONN "$DIR/flags")" "$want"
}

# The C driver's files.

check "idle: no directory" no_directory
nbd_session -s 1048576 -b 4096 -t 7 -f 0xd
check "the files" is files "$(files | sed 's/connections //; s/state //')" "$FILES"
check "only to be read" for_readers
check "tasks: the thread in NBD_DO_IT" file_is tasks "recv: $NBD_TID"
check "size_bytes" file_is size_bytes 1048576
check "timeout: in jiffies" timeout_is 7
check "blocksize_bits" file_is blocksize_bits 12
check "flags: some" flags_are 0x0000000d HAS_FLAGS SEND_FLUSH SEND_FUA
nbd_ioctl SET_SIZE 524288
nbd_ioctl SET_TIMEOUT 3
nbd_ioctl SET_BLKSIZE 512
check "another size while it runs" file_is size_bytes 524288
check "another timeout while it runs" timeout_is 3
check "another block size while it runs" file_is blocksize_bits 9
check "the session ends" nbd_session_end
check "no directory when nobody has it open any more" soon no_directory

wait_until 5 free
nbd_session -s 4611686018427387904 -f 0x7f
check "size_bytes: more than 32 bits" file_is size_bytes 4611686018427387904
check "timeout: none" timeout_is 0
check "blocksize_bits: the default" file_is blocksize_bits 10
check "flags: all" flags_are 0x0000007f HAS_FLAGS READ_ONLY SEND_FLUSH SEND_FUA SEND_TRIM \
	SEND_WRITE_ZEROES ROTATIONAL
nbd_session_end
wait_until 5 free

"$NBD_DIR/helper_genl" connect -i "$NBD_INDEX" -s 1048576 -b 2048 -t 5 >"$NBD_TMP/genl" 2>&1 ||
	note "$(<"$NBD_TMP/genl")"
check "netlink: tasks is the thread that connected" file_is tasks "recv: $(<"$NBD_SYS/pid")"
check "netlink: size_bytes" file_is size_bytes 1048576
check "netlink: timeout" timeout_is 5
check "netlink: blocksize_bits" file_is blocksize_bits 11
check "netlink: flags" flags_are 0x00000105 HAS_FLAGS SEND_FLUSH
ours "netlink: the flag that the C driver has no name for" \
	grep -qx NBD_FLAG_CAN_MULTI_CONN "$DIR/flags"
"$NBD_DIR/helper_genl" reconfigure -i "$NBD_INDEX" -s 524288 -t 9 >"$NBD_TMP/genl" 2>&1 ||
	note "$(<"$NBD_TMP/genl")"
check "netlink: another size" file_is size_bytes 524288
check "netlink: another timeout" timeout_is 9
check "netlink: disconnect" "$NBD_DIR/helper_genl" disconnect "$NBD_INDEX"
check "netlink: no directory after that" soon no_directory

# The state.

state_is() { is state "$(<"$DIR/state")" "$1"; }
empty() { is "$1" "$(<"$DIR/$1")" ""; }

# set_up [HELPER]: a process that sets the device up with two sockets and then only waits.
set_up() {
	"${1:-$NBD_DIR/helper_nbd}" setup "$NBD_DEV" -n 2 >"$NBD_TMP/setup" 2>&1 &
	owner=$!
	nbd_defer kill -9 $owner
	wait_until 5 grep -qx set "$NBD_TMP/setup" || cat "$NBD_TMP/setup"
}
end_setup() {
	kill -9 "$owner"
	wait_until 5 nbd_exited "$owner"
	wait "$owner" 2>/dev/null
	true
}
# For a name that would be two lines.
odd_name() {
	cp "$NBD_DIR/helper_nbd" "$NBD_TMP/two"$'\n'"lines"
	set_up "$NBD_TMP/two"$'\n'"lines"
}
one_line() {
	local lines
	mapfile -t lines <"$DIR/state"
	is "number of lines" ${#lines[@]} 1 && [[ ${lines[0]} == *"process $owner (two"*"lines), which is alive"* ]]
}

exec 8<"$NBD_DEV"
ours "open and idle: no directory" no_directory
step set_up
ours "setup: whose it is" soon state_is \
	"setup of 2 socket(s) by process ${owner:-} (helper_nbd), which is alive, 2 opener(s)"
ours "setup: all files" is files "$(files)" "blocksize_bits connections flags size_bytes state tasks timeout"
ours "setup: no task" empty tasks
ours "setup: no connections" empty connections
step nbd_ioctl SET_SIZE 8192
ours "setup: the size that was set" file_is size_bytes 8192
step end_setup
ours "setup: its owner has exited" soon state_is \
	"setup of 2 socket(s) by process ${owner:-} (helper_nbd), which has exited, 1 opener(s)"
exec 8<&-
ours "the last opener takes the setup away" soon no_directory
step set_up
step nbd_ioctl CLEAR_SOCK
ours "cleared: no directory although it is open" soon no_directory
step end_setup
step odd_name
ours "a name of two lines stays in one" one_line
step end_setup
step wait_until 5 no_directory

step nbd_session
ours "running: of which task" soon state_is "running, session of task ${NBD_TID:-}, 1 opener(s)"
exec 8<"$NBD_DEV" 9<"$NBD_DEV"
ours "running: with others" soon state_is "running, session of task ${NBD_TID:-}, 3 opener(s)"
step nbd_session_end
ours "stopped: for how many it waits" soon state_is "stopped, waits until all openers are gone, 2 opener(s)"
ours "stopped: no connections" empty connections
ours "stopped: no task" empty tasks
exec 8<&-
ours "stopped: one has closed it" soon state_is "stopped, waits until all openers are gone, 1 opener(s)"
exec 9<&-
ours "stopped: no directory after the last one" soon no_directory

# The connections.

# line N: what is said of connection N. field N NAME: the word after that name.
line() { sed -n "s/^$1: //p" "$DIR/connections"; }
field() { line "$1" | sed -n "s/^\(.* \)\?$2 \([^ ]*\).*/\2/p"; }
field_is() { is "$2 of connection $1" "$(field "$1" "$2")" "$3"; }
# sum NAME: over all connections.
sum() { grep -o " $1 [0-9]*" "$DIR/connections" | awk '{ n += $2 } END { print n + 0 }'; }
sum_is() { is "the sum of $1" "$(sum "$1")" "$2"; }
lines_are() { is connections "$(cut -d ' ' -f 1,2 "$DIR/connections" | paste -sd ' ')" "$1"; }
last_error_is() { is "last-error of $1" "$(line "$1" | sed 's/.* last-error //')" "$2"; }
last_errors_are() { last_error_is 0 "$1" && last_error_is 1 "$1"; }
# like N REGEX: the whole line of connection N.
like() {
	local text
	text=$(line "$1")
	[[ $text =~ ^$2$ ]] || { echo "connection $1: $text"; return 1; }
}

# The partition scan is over, which the first open of the device does.
quiet() {
	local before
	: <"$NBD_DEV"
	nbd_settle
	before=$(<"$DIR/connections")
	sleep 0.3
	[ "$(<"$DIR/connections")" = "$before" ] && [ "$(sum in-flight)" = 0 ]
}
# grew REQUESTS SENT RECEIVED: connection 0, by so much since remember.
remember() { requests=$(field 0 requests) sent=$(field 0 sent) received=$(field 0 received); }
grew() {
	is growth "$(($(field 0 requests) - requests)) $(($(field 0 sent) - sent)) $(($(field 0 received) - received))" \
		"$1 $2 $3"
}
# blocks IF-OR-OF COUNT: so many requests of 4 KiB, one after the other.
blocks() {
	local args=("of=$NBD_DEV" if=/dev/zero oflag=direct)
	[ "$1" = of ] || args=("if=$NBD_DEV" of=/dev/null iflag=direct)
	within 5 dd "${args[@]}" bs=4096 count="$2" conv=notrunc status=none
}
counted() {
	local what=$1
	shift
	remember
	case $what in
	read) blocks if 3 ;;
	write) blocks of 2 ;;
	flush) within 5 sync "$NBD_DEV" ;;
	esac
	soon grew "$@"
}

# hold N: the server stops, and N readers wait for it. held_end: they have succeeded.
hold() {
	local i
	kill -STOP "$IO_PID"
	readers=()
	for ((i = 0; i < $1; i++)); do
		dd if="$NBD_DEV" of=/dev/null iflag=direct bs=4096 count=1 skip=$((i * 2)) status=none 2>/dev/null &
		readers+=($!)
		nbd_defer kill -9 $!
	done
}
held_end() {
	local reader
	for reader in "${readers[@]}"; do
		wait_until 10 nbd_exited "$reader" && wait "$reader" || return
	done
}
readers_wait() {
	local reader
	for reader in "${readers[@]}"; do
		nbd_not nbd_exited "$reader" || { echo "reader $reader has ended"; return 1; }
	done
}
# local_port: of the connection to IO_PORT.
local_port() {
	printf '%d' 0x"$(awk -v to="0100007F:$(printf %04X "$IO_PORT")" \
		'$3 == to && $4 == "01" { split($2, a, ":"); print a[2] }' /proc/net/tcp)"
}
tcp_line() {
	like 0 "open generation [0-9]+ local 127\.0\.0\.1:$(local_port) peer 127\.0\.0\.1:$IO_PORT from $IO_CLIENT \
\(nbd-client\) requests [0-9]+ in-flight 0 sent [0-9]+ received [0-9]+ replayed 0 last-error none"
}

step io_server_tcp memory 16M
step io_attach_tcp -b 4096
step wait_until 10 quiet
ours "TCP: one connection" lines_are "0: open"
ours "TCP: both addresses, and from whom" tcp_line
ours "three reads are counted" counted read 3 $((3 * 28)) $((3 * (16 + 4096)))
ours "two writes are counted" counted write 2 $((2 * (28 + 4096))) $((2 * 16))
ours "a flush is counted" counted flush 1 28 16
step remember
step hold 5
ours "five requests are in flight" soon field_is 0 in-flight 5
ours "they were sent, and nothing has come back" soon grew 5 $((5 * 28)) 0
step kill -CONT "${IO_PID:-}"
ours "the server answers them" held_end
ours "none is in flight" soon field_is 0 in-flight 0
ours "nothing was replayed" field_is 0 replayed 0
step io_detach

# new_sockets N: that many for the lost connections.
new_sockets() { "$NBD_DIR/helper_genl" reconfigure -i "$NBD_INDEX" -u "$IO_SOCK" -n "$1"; }
reconfigure() { "$NBD_DIR/helper_genl" reconfigure -i "$NBD_INDEX" "$@"; }
unix_line() {
	like "$1" "open generation [0-9]+ local unnamed peer $IO_SOCK from $pid \(helper_genl\) \
requests [0-9]+ in-flight 0 sent [0-9]+ received [0-9]+ replayed 0 last-error none"
}
both_unix_lines() { unix_line 0 && unix_line 1; }
# newer N: the generation of connection N is higher than any before.
newer() {
	local now
	now=$(field "$1" generation)
	[ "$now" -gt "$generation" ] || { echo "generation $now is not above $generation"; return 1; }
	generation=$now
}
two_generations() {
	local a b
	a=$(field 0 generation) b=$(field 1 generation)
	if [ "$a" -le "$generation" ] || [ "$b" -le "$generation" ] || [ "$a" = "$b" ]; then
		echo "generations $a and $b after $generation"
		return 1
	fi
	generation=$((a > b ? a : b))
}
# lost CONNECTIONS: the server is killed, and they are so then.
lost() { kill -9 "$IO_PID" && soon lines_are "$1"; }
# kept REPLAYED LAST-ERROR: connection 0 still knows them, and its new socket has got the requests.
kept() {
	field_is 0 replayed "$1" && last_error_is 0 "$2" && field_is 0 in-flight 0 &&
		[ "$(field 0 requests)" -ge "$1" ]
}
# unix_connect N
unix_connect() {
	io_server sock memory 16M &&
		"$NBD_DIR/helper_genl" connect -i "$NBD_INDEX" -u "$IO_SOCK" -n "$1" -b 4096 -D 60 || return
	pid=$(<"$NBD_SYS/pid")
	wait_until 10 quiet
}
unix_disconnect() { "$NBD_DIR/helper_genl" disconnect "$NBD_INDEX" && wait_until 5 free; }
# state_of LIFE OPENERS: of the session that netlink has made.
state_of() { state_is "$1, session of task $pid, $2 opener(s)"; }

ours "Unix: connect" unix_connect 1
ours "Unix: one connection" lines_are "0: open"
ours "Unix: the path, and from whom, who has exited" unix_line 0
generation=0
ours "a generation" newer 0
step hold 6
ours "six requests are in flight" soon field_is 0 in-flight 6
ours "the server is killed: closed" lost "0: closed"
# It had not read the requests, as the socket says.
ours "all were replayed, and why" soon like 0 "closed replayed 6 last-error receive failed \(-104\)"
ours "whoever reads waits" readers_wait
ours "waiting: with six who read" soon state_of "waiting for a connection" 6
step io_server sock memory 16M
step new_sockets 1
ours "a new socket" lines_are "0: open"
ours "of a higher generation" newer 0
ours "the readers are served" held_end
ours "what was replayed, and why, is still there" soon kept 6 "receive failed (-104)"
ours "running again" soon state_of running 0
ours "disconnect" unix_disconnect

ours "two connections: connect" unix_connect 2
ours "two connections" lines_are "0: open 1: open"
ours "the same of both" both_unix_lines
ours "each has a generation of its own, newer than the session before" two_generations
step hold 6
ours "six requests are in flight, on both together" soon sum_is in-flight 6
step kill -CONT "${IO_PID:-}"
ours "and answered" held_end
step wait_until 5 sum_is in-flight 0
ours "a server without requests is killed: both are closed" lost "0: closed 1: closed"
ours "each knows why" soon last_errors_are "closed by the server"
ours "nothing was replayed" sum_is replayed 0
step io_server sock memory 16M
step new_sockets 1
ours "one has a new socket" lines_are "0: open 1: closed"
ours "the newest" newer 0
step new_sockets 1
ours "so has the other" lines_are "0: open 1: open"
ours "a newer one" newer 1
step reconfigure -D 0
ours "without time to wait it is killed again" lost "0: closed 1: closed"
ours "without connection" soon state_of "without connection" 0
step io_server sock memory 16M
step new_sockets 2
step reconfigure -t 1
step hold 1
ours "a server that is too slow for both" wait_until 10 last_errors_are "timed out"
step kill -9 "${IO_PID:-}"
step io_server sock memory 16M
step new_sockets 2
step kill -STOP "${IO_PID:-}"
# A request in flight: without any, the session ends as soon as the servers are told.
begin_disconnect() {
	dd if="$NBD_DEV" of=/dev/null bs=4096 count=1 iflag=direct status=none 2>/dev/null &
	nbd_defer kill -9 $!
	wait_until 5 io_busy 0 || return
	"$NBD_DIR/helper_genl" disconnect "$NBD_INDEX" &
	disconnect=$!
}
# Only for the second that a server has to answer: on a slow kernel no process is as quick.
disconnecting() {
	local state lines=()
	read -r state <"$DIR/state" && mapfile -t lines <"$DIR/connections" || return
	[[ "${lines[*]}" =~ ^0:\ closing\ .*\ 1:\ closing\  ]] || { echo "connections: ${lines[*]}"; return 1; }
	is state "$state" "disconnecting, session of task $pid, 1 opener(s)"
}
step begin_disconnect
ours "disconnecting" wait_until 5 disconnecting
step wait "${disconnect:-}"
ours "disconnected: no directory" soon no_directory
nbd_end
