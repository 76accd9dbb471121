#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# What the tests of nbdctl share. A test sources test_common.sh and test_io_common.sh, then this, and calls keep_need
# before nbd_begin. NBD_CTL is the program; without it, one that is installed is taken.

# keep_need: skip everything without nbdctl.
keep_need() {
	[ -n "${NBD_CTL:-}" ] || NBD_CTL=$(command -v nbdctl)
	[ -x "$NBD_CTL" ] || nbd_skip_all "nbdctl is not there: ${NBD_CTL_MISSING:-it is not installed}"
}

# ctl ARG...: nbdctl, within 30 s.
ctl() { within 30 "$NBD_CTL" "$@"; }

# keep_says CODE WORDS ARG...: nbdctl ends with this exit status and says something with these words.
keep_says() {
	local code=$1 words=$2 status=0
	shift 2
	ctl "$@" >"$NBD_TMP/said" 2>&1 || status=$?
	[ $status = "$code" ] && grep -qF -- "$words" "$NBD_TMP/said" && return
	echo "status $status, not $code, or no word of '$words' in:"
	cat "$NBD_TMP/said"
	return 1
}

# keep_json EXPRESSION ARG...: what an expression in Python makes of the JSON d, or of its only device v.
keep_json() {
	local expression=$1
	shift
	ctl "$@" --json | python3 -c '
import json, sys
d = json.load(sys.stdin)
v = d["devices"][0] if d["devices"] else None
print(eval(sys.argv[1]))' "$expression"
}
keep_status() { keep_json "$1" status "$NBD_DEV"; }
# status EXPRESSION WANTED: that is what it makes of the status of the device.
status() { is "$1" "$(keep_status "$1")" "$2"; }

# keep_begin ARG...: nbdctl keep in the background, with these options, a URI and the device. Sets KEEP_PID.
keep_begin() {
	# What is said is appended, for tests empty the file.
	: >"$NBD_TMP/keep.log"
	"$NBD_CTL" keep --retry-max 1 --connect-timeout 5 "$@" "$NBD_DEV" </dev/null >>"$NBD_TMP/keep.log" 2>&1 &
	KEEP_PID=$!
	nbd_defer kill -9 "$KEEP_PID"
}
# keep_start ARG...: the same, until it says that it is connected or has found a session.
keep_start() {
	keep_begin "$@"
	keep_until 15 keep_ready
}
# keep_until SECONDS CMD...: wait_until, and what was said if that is in vain.
keep_until() { wait_until "$@" || { cat "$NBD_TMP/keep.log"; return 1; }; }
keep_ready() { keep_logged "connected to"; }
keep_logged() { grep -qF -- "$1" "$NBD_TMP/keep.log"; }
# keep_log WORDS: it is said in time.
keep_log() { keep_until 20 keep_logged "$1"; }

# keep_kill SIGNAL: end nbdctl keep.
keep_kill() {
	disown "$KEEP_PID"
	kill -"$1" "$KEEP_PID"
	wait_until 5 nbd_gone "$KEEP_PID" || return
	! nbd_is_free "$NBD_INDEX" || { echo "the device is not connected any more"; return 1; }
}
# keep_ends: it ends by itself, without an error.
keep_ends() {
	keep_until 10 nbd_exited "$KEEP_PID" || return
	wait "$KEEP_PID"
}

# keep_load SEED: verified I/O in the background, until it is told to end, or an error.
keep_load() {
	local before seconds=$(((300 + ${NBD_KEEP_SECONDS:-0}) * NBD_TIME_SCALE))
	before=$(io_requests)
	fio --filename="$NBD_DEV" --thread --output="$NBD_TMP/fio.log" --name=load --rw=randrw --bs=16k --size=8m \
		--ioengine=libaio --iodepth=16 --direct=1 --time_based --runtime=$seconds \
		--verify=crc32c --verify_fatal=1 --verify_state_save=0 --verify_backlog=64 --serialize_overlap=1 \
		--randseed="$1" </dev/null &
	IO_JOB=$!
	nbd_defer kill -9 $IO_JOB
	# fio takes its time to start.
	wait_until 30 io_more "$before"
}
# keep_flows: requests are completed.
keep_flows() {
	io_job_runs || { echo "I/O has failed"; cat "$NBD_TMP/fio.log"; return 1; }
	wait_until 20 io_more "$(io_requests)" || { echo "no I/O"; cat "$NBD_TMP/keep.log"; return 1; }
}
# keep_back CMD...: the server is missed, CMD starts it again, and I/O goes on.
keep_back() {
	keep_log "cannot connect again" || return
	: >"$NBD_TMP/keep.log"
	"$@" && keep_log "connected again" && keep_flows
}
# keep_load_ends: fio has seen neither an error nor a wrong byte, and ends when it is told to.
keep_load_ends() {
	io_job_runs || { echo "I/O has failed"; cat "$NBD_TMP/fio.log"; return 1; }
	io_job_ends && ! grep -E "verify: bad|err= *[1-9]|error=" "$NBD_TMP/fio.log"
}
