#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# The same over TCP with four connections, which all carry requests if there are CPUs for them.

. "$(dirname "$0")/test_common.sh"
. "$(dirname "$0")/test_io_common.sh"

nbd_require nbdkit nbd-client fio
nbd_begin 10
nbd_pick

truncate -s "$IO_SIZE" "$NBD_TMP/disk"
start() {
	io_server_tcp --filter=log file "$NBD_TMP/disk" logfile="$NBD_TMP/log" &&
		io_attach_tcp -b 4096 -C 4
}
start
check "attach" nbd_connected

conns() { grep -o 'connection=[0-9]* ' | sort -u | wc -l; }
check "four connections" is connections "$(conns <"$NBD_TMP/log")" 4
io_rounds "$NBD_TMP/disk" "TCP, 4 connections"

# Write and read requests on each, also where there are fewer CPUs than connections.
busy=$(grep -E ' (Read|Write) ' "$NBD_TMP/log" | conns)
note "requests on $busy connections"
check "requests on more than one connection" [ "$busy" -gt 1 ]
check "detach" io_detach
nbd_end
