#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# A server behind a network that loses, delays, reorders, damages and throttles what is sent, resets
# connections in the middle of a payload, and goes away: all data is right, or there is an error in time, and
# nothing is stuck.

. "$(dirname "$0")/test_common.sh"
. "$(dirname "$0")/test_io_common.sh"

nbd_require nbdkit nbd-client fio ip tc cmp
# On slow kernels, less of it.
if [ "$NBD_TIME_SCALE" -gt 1 ]; then
	SIZE=2M COUNTS=4
	nbd_begin 48
else
	SIZE=6M COUNTS="1 4"
	nbd_begin 64
fi

SERVER=nbd-server-$$ CLIENT=nbd-client-$$
HOST=192.0.2.1 ADDR=192.0.2.2 PORT=10809
TIMEOUT=3

server_ns() { ip netns exec "$SERVER" "$@"; }

# network: the server's namespace, and a pair of interfaces to it; network_end: take them away.
network() {
	ip netns add "$SERVER" &&
		ip link add nbd-host type veth peer name nbd-server netns "$SERVER" &&
		ip addr add $HOST/24 dev nbd-host && ip link set nbd-host up &&
		server_ns ip addr add $ADDR/24 dev nbd-server &&
		server_ns ip link set nbd-server up && server_ns ip link set lo up
}
network_end() {
	ip link del nbd-host 2>/dev/null
	ip netns del "$SERVER" 2>/dev/null
	wait_until 5 [ ! -e /sys/class/net/nbd-host ]
}

# both ARG...: have netem do this to what either side sends; clear: no more.
both() {
	clear
	tc qdisc add dev nbd-host root netem "$@" && server_ns tc qdisc add dev nbd-server root netem "$@"
}
clear() {
	tc qdisc del dev nbd-host root
	server_ns tc qdisc del dev nbd-server root
} 2>/dev/null

# serve: nbdkit with a file of random data, in the namespace.
serve() {
	rm -f "$NBD_TMP/nbdkit.pid"
	server_ns nbdkit -f -i $ADDR -p $PORT -P "$NBD_TMP/nbdkit.pid" file "$NBD_TMP/image" \
		>>"$NBD_TMP/nbdkit.log" 2>&1 &
	disown
	wait_until 10 [ -s "$NBD_TMP/nbdkit.pid" ] || io_failed nbdkit || return
	IO_PID=$(<"$NBD_TMP/nbdkit.pid")
	nbd_defer kill -9 "$IO_PID"
}

attach() { io_attach $ADDR $PORT "$NBD_DEV" "$@"; }

fio_run() {
	within 60 fio --filename="$NBD_DEV" --thread --output=/dev/null --name="$1" --size=$SIZE --ioengine=libaio \
		--iodepth=16 --direct=1 --bsrange=4k-256k --bs_unaligned=0 --blockalign=4k "${@:2}"
}
# What was written is read back by fio, and the server has what the device shows.
traffic() {
	fio_run traffic --rw=randwrite --verify=crc32c --do_verify=1 --verify_fatal=1 --verify_state_save=0 \
		--randseed="$RANDOM"
}
same() {
	within 60 dd if="$NBD_DEV" bs=256k iflag=direct status=none >"$NBD_TMP/copy" &&
		cmp "$NBD_TMP/copy" "$NBD_TMP/image"
}

# load: write, or read, until that fails.
load() { io_load 8 fio_run load --rw="$1" --time_based --runtime=50; }
failed() { io_loaded && [ "$(<"$NBD_TMP/load")" != 0 ]; }

# ended WHAT SECONDS: 3 tests: the load has ended with an error in time, and nothing is left of the session.
ended() {
	check "$1: an error in time" wait_until "$2" failed
	check "$1: no request is left, nobody is stuck" wait_until 2 eval "io_still && io_none_stuck"
	# The server that the client is to disconnect from may be gone.
	nbd_ioctl DISCONNECT >/dev/null 2>&1
	check "$1: the device is free" wait_until 5 io_gone
}

# arrived: what was on its way when a session ended, and is sent again, is with the server, or lost.
arrived() { [ -z "$(server_ns ss -Htn state established state close-wait)" ]; }

# recovers WHAT: 2 tests: with the network as it should be, the device works again.
recovers() {
	check "$1: it works again" eval "wait_until 20 arrived && attach -t $TIMEOUT && same"
	check "$1: it is detached" io_detach
}

[ ! -e /sys/class/net/nbd-host ] || nbd_skip_all "there is an interface nbd-host"
[ ! -e /proc/sys/kernel/modules_disabled ] || modprobe -qa veth sch_netem
nbd_defer network_end
network 2>"$NBD_TMP/why" || nbd_skip_all "no network namespaces or no veth: $(head -n 1 "$NBD_TMP/why")"
both delay 1ms 2>"$NBD_TMP/why" || nbd_skip_all "no netem (CONFIG_NET_SCH_NETEM): $(head -n 1 "$NBD_TMP/why")"
clear
nbd_pick

