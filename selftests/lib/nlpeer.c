// SPDX-License-Identifier: GPL-2.0
/*
 * Sessions that are made by netlink.
 */
#include <ctype.h>
#include <dirent.h>

#include "nbd_nlpeer.h"

/* A server in place n, the first or one that replaces a dead one; s->fd[n] is the driver's end. */
int nl_peer(struct peer_session *s, int n)
{
	struct peer_shared *sh = s->sh;
	int pair[2], i;

	if (peer_pair(s, pair))
		return -errno;
	sh->kind[n] = PEER_GOOD;
	sh->deaf[n] = 0;
	sh->go[n] = 0;
	sh->close[n] = 0;
	sh->requests[n] = 0;
	sh->held[n] = 0;
	sh->held_reads[n] = 0;
	sh->unread[n] = 0;
	sh->acted[n] = 0;
	sh->eof[n] = 0;
	sh->disc[n] = 0;
	sh->left[n] = 0;
	sh->refused[n] = 0;
	sh->refused_at[n] = 0;
	sh->disc_at[n] = 0;
	s->fd[n] = pair[0];
	s->peer[n] = fork_quiet();
	if (!s->peer[n]) {
		for (i = 0; i < PEER_MAX; i++)
			if (s->fd[i] > 0)
				close(s->fd[i]);
		peer_main(sh, n, pair[1]);
	}
	close(pair[1]);
	return 0;
}

void nl_close_ends(struct peer_session *s)
{
	int i;

	for (i = 0; i < PEER_MAX; i++) {
		if (s->fd[i] > 0)
			close(s->fd[i]);
		s->fd[i] = 0;
	}
}

/* The usual request to connect these sockets; more attributes may follow. */
void nl_begin_connect(struct nl_msg *m, struct nl_session *ns, int index, int *fd, int nfds)
{
	uint64_t flags = NL_FLAGS | ns->s.flags;

	nl_begin(m, NBD_CMD_CONNECT, index);
	nl_u64(m, NBD_ATTR_SIZE_BYTES, PEER_SIZE);
	nl_u64(m, NBD_ATTR_BLOCK_SIZE_BYTES, NL_BLKSIZE);
	if (nfds > 1)
		flags |= NBD_FLAG_CAN_MULTI_CONN;
	nl_u64(m, NBD_ATTR_SERVER_FLAGS, flags);
	if (ns->s.timeout)
		nl_u64(m, NBD_ATTR_TIMEOUT, ns->s.timeout);
	if (ns->dead)
		nl_u64(m, NBD_ATTR_DEAD_CONN_TIMEOUT, ns->dead);
	if (ns->cflags)
		nl_u64(m, NBD_ATTR_CLIENT_FLAGS, ns->cflags);
	if (ns->backend)
		nl_str(m, NBD_ATTR_BACKEND_IDENTIFIER, ns->backend);
	nl_socks(m, fd, nfds);
}

/* Send it and forget our ends of the sockets, so that only the driver has them. */
int nl_finish(struct nl_session *ns, struct nl_msg *m)
{
	ns->answer = *nl_do(m);
	nl_close_ends(&ns->s);
	return ns->answer.ret;
}

/* A device of our own, not yet connected. */
const char *nl_init(struct nl_session *ns, int npeers, enum peer_kind kind)
{
	memset(ns, 0, sizeof(*ns));
	return peer_init(&ns->s, npeers, kind);
}

/* Use this device instead. */
void nl_use(struct nl_session *ns, int index)
{
	struct nbd_dev *d = &ns->s.dev;

	d->index = index;
	snprintf(d->path, sizeof(d->path), "/dev/nbd%d", index);
}

int nl_peers(struct nl_session *ns)
{
	int i, ret = 0;

	for (i = 0; i < ns->s.npeers && !ret; i++)
		ret = nl_peer(&ns->s, i);
	return ret;
}

/* Connect the device to the servers that there are: 0 or -errno. */
int nl_connect_peers(struct nl_session *ns)
{
	struct nl_msg m;
	int ret;

	nl_begin_connect(&m, ns, ns->s.dev.index, ns->s.fd, ns->s.npeers);
	ret = nl_finish(ns, &m);
	return ret ?: WAIT_UNTIL(nbd_running(&ns->s.dev), BOUNDED) ? 0 : -ENODEV;
}

/* The same with new servers. */
int nl_connect(struct nl_session *ns)
{
	return nl_peers(ns) ?: nl_connect_peers(ns);
}

/* The same, but keep a descriptor of the first socket. */
int nl_connect_and_keep(struct nl_session *ns, int *kept)
{
	int ret = nl_peers(ns);

	if (ret)
		return ret;
	*kept = fcntl(ns->s.fd[0], F_DUPFD_CLOEXEC, 0);
	return nl_connect_peers(ns);
}

