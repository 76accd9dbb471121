# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# For tests that run nbd-client in the foreground, with a server of their own: $NBD_DEV and $NBD_INDEX are the
# device.

# serve [NBDKIT-ARGUMENT...]: start a server on $NBD_TMP/sock.
serve() {
	rm -f "$NBD_TMP/pid" "$NBD_TMP/sock"
	nbdkit -f -U "$NBD_TMP/sock" -P "$NBD_TMP/pid" "$@" </dev/null >"$NBD_TMP/log" 2>&1 &
	server=$!
	wait_until 5 [ -s "$NBD_TMP/pid" ] || { sed 's/^/# /' "$NBD_TMP/log"; return 1; }
}
stop_server() { kill -9 "$(<"$NBD_TMP/pid")"; }
# Also for the client, which has ended.
end_server() {
	kill -9 "$server"
	wait "$server" "$client" 2>/dev/null
}

# The descriptors of the device.
holders() { find /proc/[0-9]*/fd -lname "$NBD_DEV" 2>/dev/null; }
closed() { [ -z "$(holders)" ]; }

# The second process of nbd-client's opens the device as soon as it is connected, and waits for ever, with the
# device open, if it misses that moment.
ready() {
	local children child
	nbd_connected "$NBD_INDEX" || return
	read -r -a children <"/proc/$client/task/$client/children"
	for child in "${children[@]}"; do
		[ ! -e "/proc/$child/exe" ] || return 1
	done
}

# connect [NBD-CLIENT-ARGUMENT...]
connect() {
	nbd-client -L -nofork -unix "$NBD_TMP/sock" "$NBD_DEV" "$@" </dev/null >"$NBD_TMP/client" 2>&1 &
	client=$!
	wait_until 5 ready || { sed 's/^/# /' "$NBD_TMP/client" "$NBD_TMP/log"; return 1; }
}

disconnect() { within 10 nbd-client -L -d "$NBD_DEV" </dev/null >"$NBD_TMP/client" 2>&1; }
