#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# nbdctl keep with the servers that there are, over TCP and Unix sockets, with one and with four connections, under
# verified I/O: each is killed, and told to end, and started again, and another one takes over while both run.

. "$(dirname "$0")/test_common.sh"
. "$(dirname "$0")/test_io_common.sh"
. "$(dirname "$0")/test_keep_common.sh"

nbd_require fio nbdinfo pgrep python3
keep_need
nbd_begin 48
nbd_pick
nbd_defer "$NBD_DIR/helper_genl" disconnect "$NBD_INDEX"

disk=$NBD_TMP/disk
log=$NBD_TMP/server.log
: "${NBD_SERVER:=nbd-server}"
port=$((20000 + RANDOM % 10000))

# Each server has two addresses, 0 and 1, and serves the same file at both, in the foreground.
qemu() {
	exec qemu-nbd --image-opts "driver=file,filename=$disk,locking=off" -k "$NBD_TMP/qemu.$1" -t -e 8 \
		--pid-file "$NBD_TMP/qemu.pid.$1"
}
kit() { exec nbdkit -f -i 127.0.0.1 -p $((port + $1)) -P "$NBD_TMP/kit.pid.$1" file "$disk"; }
nbd() {
	printf '[generic]\nunixsock = %s\nallowlist = false\n[disk]\nexportname = %s\nflush = true\nfua = true\n' \
		"$NBD_TMP/nbd.$1" "$disk" >"$NBD_TMP/conf.$1"
	exec "$NBD_SERVER" -n -C "$NBD_TMP/conf.$1" -p "$NBD_TMP/nbd.pid.$1"
}
uri() {
	case $1 in
	qemu) echo "nbd+unix:///?socket=$NBD_TMP/qemu.$2" ;;
	kit) echo "nbd://127.0.0.1:$((port + $2))/" ;;
	nbd) echo "nbd+unix:///disk?socket=$NBD_TMP/nbd.$2" ;;
	esac
}

# start SERVER ADDRESS: sets server to its process.
start() {
	rm -f "$NBD_TMP/$1.pid.$2" "$NBD_TMP/$1.$2"
	"$1" "$2" </dev/null >>"$log" 2>&1 &
	server=$!
	disown
	nbd_defer kill -9 "$server"
	wait_until 60 answers "$1" "$2" || { cat "$log"; return 1; }
}
# nbd-server looks for a prime number for TLS when it has made its socket, and answers after that.
answers() {
	case $1 in
	qemu) [ -S "$NBD_TMP/qemu.$2" ] ;;
	kit) [ -s "$NBD_TMP/kit.pid.$2" ] ;;
	nbd) [ -S "$NBD_TMP/nbd.$2" ] && within 60 nbdinfo --can connect "$(uri nbd "$2")" 2>/dev/null ;;
	esac
}
# stop SIGNAL PROCESS: a server may serve each client in a process of its own.
stop() {
	local clients
	mapfile -t clients < <(pgrep -P "$2")
	kill -"$1" "$2" "${clients[@]}"
	wait_until 10 nbd_gone "$2" "${clients[@]}" || { echo "the server does not end"; return 1; }
}
restart() {
	stop "$1" "$server" && keep_back start "$2" 0
}
# moves SERVER: the one at the other address takes over, and this one ends.
moves() {
	local old=$server
	: >"$NBD_TMP/keep.log"
	start "$1" 1 && ctl replace "$NBD_DEV" "$(uri "$1" 1)" && keep_flows && stop TERM "$old" || return
	keep_flows && nbd_not keep_logged lost
}

# rounds SERVER PROGRAM CONNECTIONS: 8 tests.
rounds() {
	local name="$1, $3" names=("kept" "with so many connections" "verified I/O" "killed" "told to end"
		"another one takes over" "no error and no wrong byte" "disconnect") missing
	if ! command -v "$2" >/dev/null; then
		for missing in "${names[@]}"; do ktap_test_skip "$name: $missing: $2 is not installed"; done
		return
	fi
	truncate -s 0 "$disk"
	truncate -s 16M "$disk"
	start "$1" 0
	check "$name: kept" keep_start -n "$3" -D 120 -b "$1" "$(uri "$1" 0)"
	check "$name: with so many connections" status '(v["connections"]["total"], v["connections"]["missing"])' "($3, 0)"
	check "$name: verified I/O" keep_load 7
	check "$name: killed" restart KILL "$1"
	check "$name: told to end" restart TERM "$1"
	if [ "$(keep_status 'v["state"] is not None')" = True ]; then
		check "$name: another one takes over" moves "$1"
	else
		ktap_test_skip "$name: another one takes over: the driver cannot change connections"
	fi
	check "$name: no error and no wrong byte" keep_load_ends
	check "$name: disconnect" ctl disconnect "$NBD_DEV"
	keep_ends || note "the keeper stays"
	stop KILL "$server"
	wait_until 5 nbd_is_free "$NBD_INDEX"
}

for n in 1 4; do
	rounds qemu qemu-nbd $n
	rounds kit nbdkit $n
	rounds nbd "$NBD_SERVER" $n
done
nbd_end
