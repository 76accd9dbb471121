#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# nbdctl keep for a root file system: it is started as nbd-client's script in an initramfs does it, has the name by which
# systemd spares it, and follows the system when /proc, /sys and /run are moved away from it.

. "$(dirname "$0")/test_common.sh"
. "$(dirname "$0")/test_io_common.sh"
. "$(dirname "$0")/test_keep_common.sh"

nbd_require nbdkit fio python3 unshare
keep_need
: "${NBD_CTL_INITRAMFS:=/usr/lib/nbdctl/initramfs-client}"
[ -x "$NBD_CTL_INITRAMFS" ] || nbd_skip_all "there is no $NBD_CTL_INITRAMFS"
nbd_begin 14
nbd_pick
nbd_defer "$NBD_DIR/helper_genl" disconnect "$NBD_INDEX"

disk=$NBD_TMP/disk
root=$NBD_TMP/root
mkdir "$root"
truncate -s 16M "$disk"
io_server_tcp file "$disk"
port=$IO_PORT
# It says all of this to the kernel log.
nbd_log_mark
said() { nbd_log | grep -qF -- "$1"; }
log() { wait_until 20 said "$1" || { nbd_log; return 1; }; }
# The same port again.
serve() {
	nbdkit -f -i 127.0.0.1 -p "$port" -P "$NBD_TMP/pid" file "$disk" >>"$NBD_TMP/nbdkit.log" 2>&1 &
	IO_PID=$!
	disown
	nbd_defer kill -9 $IO_PID
	wait_until 10 [ -s "$NBD_TMP/pid" ]
}
restart() {
	kill -9 "$IO_PID"
	rm -f "$NBD_TMP/pid"
	log "cannot connect again" || return
	nbd_log_mark
	serve && log "connected again" && keep_flows
}

# An initramfs of its own mounts, which it loses when it has started the client.
boot() {
	# shellcheck disable=SC2016
	within 60 unshare --mount --propagation private bash -ec '
		root=$1 client=$2; shift 2
		mount -t tmpfs tmpfs "$root"
		for d in /*; do
			[ -d "$d" ] && [ ! -L "$d" ] || { cp -a "$d" "$root/"; continue; }
			mkdir "$root$d"
			mount --rbind "$d" "$root$d"
		done
		chroot "$root" "$client" "$@"
		umount -l "$root/proc" "$root/sys" "$root/run"' boot "$root" "$NBD_CTL_INITRAMFS" "$@"
}
keeper() { keep_status 'v["keeper_pid"]'; }
export NBD_CTL
check "the client returns" boot 127.0.0.1 -N root "$port" "$NBD_DEV" -swap -persist -systemd-mark -b 4096
check "the device is connected" nbd_connected
check "with its block size" is blocks "$(cat "$NBD_SYS/queue/logical_block_size")" 4096
KEEP_PID=$(keeper)
nbd_defer kill -9 "$KEEP_PID"
check "somebody keeps it" kill -0 "$KEEP_PID"
check "whom systemd spares" is name "$(head -c 1 "/proc/$KEEP_PID/cmdline")" @
check "all of its memory is locked" nbd_not grep -qE '^VmLck:[[:space:]]+0 kB' "/proc/$KEEP_PID/status"
check "it follows to the root" wait_until 5 [ "/proc/$KEEP_PID/root/" -ef / ]
check "the server" status 'v["uri"]' "nbd://127.0.0.1:$port/root"
check "verified I/O" keep_load 3
check "the server is killed and comes back" restart
check "once more" restart
check "status knows" status 'v["connections"]["missing"]' 0
check "no error and no wrong byte" keep_load_ends
check "disconnect" ctl disconnect "$NBD_DEV"
nbd_end
