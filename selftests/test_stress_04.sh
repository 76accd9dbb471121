#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# The module is loaded and unloaded while programs connect, disconnect and open its devices.

. "$(dirname "$0")/test_common.sh"

nbd_begin 5
SECONDS_EACH=${NBD_STRESS_SECONDS:-20}

# Or a request for the family would load the distribution's module.
modprobe=$(</proc/sys/kernel/modprobe)
restore() { echo "$modprobe" >/proc/sys/kernel/modprobe; }
nbd_defer nbd_unload
nbd_defer restore
echo /bin/false >/proc/sys/kernel/modprobe

# connects FIRST LAST FLAGS: as often as it can, until NBD_TMP/stop is there.
connects() {
	while [ ! -e "$NBD_TMP/stop" ]; do
		within 20 "$NBD_DIR/helper_genl" turns "$1" "$2" 2 "$3"
		# Another one has a chance.
		sleep 0.2
	done >"$NBD_TMP/connects.$1" 2>&1
}
opens() {
	while [ ! -e "$NBD_TMP/stop" ]; do
		# shellcheck disable=SC2188
		for i in /dev/nbd[0-7]; do [ ! -b "$i" ] || <"$i"; done 2>/dev/null
	done
}
try_load() { insmod "$ko" nbds_max=4 2>/dev/null; }

check "unload" nbd_unload
# Just as nbd_load would, but not from what may be a slow file system.
ko=$NBD_KO
[ "$NBD_DRIVER" != c ] || ko=$(modinfo -n nbd)
nbd_plain "$ko" >"$NBD_TMP/nbd.ko"
ko=$NBD_TMP/nbd.ko
connects 0 1 0 &
jobs=($!)
connects 2 3 2 &
jobs+=($!)
connects 4 5 1 &
jobs+=($!)
connects 6 7 3 &
jobs+=($!)
opens &
jobs+=($!)
for i in "${jobs[@]}"; do nbd_defer kill -9 "$i"; done
# They take all that they can get.
renice -n -15 -p $$ >/dev/null

loads=0 unloads=0 refused=0
# On a slow kernel a single load takes seconds.
end=$((SECONDS + SECONDS_EACH)) longest=$((SECONDS + SECONDS_EACH * NBD_TIME_SCALE))
while [ $SECONDS -lt $end ] || { [ $unloads -lt 2 ] && [ $SECONDS -lt $longest ]; }; do
	try_load && loads=$((loads + 1))
	sleep 0.0$((RANDOM % 10))
	if nbd_try_unload; then unloads=$((unloads + 1)); else refused=$((refused + 1)); fi
done
touch "$NBD_TMP/stop"
over() { local j; for j in "${jobs[@]}"; do nbd_exited "$j" || return 1; done; }
check "everybody comes to an end" wait_until 25 over
note "$loads loads, $unloads unloads, $refused refusals"
check "it was unloaded under load" [ $unloads -ge 2 ]
idle() {
	local i
	nbd_loaded || try_load
	for i in $("$NBD_DIR/helper_genl" status | sed -n 's/ 1$//p'); do
		"$NBD_DIR/helper_genl" disconnect "$i" || return
	done
}
check "what is left can be disconnected" wait_until 5 idle
check "and unloaded" nbd_unload
nbd_end
