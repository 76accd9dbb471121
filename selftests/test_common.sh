#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# What the nbd selftests share. A test sources this, calls nbd_begin with the number of its
# tests, reports each with check, ktap_test_pass or ktap_test_fail, and ends with nbd_end.
#
# NBD_DRIVER=rust|c says which driver is tested (default: rust if NBD_KO is set, else c), NBD_KO
# is the Rust module. NBD_TIME_SCALE multiplies all deadlines, for slow kernels; NBD_WORK_SCALE
# divides long loops.
#
# As a program, "test_common.sh ensure" loads the driver for tests written in C.

NBD_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
NBD_DRIVER=${NBD_DRIVER:-$([ -n "${NBD_KO:-}" ] && echo rust || echo c)}
NBD_KO=${NBD_KO:-$NBD_DIR/nbd.ko}
NBD_TIME_SCALE=${NBD_TIME_SCALE:-1}
NBD_WORK_SCALE=${NBD_WORK_SCALE:-$NBD_TIME_SCALE}
NBD_DEVICES=64
# Marks of the devices that tests use, or left in a state that is not Idle; see nbd_pick and
# lib/device.c.
NBD_MARKS=/run/nbd-selftest

for NBD_I in "$NBD_DIR/ktap_helpers.sh" "$NBD_DIR/../kselftest/ktap_helpers.sh"; do
	if [ -r "$NBD_I" ]; then
		# shellcheck disable=SC1090
		. "$NBD_I"
		break
	fi
done

# nbd_skip_all REASON: end the whole program as skipped.
nbd_skip_all() {
	ktap_skip_all "$*"
	exit "$KSFT_SKIP"
}

# nbd_require CMD...: skip everything unless all these programs are there.
nbd_require() {
	local c
	for c; do
		command -v "$c" >/dev/null || [ -x "$NBD_DIR/$c" ] ||
			nbd_skip_all "$c is not installed"
	done
}

# nbd_begin N: print the header and the plan; skip when not root; make a directory NBD_TMP for
# files.
nbd_begin() {
	ktap_print_header
	[ "$(id -u)" = 0 ] || nbd_skip_all "must be run as root"
	[ "$NBD_DRIVER" = c ] || nbd_built_in || [ -r "$NBD_KO" ] || nbd_skip_all "no Rust module at NBD_KO=$NBD_KO"
	ktap_set_plan "$1"
	NBD_TMP=$(mktemp -d)
	NBD_DEFERRED=()
	trap nbd_cleanup EXIT
	trap 'exit 1' INT TERM
}

# nbd_end: print the totals and exit with their status.
nbd_end() { ktap_finished; }

# nbd_defer CMD...: run this when the test ends, however it ends; the last one deferred runs first.
nbd_defer() { NBD_DEFERRED+=("$(printf '%q ' "$@")"); }