/* A new server of this kind for the first place that has none; it is number n here. */
int nl_reconnect_as(struct nl_session *ns, int n, enum peer_kind kind)
{
	struct nl_msg m;
	int ret = nl_peer(&ns->s, n);

	if (ret)
		return ret;
	ns->s.sh->kind[n] = kind;
	nl_begin(&m, NBD_CMD_RECONFIGURE, ns->s.dev.index);
	if (ns->backend)
		nl_str(&m, NBD_ATTR_BACKEND_IDENTIFIER, ns->backend);
	nl_socks(&m, &ns->s.fd[n], 1);
	return nl_finish(ns, &m);
}

int nl_reconnect(struct nl_session *ns, int n)
{
	return nl_reconnect_as(ns, n, PEER_GOOD);
}

/* RECONFIGURE with one number. */
int nl_change(struct nl_session *ns, int type, uint64_t v)
{
	struct nl_msg m;

	nl_begin(&m, NBD_CMD_RECONFIGURE, ns->s.dev.index);
	nl_u64(&m, type, v);
	return nl_finish(ns, &m);
}

/* The server dies; whatever it held it will never answer. */
bool nl_kill_peer(struct peer_session *s, int n)
{
	kill(s->peer[n], SIGKILL);
	return reap(s->peer[n], BOUNDED);
}

bool nl_cleanup(struct nl_session *ns)
{
	bool ok;
	int i;

	for (i = 0; i < PEER_MAX; i++)
		if (ns->s.sh && ns->s.peer[i] > 0)
			ns->s.sh->close[i] = 1;
	nl_disconnect(ns->s.dev.index);
	ok = peer_end(&ns->s);
	nl_close_ends(&ns->s);
	return nbd_give_back(&ns->s.dev) && ok;
}

/* Read the whole device and compare. */
int read_all(struct peer_session *s)
{
	static unsigned char buf[1 << 20] __aligned(4096);
	int fd = open(s->dev.path, O_RDONLY | O_DIRECT | O_CLOEXEC);
	size_t off;

	if (fd < 0)
		return 1;
	for (off = 0; off < PEER_SIZE; off += sizeof(buf))
		if (pread(fd, buf, sizeof(buf), off) != (ssize_t)sizeof(buf) ||
		    memcmp(buf, s->sh->data + off, sizeof(buf)))
			return 2;
	return 0;
}

/* Read one block that is in no cache, by this descriptor. */
int nl_read_other_by(struct peer_session *s, int fd)
{
	static unsigned char buf[4096] __aligned(4096);

	return fd < 0 || pread(fd, buf, 4096, PEER_SIZE / 2) != 4096 ||
	       memcmp(buf, s->sh->data + PEER_SIZE / 2, 4096);
}

int nl_read_other(struct peer_session *s)
{
	return nl_read_other_by(s, open(s->dev.path, O_RDONLY | O_DIRECT));
}

/* The kernel threads in uninterruptible sleep. */
int nl_sleepers(int *pid, int max)
{
	char path[300], line[512], *p, state;
	unsigned int flags;
	struct dirent *e;
	int n = 0;
	DIR *d;
	FILE *f;

	d = opendir("/proc");
	if (!d)
		return 0;
	while (n < max && (e = readdir(d))) {
		if (!isdigit(e->d_name[0]))
			continue;
		snprintf(path, sizeof(path), "/proc/%s/stat", e->d_name);
		f = fopen(path, "re");
		if (!f)
			continue;
		p = fgets(line, sizeof(line), f) ? strrchr(line, ')') : NULL;
		fclose(f);
		/* Kernel threads have PF_KTHREAD. */
		if (p && sscanf(p, ") %c %*d %*d %*d %*d %*d %u", &state, &flags) == 2 &&
		    state == 'D' && (flags & 0x00200000))
			pid[n++] = atoi(e->d_name);
	}
	closedir(d);
	return n;
}

/* How many kernel threads sleep so for more than this time, besides those that did before. */
int nl_stuck(const int *before, int nbefore, int ms)
{
	long long end = now_ms() + ms;
	int pid[64], seen[64], n, nseen = -1, i, j, k;

	do {
		n = nl_sleepers(pid, 64);
		for (i = 0, k = 0; i < n; i++) {
			bool all = nseen < 0, old = false;

			for (j = 0; j < nseen; j++)
				all = all || seen[j] == pid[i];
			for (j = 0; j < nbefore; j++)
				old = old || before[j] == pid[i];
			if (all && !old)
				pid[k++] = pid[i];
		}
		memcpy(seen, pid, sizeof(seen));
		nseen = k;
		usleep(10000);
	} while (nseen && now_ms() < end);
	return nseen;
}
