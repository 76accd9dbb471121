// SPDX-License-Identifier: GPL-2.0
/*
 * Devices: one for each test, and what sysfs says about it.
 */
#include "nbd_test.h"

const struct nbd_ioctl nbd_ioctls[] = {
	{ NBD_SET_SOCK, "SET_SOCK" },
	{ NBD_SET_BLKSIZE, "SET_BLKSIZE" },
	{ NBD_SET_SIZE, "SET_SIZE" },
	{ NBD_DO_IT, "DO_IT" },
	{ NBD_CLEAR_SOCK, "CLEAR_SOCK" },
	{ NBD_CLEAR_QUE, "CLEAR_QUE" },
	{ NBD_PRINT_DEBUG, "PRINT_DEBUG" },
	{ NBD_SET_SIZE_BLOCKS, "SET_SIZE_BLOCKS" },
	{ NBD_DISCONNECT, "DISCONNECT" },
	{ NBD_SET_TIMEOUT, "SET_TIMEOUT" },
	{ NBD_SET_FLAGS, "SET_FLAGS" },
	{ _IO(0xab, 11), "an unknown one" },
};

bool nbd_sys_exists(struct nbd_dev *d, const char *name)
{
	char path[128];

	snprintf(path, sizeof(path), "/sys/block/nbd%d/%s", d->index, name);
	return !access(path, F_OK);
}

/* A number in the device's directory in sysfs, -1 if there is none. */
long long nbd_sys(struct nbd_dev *d, const char *name)
{
	char path[128];
	long long v = -1;
	FILE *f;

	snprintf(path, sizeof(path), "/sys/block/nbd%d/%s", d->index, name);
	f = fopen(path, "re");
	if (!f)
		return -1;
	if (fscanf(f, "%lld", &v) != 1)
		v = -1;
	fclose(f);
	return v;
}

/* What a file in that directory has, up to the next call, or NULL. */
const char *nbd_sys_text(struct nbd_dev *d, const char *name)
{
	static char text[256];
	char path[128];

	snprintf(path, sizeof(path), "/sys/block/nbd%d/%s", d->index, name);
	return read_file(path, text, sizeof(text)) < 0 ? NULL : text;
}

bool nbd_running(struct nbd_dev *d)
{
	return nbd_sys_exists(d, "pid") && nbd_sys(d, "size") > 0;
}

/* Which driver is tested; as test_common.sh decides it. */
bool nbd_is_rust(void)
{
	const char *driver = getenv("NBD_DRIVER"), *ko = getenv("NBD_KO");

	return driver && *driver ? !strcmp(driver, "rust") : ko && *ko;
}

/* Is nothing of a session left? */
bool nbd_idle(struct nbd_dev *d)
{
	return !nbd_sys_exists(d, "pid") && nbd_sys(d, "size") == 0;
}

/*
 * Have the driver loaded, and take a device that no other test has left unclean. Returns NULL,
 * or the reason why the test is to be skipped. A driver that cannot be loaded or has no clean
 * device left is no such reason.
 */
const char *nbd_pick(struct nbd_dev *d)
{
	const char *ko = getenv("NBD_KO");
	char cmd[4300], mark[64];
	int i;

	if (geteuid())
		return "must be run as root";
	if (nbd_is_rust() && ko && access(ko, R_OK))
		return "no Rust module at NBD_KO";
	/* What an agent has forked is for nbd_give_back() to wait for. */
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	snprintf(cmd, sizeof(cmd), "'%s/test_common.sh' ensure >&2", nbd_dir());
	snprintf(mark, sizeof(mark), "/sys/block/nbd%d", NBD_DEVICES - 1);
	/* Once a program is enough: no test here unloads it. */
	if ((access(mark, F_OK) || access(NBD_MARKS "/driver", F_OK)) && system(cmd)) {
		fprintf(stderr, "# cannot load the driver\n");
		_exit(1);
	}
	for (i = 0; i < NBD_DEVICES; i++) {
		d->index = i;
		snprintf(d->path, sizeof(d->path), "/dev/nbd%d", i);
		if (nbd_sys_exists(d, "pid") || nbd_sys(d, "size"))
			continue;
		snprintf(mark, sizeof(mark), NBD_MARKS "/busy.%d", i);
		if (!mkdir(mark, 0755))
			return NULL;
	}
	fprintf(stderr, "# no clean device left\n");
	_exit(1);
}

/* End all processes of the test; the device can be used again if nothing of it is left. */
bool nbd_give_back(struct nbd_dev *d)
{
	bool ok = nbd_children_end() && WAIT_UNTIL(nbd_idle(d), 2000);
	char mark[64];

	if (ok) {
		snprintf(mark, sizeof(mark), NBD_MARKS "/busy.%d", d->index);
		rmdir(mark);
	} else {
		fprintf(stderr, "# nbd%d does not come back\n", d->index);
	}
	return ok;
}
