#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# nbdctl keep with the servers that there are, over TCP and Unix sockets, under verified I/O: each is killed, and told
# to end, and started again.

. "$(dirname "$0")/test_common.sh"
. "$(dirname "$0")/test_io_common.sh"
. "$(dirname "$0")/test_keep_common.sh"

nbd_require fio
keep_need
nbd_begin 24
nbd_pick
nbd_defer "$NBD_DIR/helper_genl" disconnect "$NBD_INDEX"

disk=$NBD_TMP/disk
log=$NBD_TMP/server.log
: "${NBD_SERVER:=nbd-server}"

# In the foreground, and with its process in server.
qemu() { qemu-nbd -f raw -k "$NBD_TMP/qemu" -t -e 8 --pid-file "$NBD_TMP/pid" "$disk" </dev/null >>"$log" 2>&1 & }
kit() { nbdkit -f -i 127.0.0.1 -p "$port" -P "$NBD_TMP/pid" file "$disk" </dev/null >>"$log" 2>&1 & }
nbd() {
	printf '[generic]\nunixsock = %s\nallowlist = false\n[disk]\nexportname = %s\nflush = true\nfua = true\n' \
		"$NBD_TMP/nbd" "$disk" >"$NBD_TMP/conf"
	"$NBD_SERVER" -d -C "$NBD_TMP/conf" -p "$NBD_TMP/pid" </dev/null >>"$log" 2>&1 &
}

start() {
	rm -f "$NBD_TMP/pid" "$NBD_TMP/qemu" "$NBD_TMP/nbd"
	$1
	server=$!
	disown
	nbd_defer kill -9 "$server"
	wait_until 10 answers "$1" || { cat "$log"; return 1; }
}
answers() {
	case $1 in
	qemu) [ -S "$NBD_TMP/qemu" ] ;;
	kit) [ -s "$NBD_TMP/pid" ] ;;
	nbd) [ -S "$NBD_TMP/nbd" ] ;;
	esac
}
# Servers that serve each client in a process of its own are not gone with the first process.
stop() {
	local group
	# ps pads it.
	group=$(ps -o pgid= -p "$server") || return
	pkill -"$1" -g $((group)) -x "$2"
}
restart() {
	stop "$1" "$2"
	wait_until 10 nbd_gone "$server" || { echo "the server does not end"; return 1; }
	keep_back start "$3"
}

# rounds SERVER PROGRAM URI: 8 tests.
rounds() {
	local names=("kept" "verified I/O" "killed" "killed again" "told to end" "told to end again" "no error and no wrong byte"
		"disconnect") name
	if ! command -v "$2" >/dev/null; then
		for name in "${names[@]}"; do ktap_test_skip "$1: $name: $2 is not installed"; done
		return
	fi
	truncate -s 0 "$disk"
	truncate -s 16M "$disk"
	start "$1"
	check "$1: kept" keep_start -D 120 -b "$1" "$3"
	check "$1: verified I/O" keep_load 7
	check "$1: killed" restart KILL "$(basename "$2")" "$1"
	check "$1: killed again" restart KILL "$(basename "$2")" "$1"
	check "$1: told to end" restart TERM "$(basename "$2")" "$1"
	check "$1: told to end again" restart TERM "$(basename "$2")" "$1"
	check "$1: no error and no wrong byte" keep_load_ends
	check "$1: disconnect" ctl disconnect "$NBD_DEV"
	keep_ends || note "the keeper stays"
	stop KILL "$(basename "$2")"
	wait_until 5 nbd_is_free "$NBD_INDEX"
}

port=$((20000 + RANDOM % 10000))
rounds qemu qemu-nbd "nbd+unix:///?socket=$NBD_TMP/qemu"
rounds kit nbdkit "nbd://127.0.0.1:$port/"
rounds nbd "$NBD_SERVER" "nbd+unix:///disk?socket=$NBD_TMP/nbd"
nbd_end