# nbd_cleanup: run what was deferred and remove NBD_TMP. Called at exit.
nbd_cleanup() {
	local i
	for ((i = ${#NBD_DEFERRED[@]} - 1; i >= 0; i--)); do
		eval "${NBD_DEFERRED[i]}" >/dev/null 2>&1
	done
	NBD_DEFERRED=()
	rm -rf "$NBD_TMP"
}

# note TEXT: a diagnostic line.
note() { printf '# %s\n' "$*"; }

# check NAME CMD...: a test that passes when CMD succeeds. CMD's output is shown when it fails.
check() {
	local name=$1
	shift
	# Not in a subshell: what CMD sets or starts is to stay.
	if "$@" >"$NBD_TMP/check" 2>&1; then
		ktap_test_pass "$name"
	else
		note "failed: $*"
		sed 's/^/#   /' "$NBD_TMP/check"
		ktap_test_fail "$name"
	fi
}

# is WHAT GOT WANTED: true if both are equal, else says so. For use as "check NAME is ...".
is() { [ "$2" = "$3" ] || { echo "$1 is '$2', not '$3'"; return 1; }; }

# nbd_not CMD...: true if CMD fails.
nbd_not() { ! "$@"; }

# nbd_pause: 20 ms, without a process for them.
nbd_pause() { ! read -rt 0.02 -u "$NBD_SILENCE"; }
exec {NBD_SILENCE}<> <(:)

# wait_until SECONDS CMD...: poll until CMD succeeds; false when the time is over, of which a machine that
# stands still takes half a second at most.
wait_until() {
	local left=$(($1 * NBD_TIME_SCALE * 1000000)) start took
	shift
	start=${EPOCHREALTIME/./}
	until "$@"; do
		[ "$left" -gt 0 ] || return 1
		nbd_pause
		took=$((${EPOCHREALTIME/./} - start))
		start=$((start + took))
		left=$((left - (took < 500000 ? took : 500000)))
	done
}

# within SECONDS CMD...: run CMD, killed after that time. True if it ended by itself with success.
within() {
	local s=$1
	shift
	timeout -k 1 $((s * NBD_TIME_SCALE)) "$@"
}

# nbd_scaled_down N: how much of N a slow kernel does instead.
nbd_scaled_down() { echo $((($1 + NBD_WORK_SCALE - 1) / NBD_WORK_SCALE)); }

# nbd_settle: let udev, where it runs, finish with the devices that it has open.
nbd_settle() {
	[ ! -e /run/udev/control ] || udevadm settle -t $((10 * NBD_TIME_SCALE))
}

nbd_loaded() { [ -d /sys/module/nbd ]; }
nbd_built_in() { nbd_loaded && [ ! -e /sys/module/nbd/initstate ]; }

# nbd_load [PARAM=VALUE...]: load the driver under test, with no other parameters; it must not
# be loaded.
nbd_load() {
	local ko=$NBD_KO
	# Not with modprobe: distributions have parameters of their own in its configuration.
	[ "$NBD_DRIVER" != c ] || ko=$(modinfo -n nbd) || return
	insmod "$ko" "$@" || return
	# The C driver is known to leave tasks stuck; that the kernel says so later is no news.
	[ "$NBD_DRIVER" != c ] || echo 0 2>/dev/null >/proc/sys/kernel/hung_task_timeout_secs
	nbd_settle
	nbd_mark
}

# nbd_mark: which driver it is, for nbd_ensure: two modules of the same name look alike.
nbd_mark() { mkdir -p "$NBD_MARKS" && echo "$NBD_DRIVER" >"$NBD_MARKS/driver"; }

# nbd_plain FILE: a module's file as it was before it was compressed, on the standard output.
nbd_plain() {
	case $1 in
	*.xz) xz -dc "$1" ;;
	*.zst) zstd -qdc "$1" ;;
	*.gz) gzip -dc "$1" ;;
	*) cat "$1" ;;
	esac
}

nbd_try_unload() { rmmod nbd 2>/dev/null; }

# nbd_unload: unload the driver if it is loaded; waits for short-lived openers.
nbd_unload() {
	nbd_loaded || return 0
	nbd_settle
	if ! wait_until 5 nbd_try_unload; then
		echo "nbd stays loaded, with $(</sys/module/nbd/refcnt) references;" \
			"sessions: $(cd /sys/block && echo nbd*/pid)"
		return 1
	fi
	rm -rf "$NBD_MARKS"
}

# nbd_in_use: rmmod says that the driver is in use.
nbd_in_use() {
	local message
	message=$(LC_ALL=C rmmod nbd 2>&1) && return 1
	echo "$message"
	[[ $message == *"in use"* ]]
}

# nbd_reload [PARAM=VALUE...]: unload if loaded, and load with these parameters.
nbd_reload() { nbd_unload && nbd_load "$@"; }

# nbd_ensure: have the right driver loaded with NBD_DEVICES devices, whatever was loaded before.
nbd_ensure() {
	if [ -d "/sys/block/nbd$((NBD_DEVICES - 1))" ]; then
		! nbd_built_in || nbd_mark
		[ "$(cat "$NBD_MARKS/driver" 2>/dev/null)" = "$NBD_DRIVER" ] && return
	elif nbd_built_in; then
		echo "the driver is built in: boot with nbd.nbds_max=$NBD_DEVICES"
		return 1
	fi
	nbd_reload nbds_max=$NBD_DEVICES
}

