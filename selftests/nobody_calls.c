// SPDX-License-Identifier: GPL-2.0
/*
 * A user without privilege, and what it tries.
 */
#include <grp.h>
#include <sched.h>
#include <stdarg.h>

#include "nobody.h"

#define NOBODY	65534

struct found *found;

void find(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	if (found->n < 16)
		vsnprintf(found->text[found->n], sizeof(found->text[0]), fmt, ap);
	found->n++;
	va_end(ap);
}

/* Ways to be without privilege. */

int be_nobody(void)
{
	if (setgroups(0, NULL) || setresgid(NOBODY, NOBODY, NOBODY) ||
	    setresuid(NOBODY, NOBODY, NOBODY))
		return -errno;
	prctl(PR_SET_DUMPABLE, 1);
	return 0;
}

static int be_root_of(int flags, int uid)
{
	char map[32];

	if (unshare(CLONE_NEWUSER | flags))
		return -errno;
	snprintf(map, sizeof(map), "0 %d 1", uid);
	write_file("/proc/self/setgroups", "deny");
	if (!write_file("/proc/self/uid_map", map) || !write_file("/proc/self/gid_map", map))
		return -EPERM;
	return geteuid() ? -EPERM : 0;
}

int be_root_of_user_ns(void)
{
	return be_root_of(0, 0);
}

int be_root_of_user_and_net_ns(void)
{
	return be_root_of(CLONE_NEWNET, 0);
}

int nobody_be_root_of_user_ns(void)
{
	return be_nobody() ?: be_root_of(0, NOBODY);
}

int nobody_be_root_of_user_and_net_ns(void)
{
	return be_nobody() ?: be_root_of(CLONE_NEWNET, NOBODY);
}

const char *can_become(int (*become)(void))
{
	int status;
	pid_t pid;

	if (geteuid())
		return "must be run as root";
	fflush(NULL);
	pid = fork();
	if (!pid)
		_exit(become() ? 1 : 0);
	if (waitpid(pid, &status, 0) != pid || status)
		return "the kernel has no user namespaces for this user";
	return NULL;
}

/* A device of our own, and memory for what is found. */
const char *nobody_init(struct nl_session *ns)
{
	found = shared_memory(sizeof(*found));
	return found ? nl_init(ns, 1, PEER_GOOD) : "no memory";
}

void refused_ioctls(int dev, int sock, const char *whose)
{
	static const unsigned long args[] = { 0, 1, 4096, -1UL };
	size_t i, j;

	for (i = 0; i < ARRAY_SIZE(nbd_ioctls); i++) {
		const char *name = nbd_ioctls[i].name;
		unsigned long cmd = nbd_ioctls[i].cmd;

		for (j = 0; j < ARRAY_SIZE(args); j++) {
			unsigned long arg = cmd == NBD_SET_SOCK ? (unsigned long)sock : args[j];

			found->tried++;
			if (ioctl(dev, cmd, arg) >= 0)
				find("%s %lu on %s descriptor: done", name, arg, whose);
			else if (errno != EPERM)
				find("%s %lu on %s descriptor: %s", name, arg, whose,
				     strerrorname_np(errno));
		}
	}
}

static void refused_message(struct genl *g, struct nl_msg *m, const char *name, const char *whose)
{
	struct nl_answer r = {};
	int ret = nl_exchange(g->fd, g->family, m, &r);

	found->tried++;
	if (ret != -EPERM)
		find("%s on %s socket: %s", name, whose, ret ? strerrorname_np(-ret) : "done");
}

void refused_messages(struct genl *g, struct nl_session *ns, int sock, const char *whose)
{
	static struct nl_msg m;
	static struct nl_answer r;
	int index = ns->s.dev.index;

	nl_begin_connect(&m, ns, index, &sock, 1);
	refused_message(g, &m, "CONNECT", whose);
	nl_begin_connect(&m, ns, -1, &sock, 1);
	refused_message(g, &m, "CONNECT to any", whose);
	nl_begin_connect(&m, ns, NO_INDEX, &sock, 1);
	refused_message(g, &m, "CONNECT to a new one", whose);
	nl_begin(&m, NBD_CMD_CONNECT, -1);
	refused_message(g, &m, "CONNECT without anything", whose);
	nl_begin(&m, NBD_CMD_RECONFIGURE, index);
	refused_message(g, &m, "RECONFIGURE of nothing", whose);
	nl_begin(&m, NBD_CMD_RECONFIGURE, index);
	nl_u64(&m, NBD_ATTR_SIZE_BYTES, PEER_SIZE / 2);
	nl_u64(&m, NBD_ATTR_TIMEOUT, 7);
	nl_u64(&m, NBD_ATTR_BLOCK_SIZE_BYTES, 512);
	nl_u64(&m, NBD_ATTR_CLIENT_FLAGS, NBD_CFLAG_DISCONNECT_ON_CLOSE);
	nl_socks(&m, &sock, 1);
	refused_message(g, &m, "RECONFIGURE", whose);
	nl_begin(&m, NBD_CMD_DISCONNECT, index);
	refused_message(g, &m, "DISCONNECT", whose);
	nl_begin(&m, NBD_CMD_DISCONNECT, NO_INDEX);
	refused_message(g, &m, "DISCONNECT of none", whose);

	nl_begin(&m, NBD_CMD_STATUS, index);
	memset(&r, 0, sizeof(r));
	if (nl_exchange(g->fd, g->family, &m, &r) || r.ndevs != 1 || r.dev[0].index != index)
		find("STATUS on %s socket: %s", whose, strerrorname_np(-r.ret));
}

bool user_done(pid_t pid)
{
	return found->done || exited(pid);
}
