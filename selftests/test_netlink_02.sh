#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# CONNECT and DISCONNECT while udev opens every device that it hears of.

. "$(dirname "$0")/test_common.sh"

UDEVD=
for i in /usr/lib/systemd/systemd-udevd /lib/systemd/systemd-udevd; do
	[ ! -x "$i" ] || UDEVD=$i
done
[ -n "$UDEVD" ] || nbd_skip_all "no systemd-udevd"
nbd_require udevadm
nbd_begin 7
nbd_pick

# udev_stop: only one that was not there before.
udev_stop() {
	udevadm settle -t 10
	udevadm control --exit
	wait_until 5 udev_gone
	rm -f /run/udev/control
}
udev_gone() { ! pidof systemd-udevd >/dev/null; }
udev_answers() { udevadm control --ping --timeout=5; }
if udev_gone; then
	"$UDEVD" --daemon >/dev/null 2>&1
	nbd_defer udev_stop
fi
turns() { within 40 "$NBD_DIR/helper_genl" turns "$@"; }

check "udev runs" wait_until 10 udev_answers
n=$(nbd_scaled_down 200)
check "$n turns of one device" turns "$NBD_INDEX" "$NBD_INDEX" "$n"
nbd_settle
free() { nbd_is_free "$NBD_INDEX" && [ "$(status "$NBD_INDEX")" = "$NBD_INDEX 0" ]; }
status() { "$NBD_DIR/helper_genl" status "$@"; }
check "it is free afterwards" wait_until 5 free
n=$(nbd_scaled_down 40)
check "$n turns of four new devices" turns 230 233 "$n"
# 1: DESTROY_ON_DISCONNECT
n=$(nbd_scaled_down 20)
check "$n turns of two that are destroyed" turns 234 235 "$n" 1
nbd_settle
all_gone() { [ ! -e /sys/block/nbd234 ] && [ ! -e /sys/block/nbd235 ]; }
check "these are gone afterwards" wait_until 5 all_gone
# Those that were new are not needed any more.
check "and the other ones, when they are destroyed" turns 230 233 4 1
nbd_end
