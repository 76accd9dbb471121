#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# The netlink specification: the kernel's own tools drive the driver with it, and it says what the
# kernel says.

. "$(dirname "$0")/test_common.sh"

nbd_require python3
# Beside the test when it was staged, else in the kernel tree.
YNL=$NBD_DIR/ynl
SPEC=$YNL/Documentation/netlink/specs/nbd.yaml
if [ ! -d "$YNL" ]; then
	YNL=$NBD_DIR/../../../net/ynl
	SPEC=$NBD_DIR/../../../../Documentation/netlink/specs/nbd.yaml
fi
[ -r "$SPEC" ] || nbd_skip_all "no nbd.yaml"
[ -r "$YNL/pyynl/cli.py" ] || nbd_skip_all "no pyynl"
export PYTHONDONTWRITEBYTECODE=1
python3 -c 'import yaml' 2>/dev/null || nbd_skip_all "no yaml for Python"

TESTS=(
	"the specification is understood"
	"the kernel has the specification's attributes"
	"connect with sockets as nested attributes"
	"status of the device"
	"status of all devices"
	"the device works"
	"the flags arrived"
	"the backend identifier arrived"
	"status with the session"
	"reconfigure"
	"a wrong backend is refused"
	"a missing attribute has its name"
	"link-dead is announced"
	"reconfigure with a new socket"
	"the device works again"
	"a connection is replaced"
	"disconnect"
	"link-up and session-end are announced"
	"disconnect of nothing"
)
nbd_begin $((${#TESTS[@]} + 2))
nbd_pick

# Starting Python takes seconds in a slow machine, so that one process does all of this. It prints
# "ok NAME" or "not ok NAME" with the reason before.
cat >"$NBD_TMP/spec.py" <<'END'
import errno
import os
import socket
import struct
import sys
import threading

ynl_path, spec, index = sys.argv[1], sys.argv[2], int(sys.argv[3])
sys.path.insert(0, ynl_path)
from pyynl.lib import YnlFamily, NlError

SIZE = 1 << 20


def test(name, *conditions):
    for c in conditions:
        if c is not True:
            print(f"# {c}")
    good = all(c is True for c in conditions)
    print("ok" if good else "not ok", name, flush=True)


def equal(got, wanted):
    return True if got == wanted else f"{got!r} is not {wanted!r}"


def serve(s):
    def get(n):
        b = b""
        while len(b) < n:
            more = s.recv(n - len(b))
            if not more:
                raise EOFError
            b += more
        return b
    try:
        while True:
            _, kind, cookie, offset, length = struct.unpack(">IIQQI", get(28))
            if kind & 0xffff == 2:
                break
            if kind & 0xffff == 1:
                get(length)
            reply = struct.pack(">IIQ", 0x67446698, 0, cookie)
            s.sendall(reply + (b"N" * length if kind & 0xffff == 0 else b""))
    except (EOFError, OSError):
        pass
    s.close()


def server():
    ours, theirs = socket.socketpair()
    threading.Thread(target=serve, args=(theirs,), daemon=True).start()
    return ours, theirs


def sysfs(name):
    with open(f"/sys/block/nbd{index}/{name}", encoding="ascii") as f:
        return f.read().strip()


def read():
    fd = os.open(f"/dev/nbd{index}", os.O_RDONLY)
    try:
        return os.pread(fd, 4096, 8192)
    except OSError as e:
        return e
    finally:
        os.close(fd)


def connected():
    items = ynl.do("status", {"index": index})["device-list"].get("item", [])
    return [(i["index"], i["connected"]) for i in items]


ynl = YnlFamily(spec, schema="")
test("the specification is understood", True)
policy = ynl.get_policy("connect", "do").to_dict()
missing = [a for a in ynl.attr_sets["nbd"] if a not in policy]
test("the kernel has the specification's attributes", equal(missing, []))

ynl.ntf_subscribe("nbd_mc_group")
ours, theirs = server()
reply = ynl.do("connect", {
    "index": index, "size-bytes": SIZE, "block-size-bytes": 4096, "timeout": 30,
    "server-flags": ["has-flags", "read-only", "send-flush"], "backend-identifier": "the spec",
    "dead-conn-timeout": 10, "client-flags": [],
    "sockets": {"item": [{"fd": ours.fileno()}]}})
ours.close()
test("connect with sockets as nested attributes", equal(reply, {"index": index}))
test("status of the device", equal(connected(), [(index, 1)]))
listed = ynl.do("status", {})["device-list"]["item"]
test("status of all devices", equal({"index": index, "connected": 1} in listed, True),
     equal(len(listed) >= 64, True))
test("the device works", equal(read(), b"N" * 4096))
test("the flags arrived", equal(sysfs("ro"), "1"), equal(sysfs("queue/write_cache"), "write back"),
     equal(sysfs("size"), str(SIZE // 512)), equal(sysfs("queue/logical_block_size"), "4096"))
test("the backend identifier arrived", equal(sysfs("backend"), "the spec"))


def status():
    return ynl.do("status", {"index": index, "first-connection": 0})


def connection(seen):
    return seen.get("session", {}).get("connection", [{}])[0]


# The range is first, for zip() takes one more from what is before the one that ends.
def hear(n):
    return [(e["name"], e["msg"]) for _, e in zip(range(n), ynl.poll_ntf(duration=3))]


seen = status()
session = seen.get("session", {})
test("status with the session", equal(seen.get("size-bytes"), SIZE),
     equal(seen.get("dead-conn-timeout"), 10), equal(seen.get("backend-identifier"), "the spec"),
     equal([session.get(a) for a in ("state", "origin", "connections")], ["live", "netlink", 1]),
     equal([connection(seen).get(a) for a in ("index", "state", "peer-address")],
           [0, "open", "unnamed"]))
ynl.do("reconfigure", {"index": index, "size-bytes": SIZE * 2, "backend-identifier": "the spec"})
test("reconfigure", equal(sysfs("size"), str(SIZE * 2 // 512)))
try:
    ynl.do("reconfigure", {"index": index, "size-bytes": SIZE, "backend-identifier": "the speck"})
    test("a wrong backend is refused", "no error")
except NlError as e:
    test("a wrong backend is refused", equal(e.error, errno.EINVAL),
         equal(sysfs("size"), str(SIZE * 2 // 512)))
try:
    ynl.do("connect", {"index": index + 1000, "size-bytes": SIZE})
    test("a missing attribute has its name", "no error")
except NlError as e:
    ext = (e.nl_msg.extack or {}).get("miss-type")
    test("a missing attribute has its name", equal(e.error, errno.EINVAL), equal(ext, "sockets"))
theirs.shutdown(socket.SHUT_RDWR)
test("link-dead is announced", equal(hear(1), [("link-dead", {"index": index})]))
ours, theirs = server()
ynl.do("reconfigure", {"index": index, "backend-identifier": "the spec",
                       "sockets": {"item": [{"fd": ours.fileno()}]}})
ours.close()
test("reconfigure with a new socket", equal(connected(), [(index, 1)]))
test("the device works again", equal(read(), b"N" * 4096))
before = connection(status()).get("generation", 0)
ours, theirs = server()
ynl.do("reconfigure", {"index": index, "backend-identifier": "the spec",
                       "sockets": {"item": [{"fd": ours.fileno(), "index": 0}]}})
ours.close()
test("a connection is replaced", equal(connection(status()).get("generation", 0) > before, True),
     equal(read(), b"N" * 4096))
ynl.do("disconnect", {"index": index})
test("disconnect", equal(connected(), [(index, 0)]), equal(sysfs("size"), "0"))
up = ("link-up", {"index": index, "connection-index": 0})
test("link-up and session-end are announced",
     equal(hear(3), [up, up, ("session-end", {"index": index, "end-reason": "requested"})]))
try:
    ynl.do("disconnect", {"index": 30000})
    test("disconnect of nothing", "no error")
except NlError as e:
    test("disconnect of nothing", equal(e.error, errno.EINVAL))
END
within 50 python3 "$NBD_TMP/spec.py" "$YNL" "$SPEC" "$NBD_INDEX" >"$NBD_TMP/spec.out" 2>&1 ||
	note "it ended with status $?"
grep -v "^\(not \)\?ok " "$NBD_TMP/spec.out" | sed 's/^\(# \)\?/# /'
result() { grep -qx "ok $1" "$NBD_TMP/spec.out"; }
for name in "${TESTS[@]}"; do
	check "$name" result "$name"
done

cli() {
	within 30 python3 "$YNL/pyynl/cli.py" --no-schema --output-json --spec "$SPEC" "$@"
}
on() { printf '{"index": %d}' "$NBD_INDEX"; }
check "a device is connected" "$NBD_DIR/helper_genl" connect -i "$NBD_INDEX"
got=$(cli --do status --json "$(on)" | tr -d ' ')
want="{\"device-list\":{\"item\":[{\"index\":$NBD_INDEX,\"connected\":1}]}}"
check "cli.py shows its status" is status "$got" "$want"
"$NBD_DIR/helper_genl" disconnect "$NBD_INDEX"
nbd_end