# nbd_pick: choose an idle device that no other test has touched or left unclean, and set
# NBD_INDEX, NBD_DEV and NBD_SYS. Without this module's devices the program is skipped. A device
# that is not connected any more when the test ends can be used again.
nbd_pick() {
	local i
	nbd_ensure || ktap_exit_fail_msg "cannot load the $NBD_DRIVER driver"
	mkdir -p "$NBD_MARKS"
	for ((i = NBD_DEVICES - 1; i >= 0; i--)); do
		nbd_has_size "$i" 0 || continue
		mkdir "$NBD_MARKS/busy.$i" 2>/dev/null || continue
		export NBD_INDEX=$i NBD_DEV=/dev/nbd$i NBD_SYS=/sys/block/nbd$i
		nbd_defer nbd_give_back "$i"
		return
	done
	ktap_exit_fail_msg "no clean device left"
}

nbd_give_back() { wait_until 2 nbd_is_free "$1" && rmdir "$NBD_MARKS/busy.$1"; }
nbd_is_free() { [ ! -e "/sys/block/nbd$1/pid" ] && nbd_has_size "$1" 0; }

# nbd_has_size INDEX SECTORS
nbd_has_size() {
	local size
	{ read -r size <"/sys/block/nbd$1/size"; } 2>/dev/null && [ "$size" = "$2" ]
}

# nbd_connected [INDEX]: true while that device (default: the picked one) has a session and a size.
nbd_connected() {
	local i=${1:-$NBD_INDEX}
	[ -e "/sys/block/nbd$i/pid" ] && ! nbd_has_size "$i" 0
}

# nbd_session [OPTION...]: a session of the picked device with a toy server that has only zeros;
# the options are those of helper_nbd. Returns when it runs, with the client's pid in
# NBD_SESSION and the thread id of its NBD_DO_IT in NBD_TID.
nbd_session() {
	local k v
	"$NBD_DIR/helper_nbd" session "$NBD_DEV" "$@" >"$NBD_TMP/session" 2>&1 &
	NBD_SESSION=$!
	nbd_defer kill -9 "$NBD_SESSION"
	if ! wait_until 5 nbd_connected; then
		note "no session: $(<"$NBD_TMP/session")"
		return 1
	fi
	export NBD_TID
	while read -r k v; do
		[ "$k" != tid ] || NBD_TID=$v
	done <"$NBD_TMP/session"
}

# nbd_session_end: disconnect it and wait for the client; true if NBD_DO_IT returned 0.
nbd_session_end() {
	nbd_ioctl DISCONNECT || return
	wait_until 5 nbd_exited "$NBD_SESSION" || { echo "NBD_DO_IT does not return"; return 1; }
	wait "$NBD_SESSION"
}

# nbd_exited PID: true if the process is gone, or a zombie without any other thread.
nbd_exited() {
	local stat fields
	{ read -r stat <"/proc/$1/stat"; } 2>/dev/null || return 0
	# Behind the name, which may have spaces, are the state and, 17 fields on, the number of threads.
	read -r -a fields <<<"${stat##*) }"
	[ "${fields[0]}" = Z ] && [ "${fields[17]}" -le 1 ]
}

# nbd_gone PID...: the same for each of these. Whether it is reaped is its parent's affair, and that may be bash.
nbd_gone() {
	local pid
	for pid; do nbd_exited "$pid" || return; done
}

# nbd_ioctl NAME [ARGUMENT]: one ioctl on the picked device; prints the error's name.
nbd_ioctl() { "$NBD_DIR/helper_nbd" ioctl "$NBD_DEV" "$@"; }

# nbd_uevents: write the picked device's uevents to NBD_TMP/uevents from now on, one a line.
nbd_uevents() {
	"$NBD_DIR/helper_nbd" uevents "nbd$NBD_INDEX" >"$NBD_TMP/uevents" &
	nbd_defer kill -9 $!
	wait_until 5 grep -q ready "$NBD_TMP/uevents"
}

# nbd_sockets: how many TCP and Unix sockets there are in the system.
nbd_sockets() { cat /proc/net/unix /proc/net/tcp /proc/net/tcp6 2>/dev/null | wc -l; }

# nbd_log_mark; nbd_log: what the kernel has said about the picked device since the mark.
nbd_log_mark() {
	NBD_LOG_MARK="nbd-selftest mark $RANDOM$RANDOM"
	echo "$NBD_LOG_MARK" >/dev/kmsg
}
nbd_log() {
	dmesg | sed "1,/$NBD_LOG_MARK/d" | grep -F "nbd$NBD_INDEX"
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
	case ${1:-} in
	ensure) nbd_ensure ;;
	*) echo "usage: $0 ensure" >&2; exit 1 ;;
	esac
fi