head -c $SIZE /dev/urandom >"$NBD_TMP/image"
serve

# A network that is bad, but there: TCP makes up for it.
while read -r name args; do
	for n in $COUNTS; do
		clear
		check "$name: attached, $n" attach -C "$n"
		# shellcheck disable=SC2086
		both $args || note "netem does not take '$args'"
		check "$name: write and verify, $n" traffic
		check "$name: the server has the same, $n" same
		clear
		check "$name: detached, $n" io_detach
	done
done <<'END'
loss loss 2%
reorder delay 5ms reorder 25% 50%
damage corrupt 1% duplicate 2%
narrow rate 24mbit delay 2ms limit 60
END

# The server stops reading until its window is closed, and goes on. It has little room, and the network is
# narrow, so that there is enough that does not fit.
# shellcheck disable=SC2016
windows_closed() {
	server_ns awk '$1 == "TcpExt:" && !n { for (n = NF; $n != "TCPToZeroWindowAdv" && n > 1; n--); next }
		$1 == "TcpExt:" { print $n }' /proc/net/netstat
}
writing() { [ "$(awk '{print $2}' "$NBD_SYS/inflight")" -gt 0 ]; }
closes_one_more() { [ "$(windows_closed)" -gt "$before" ]; }
room=$(server_ns cat /proc/sys/net/ipv4/tcp_rmem)
server_ns tee /proc/sys/net/ipv4/tcp_rmem <<<"4096 65536 131072" >/dev/null
check "zero window: attached" attach
both rate 16mbit limit 1000
before=$(windows_closed)
rm -f "$NBD_TMP/load"
{ traffic; echo $? >"$NBD_TMP/load"; } 2>"$NBD_TMP/fio" &
disown
check "zero window: there is I/O" wait_until 10 writing
kill -STOP "$IO_PID"
check "zero window: the server's window is closed" wait_until 10 closes_one_more
check "zero window: I/O waits" wait_until 10 eval "writing && [ ! -e '$NBD_TMP/load' ]"
kill -CONT "$IO_PID"
clear
check "zero window: everything is written and verified" wait_until 40 eval "[ \"\$(cat '$NBD_TMP/load' 2>/dev/null)\" = 0 ]"
check "zero window: the server has the same" same
check "zero window: detached" io_detach
server_ns tee /proc/sys/net/ipv4/tcp_rmem <<<"$room" >/dev/null

# A reset in the middle of a payload. While the network is narrow, the sockets are full.
reset() {
	# Without a way to destroy a socket the server's death does it: it has not read all that came.
	ss -K dst $ADDR >"$NBD_TMP/ss" 2>&1
	if [ "$(grep -c $ADDR "$NBD_TMP/ss")" -gt 0 ]; then
		note "sockets destroyed: $(grep -c $ADDR "$NBD_TMP/ss")"
	else
		kill -9 "$IO_PID"
	fi
}
for what in write read; do
	attach -t $TIMEOUT
	both rate 8mbit
	load $what
	sleep 0.3
	reset
	clear
	ended "reset, $what" 4
	! nbd_gone "$IO_PID" || serve
	recovers "reset, $what"
done

# Nothing arrives any more, in either direction: the timeout ends it.
attach -t $TIMEOUT
load write
both loss 100%
ended "blackout" $((3 * TIMEOUT))
clear
recovers "blackout"

# The way to the server is taken away under a live session; and with it, in the end, its namespace.
attach -t $TIMEOUT
load read
kill -9 "$IO_PID"
network_end
ended "namespace gone" $((3 * TIMEOUT))
check "a server again" eval "network && serve"

# A client in a namespace of its own, which is deleted under it: its socket goes on, and is the last of it.
client_network() {
	ip netns add "$CLIENT" && ip link set nbd-host netns "$CLIENT" &&
		ip -n "$CLIENT" addr add $HOST/24 dev nbd-host && ip -n "$CLIENT" link set nbd-host up
}
attach_in_client() {
	ip netns exec "$CLIENT" nbd-client $ADDR $PORT "$NBD_DEV" -t $TIMEOUT </dev/null >"$NBD_TMP/nbd-client.log" 2>&1 &&
		wait_until 5 nbd_connected
}
no_server_link() { ! server_ns ip link show nbd-server >/dev/null 2>&1; }
nbd_defer ip netns del "$CLIENT"
nbd_defer "$NBD_DIR/helper_genl" disconnect "$NBD_INDEX"
check "a client in a namespace of its own" eval "client_network && attach_in_client"
check "its namespace is deleted" ip netns del "$CLIENT"
check "the session goes on" same
check "it is disconnected" within 5 "$NBD_DIR/helper_genl" disconnect "$NBD_INDEX"
check "no socket holds the namespace" wait_until 10 no_server_link
check "nobody is stuck" wait_until 2 io_none_stuck
nbd_end
