#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# The kernel loads the module by itself, when a process asks for its netlink family, and when one opens a
# node with its major number.

. "$(dirname "$0")/test_common.sh"

modules=/lib/modules/$(uname -r)
node=/dev/nbd-selftest-node

# install_module: the module in the directory where "make install" puts it, beside the kernel's own. Over the
# system's directory lies one that has nothing else, for depmod needs long for all modules.
install_module() {
	local dir=$NBD_TMP/modules file
	kernels_own=$(modinfo -n nbd 2>/dev/null)
	installed=$kernels_own
	mkdir -p "$dir/kernel/drivers/block" || return
	for file in "$modules"/modules.{order,builtin,builtin.modinfo}; do
		[ ! -e "$file" ] || cp "$file" "$dir/" || return
	done
	if [ -n "$kernels_own" ]; then
		cp "$kernels_own" "$dir/kernel/drivers/block/" || return
		installed=$modules/kernel/drivers/block/${kernels_own##*/}
	fi
	if [ "$NBD_DRIVER" != c ]; then
		install -D -m 644 "$NBD_KO" "$dir/updates/nbd.ko" || return
		installed=$modules/updates/nbd.ko
	fi
	nbd_plain "$dir/${installed#"$modules"/}" >"$NBD_TMP/plain" || return
	id=$(build_id "$NBD_TMP/plain")
	mount --bind "$dir" "$modules" || return
	nbd_defer umount -l "$modules"
	depmod
}
finds() { is "what modprobe nbd loads" "$(modinfo -n nbd)" "$installed"; }
# An alias may contain a module's name with options.
stands_for() { is "module of $1" "$(modprobe -R "$1")" nbd; }

# build_id FILE: the note's 20 bytes, which follow this header.
build_id() {
	local offset
	offset=$(LC_ALL=C grep -m 1 -obUaP '\x04\0\0\0\x14\0\0\0\x03\0\0\0GNU\0' "$1" | sed 's/:.*//;q')
	[ -z "$offset" ] || od -An -v -tx1 -j $((offset + 16)) -N 20 "$1" | tr -d ' \n'
}
# loaded_itself: the module is loaded, and it is the one that was installed.
loaded_itself() {
	nbd_loaded || { echo "not loaded"; return 1; }
	[ -n "$id" ] && is "build ID" "$(build_id /sys/module/nbd/notes/.note.gnu.build-id)" "$id"
}
# gone: unload it, for the next one to have it loaded.
gone() { nbd_unload && nbd_not nbd_loaded; }

genl() { within 20 "$NBD_DIR/helper_genl" "$@"; }
connect() { genl connect >"$NBD_TMP/index" && wait_until 5 nbd_connected "$(<"$NBD_TMP/index")"; }
readable() { within 5 dd if="/dev/nbd$(<"$NBD_TMP/index")" of=/dev/null bs=4096 count=1 status=none; }
disconnect() { genl disconnect "$(<"$NBD_TMP/index")"; }
at_once() {
	local i pids=() failed=0
	for i in 1 2 3 4 5 6 7 8; do
		genl status >"$NBD_TMP/status.$i" 2>&1 &
		pids+=($!)
	done
	for i in "${pids[@]}"; do wait "$i" || failed=$((failed + 1)); done
	[ $failed = 0 ] || { echo "$failed of 8 failed"; cat "$NBD_TMP"/status.*; return 1; }
}

# number N: make a node for this number.
number() { rm -f "$node" && mknod "$node" b "${1%:*}" "${1#*:}"; }
opens() { exec 5<"$node"; }
# no_such_device: opening the node fails with ENXIO.
no_such_device() {
	local message
	message=$(LC_ALL=C dd if="$node" of=/dev/null count=0 2>&1) && return 1
	echo "$message"
	[[ $message == *"No such device or address"* ]]
}

# test_node NAME CMD...: a check if the kernel loads modules for nodes.
test_node() { if $by_node; then check "$@"; else ktap_test_skip "$1: $why"; fi; }

nbd_require modprobe depmod mknod grep od dd mount
[ "$(</proc/sys/kernel/modules_disabled)" = 0 ] || nbd_skip_all "no module can be loaded any more"
[ -n "$(</proc/sys/kernel/modprobe)" ] || nbd_skip_all "the kernel has no modprobe to call"
[ ! -e "$modules/updates/nbd.ko" ] || nbd_skip_all "$modules/updates/nbd.ko is there already"
why="the kernel has no CONFIG_BLOCK_LEGACY_AUTOLOAD"
by_node=false
if grep -q ' blk_request_module$' /proc/kallsyms; then by_node=true; fi
nbd_begin 24
gone || ktap_exit_fail_msg "the module cannot be unloaded"
nbd_defer rm -f "$node"

check "installed" install_module
nbd_defer nbd_unload
check "modprobe finds it before the kernel's own" finds
check "the alias for the netlink family" stands_for net-pf-16-proto-16-family-nbd
check "the alias for the major number" stands_for block-major-43-0
check "modprobe loads it by its name" modprobe nbd
check "that is the one that was installed" loaded_itself
dev=$(</sys/block/nbd5/dev)
check "unloaded" gone

check "a program asks for the netlink family" genl status
check "the family's module is loaded" loaded_itself
gone
check "a program connects a device" connect
check "the device's module is loaded" loaded_itself
check "the device can be read" readable
check "and disconnected" disconnect
check "and the module unloaded" gone
check "eight programs ask at once" at_once
check "the eight programs' module is loaded" loaded_itself
check "and unloaded" gone

number 43:0
test_node "opening a node of nbd0" opens
test_node "the node's module is loaded" loaded_itself
test_node "the node is the device: the module is in use" nbd_in_use
exec 5<&-
gone
number "$dev"
test_node "opening a node of nbd5" opens
exec 5<&-
test_node "the module of that node is loaded" loaded_itself
gone
# The last there is.
number 43:1048575
test_node "opening a node of no device" no_such_device
test_node "the module is loaded for that, too" loaded_itself
nbd_end
