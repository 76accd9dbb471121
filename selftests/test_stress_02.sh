#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Four devices at once: verified I/O on all of them, then all are disconnected in the middle of
# I/O, several times.

. "$(dirname "$0")/test_common.sh"
. "$(dirname "$0")/test_io_common.sh"

nbd_require nbdkit nbd-client fio
nbd_begin 5

devs=() idx=() clients=() pids=()
for i in 0 1 2 3; do
	nbd_pick
	devs[i]=$NBD_DEV idx[i]=$NBD_INDEX
done

attach_all() {
	for i in 0 1 2 3; do
		NBD_DEV=${devs[i]} NBD_INDEX=${idx[i]}
		io_server "sock$i" memory 16M || return 1
		pids[i]=$IO_PID
		io_attach_unix -b 4096 -C $((i % 2 * 3 + 1)) || return 1
		clients[i]=$IO_CLIENT
	done
}

verify_all() {
	local args=()
	for i in 0 1 2 3; do
		args+=(--name="dev$i" --filename="${devs[i]}")
	done
	within 60 fio --thread --output=/dev/null \
		--direct=1 --ioengine=libaio --iodepth=8 --rw=randwrite \
		--bs=16k --size=2m --verify=crc32c --verify_fatal=1 --verify_state_save=0 \
		"${args[@]}"
}

# I/O for as long as there is a device; its failure at the end is no wonder.
load() {
	local io=(bs=256k count=4 status=none)
	while dd if="$1" of=/dev/null iflag=direct "${io[@]}"; do
		: >"$NBD_TMP/load.$2"
		dd if=/dev/zero of="$1" oflag=direct conv=notrunc "${io[@]}" || break
	done 2>/dev/null
}
all_loaded() {
	local d
	for d in 0 1 2 3; do [ -e "$NBD_TMP/load.$d" ] || return 1; done
}
all_free() {
	local d
	for d in "${idx[@]}"; do nbd_is_free "$d" || return 1; done
}

attach_all
check "verified I/O on four devices" verify_all
stuck=0 kept=0 bad=0
for round in 1 2; do
	loads=()
	rm -f "$NBD_TMP"/load.*
	for i in 0 1 2 3; do
		load "${devs[i]}" $i &
		loads[i]=$!
		disown
		nbd_defer kill -9 $!
	done
	wait_until 10 all_loaded || bad=$((bad + 1))
	for i in 0 1 2 3; do
		case $(((i + round) % 4)) in
		0) within 5 nbd-client -L -d "${devs[i]}" >/dev/null 2>&1 ;;
		1) kill -9 "${pids[i]}" ;;
		2) kill -TERM "${clients[i]}" ;;
		3) kill -9 "${clients[i]}" ;;
		esac &
		disown
	done
	wait_until 5 nbd_gone "${clients[@]}" ||
		{ stuck=$((stuck + 1)); note "round $round: a client is stuck"; }
	wait_until 5 nbd_gone "${loads[@]}" ||
		{ stuck=$((stuck + 1)); note "round $round: I/O is stuck"; }
	wait_until 2 all_free || { kept=$((kept + 1)); note "round $round: a device is not free"; }
	[ $((stuck + kept)) = 0 ] || break
	kill -9 "${pids[@]}" 2>/dev/null
	attach_all || { bad=$((bad + 1)); break; }
done
check "nobody is stuck" is stuck $stuck 0
check "all devices become free" is kept $kept 0
check "all can be attached again" is failures $bad 0
check "and work" verify_all
nbd_end
