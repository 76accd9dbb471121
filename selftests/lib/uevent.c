// SPDX-License-Identifier: GPL-2.0
/*
 * The kernel's uevents.
 */
#include "nbd_nlpeer.h"

/* Hears the kernel's uevents from now on. */
int uevents(void)
{
	struct sockaddr_nl addr = { .nl_family = AF_NETLINK, .nl_groups = 1 };
	int fd, size = 1 << 20;

	fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_KOBJECT_UEVENT);
	setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof(size));
	return bind(fd, (struct sockaddr *)&addr, sizeof(addr)) ? -1 : fd;
}

/* Whether a uevent has this variable. */
static bool has_variable(const char *buf, ssize_t n, const char *variable)
{
	const char *at;

	for (at = buf; at < buf + n; at += strlen(at) + 1)
		if (!strcmp(at, variable))
			return true;
	return false;
}

/*
 * The index of the next device of which there is such a uevent, with this variable unless it is
 * NULL; -1 if none comes soon.
 */
static int next_uevent(int fd, const char *action, const char *variable)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	char buf[16384], *name, more;
	size_t len = strlen(action);
	int index;
	ssize_t n;

	while (poll_for(&p, 1, SOON) == 1) {
		n = recv(fd, buf, sizeof(buf) - 1, 0);
		if (n <= 0)
			break;
		buf[n] = 0;
		name = strrchr(buf, '/');
		if (!strncmp(buf, action, len) && buf[len] == '@' && name &&
		    sscanf(name, "/nbd%d%c", &index, &more) == 1 &&
		    (!variable || has_variable(buf, n, variable)))
			return index;
	}
	return -1;
}

/* The index of the next device of which there is such a uevent; -1 if none comes soon. */
int uevent(int fd, const char *action)
{
	return next_uevent(fd, action, NULL);
}

/* There is such a uevent of this device. */
bool uevent_of(int fd, const char *action, struct nbd_dev *d)
{
	return uevent_with(fd, action, d, NULL);
}

/* There is one of this device that has this variable. */
bool uevent_with(int fd, const char *action, struct nbd_dev *d, const char *variable)
{
	int index;

	do
		index = next_uevent(fd, action, variable);
	while (index >= 0 && index != d->index);
	return index >= 0;
}
