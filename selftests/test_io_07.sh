#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Sends that stop half way: a slow reader, small socket buffers and a storm of signals at the
# writers.

. "$(dirname "$0")/test_common.sh"
. "$(dirname "$0")/test_io_common.sh"

nbd_require nbdkit nbd-client "$NBD_DIR/helper_storm"
nbd_begin 9
nbd_pick

old=$(</proc/sys/net/core/wmem_default)
nbd_defer sysctl -q -w "net.core.wmem_default=$old"
oldtcp=$(</proc/sys/net/ipv4/tcp_wmem)
nbd_defer sysctl -q -w "net.ipv4.tcp_wmem=$oldtcp"

storm() { within 60 "$NBD_DIR/helper_storm" "$NBD_DEV" "$@"; }
# One thread at the server, and a pause before each write.
slow=(-t 1 --filter=delay memory 64M delay-write=10ms)

for kind in unix tcp; do
	sysctl -q -w net.core.wmem_default=4608 net.ipv4.tcp_wmem="4096 4608 4608"
	if [ $kind = unix ]; then
		start() { io_server sock "${slow[@]}" && io_attach_unix -b 4096; }
	else
		start() { io_server_tcp "${slow[@]}" && io_attach_tcp -b 4096; }
	fi
	start
	sysctl -q -w "net.core.wmem_default=$old" net.ipv4.tcp_wmem="$oldtcp"
	check "attach, $kind" nbd_connected
	# Without a scheduler the writers themselves do the sending.
	echo none >"$NBD_SYS/queue/scheduler"
	check "1 MiB requests, $kind" storm 1024 4 8
	check "12 KiB requests, $kind" storm 12 16 16
	check "detach, $kind" io_detach
done

start() { io_server_tcp -t 1 --filter=rate memory 64M rate=80M && io_attach_tcp -b 4096; }
start
echo none >"$NBD_SYS/queue/scheduler"
check "a server with limited speed" storm 1024 2 8
nbd_end
