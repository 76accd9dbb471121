// SPDX-License-Identifier: GPL-2.0
/*
 * The steps of fuzz_model that are netlink messages.
 */
#include "model.h"

int nl_index(int d)
{
	return devs[d].dev.index;
}

/* New servers for a message. */
int new_socks(int d, int n, enum sock_kind kind, int *fd, struct sock **sock)
{
	int i;

	for (i = 0; i < n; i++) {
		sock[i] = sock_new(d, kind, 0, &fd[i]);
		if (!sock[i])
			break;
	}
	return i;
}

static void close_fds(const int *fd, int n)
{
	while (n)
		close(fd[--n]);
}

/* May a CONNECT have this device? */
static bool connectable(int d)
{
	struct mdev *m = &devs[d];

	return m->state == IDLE || m->state == ABSENT || (m->state == SETUP && m->owner < 0);
}

void connected(int d, struct mparams p, struct sock **sock, int n)
{
	struct mdev *m = &devs[d];
	int i;

	to_idle(d, p);
	for (i = 0; i < n; i++) {
		sock[i]->dev = d;
		sock[i]->state = SOCK_KEPT;
	}
	session_starts(d, true);
	m->pid = syscall(SYS_gettid);
}

void nl_params(struct nl_msg *msg, const struct mparams *p)
{
	nl_u64(msg, NBD_ATTR_SIZE_BYTES, p->size);
	nl_u64(msg, NBD_ATTR_BLOCK_SIZE_BYTES, p->block);
	nl_u64(msg, NBD_ATTR_SERVER_FLAGS,
	       NBD_FLAG_HAS_FLAGS | (p->multi ? NBD_FLAG_CAN_MULTI_CONN : 0));
	nl_u64(msg, NBD_ATTR_DEAD_CONN_TIMEOUT, p->dead);
	nl_u64(msg, NBD_ATTR_CLIENT_FLAGS, p->client);
}

static struct mparams some_params(uint32_t arg)
{
	static const unsigned int block[] = { 512, 1024, 4096, 4096 };

	return (struct mparams) {
		.size = arg & 1 ? MIB : 16 * MIB, .block = block[arg / 2 % 4],
		.multi = arg / 8 % 8, .dead = arg & 64 ? NEVER : 0,
		.client = arg / 128 % 8 < 4 ? arg / 128 % 4 : 0,
	};
}

int take_nl_connect(struct step *s)
{
	struct mdev *m = &devs[s->dev];
	struct mparams p = some_params(s->arg);
	int n = 1 + (s->arg >> 12) % 3, fd[4], error = 0, i, j, bad = -1;
	struct sock *sock[4];
	struct nl_answer r;
	struct nl_msg msg;

	/* A second, until the driver gives up to wait for the openers. */
	if (m->state == STOPPED && skip(s, 512))
		return LEFT_OUT;
	if (m->state == RUNNING && skip(s, 3))
		return LEFT_OUT;
	n = new_socks(s->dev, n, s->arg & 1024 ? KIND_TCP : KIND_UNIX, fd, sock);
	j = n;
	if ((s->arg >> 20) % 16 == 0) {
		bad = bad_fd(s->arg >> 24, &error);
		fd[j++] = bad < 0 ? 999 : bad;
	} else if ((s->arg >> 20) % 16 == 1) {
		p.size = 1ULL << 63;
		error = -EINVAL;
	} else if (n > 1 && !p.multi) {
		error = -EINVAL;
	} else if (!connectable(s->dev)) {
		error = -EBUSY;
	}
	nl_begin(&msg, NBD_CMD_CONNECT, nl_index(s->dev));
	nl_params(&msg, &p);
	nl_socks(&msg, fd, j);
	want(fuzz_ask(&genl, &msg, &r), error, "CONNECT");
	want(r.index, error ? -1 : nl_index(s->dev), "its index");
	close_fds(fd, n);
	if (bad >= 0)
		close(bad);
	if (!error)
		connected(s->dev, p, sock, n);
	for (i = 0; error && i < n; i++)
		sock[i]->state = SOCK_DROPPED;
	return TAKEN;
}

/* Without an index: any that is free, be it one of the others, which is given back. */
int take_nl_connect_any(struct step *s)
{
	struct mparams p = some_params(s->arg);
	struct sock *sock[1];
	struct nl_answer r;
	struct nl_msg msg;
	int fd[1], d;

	if (!new_socks(s->dev, 1, KIND_UNIX, fd, sock))
		return LEFT_OUT;
	nl_begin(&msg, NBD_CMD_CONNECT, -1);
	nl_params(&msg, &p);
	nl_socks(&msg, fd, 1);
	want(fuzz_ask(&genl, &msg, &r), 0, "CONNECT");
	close_fds(fd, 1);
	for (d = 0; d < DEVS && nl_index(d) != r.index; d++)
		;
	if (d < DEVS) {
		if (!connectable(d) || devs[d].state == SETUP)
			fuzz_fail("nbd%d was connected, which is not free", r.index);
		connected(d, p, sock, 1);
		return TAKEN;
	}
	nl_begin(&msg, NBD_CMD_DISCONNECT, r.index);
	want(fuzz_ask(&genl, &msg, &r), 0, "DISCONNECT");
	sock[0]->state = SOCK_DROPPED;
	return TAKEN;
}

int take_nl_disconnect(struct step *s)
{
	struct mdev *m = &devs[s->dev];
	struct nl_answer r;
	struct nl_msg msg;
	bool slow = m->mute || ((m->state == RUNNING || m->state == STOPPED) && openers(s->dev));

	/* A second, until the driver gives up to wait for the servers or the openers. */
	if (slow ? skip(s, 1024) : m->state != RUNNING && skip(s, 3))
		return LEFT_OUT;
	nl_begin(&msg, NBD_CMD_DISCONNECT, nl_index(s->dev));
	want(fuzz_ask(&genl, &msg, &r), m->state == ABSENT ? -EINVAL : 0, "DISCONNECT");
	if (m->state == RUNNING)
		end_on_request(s->dev);
	return TAKEN;
}

int take_nl_reconfigure(struct step *s)
{
	struct mdev *m = &devs[s->dev];
	int n = 0, i, fd[4], error = 0;
	struct mparams p = m->params;
	struct sock *sock[4];
	struct nl_answer r;
	struct nl_msg msg;

	if ((m->state != RUNNING || !m->netlink) && skip(s, 4))
		return LEFT_OUT;
	nl_begin(&msg, NBD_CMD_RECONFIGURE, nl_index(s->dev));
	switch (s->arg % 8) {
	case 0:
		p.size = s->arg & 8 ? MIB : 16 * MIB;
		nl_u64(&msg, NBD_ATTR_SIZE_BYTES, p.size);
		break;
	case 1:
		nl_u64(&msg, NBD_ATTR_TIMEOUT, s->arg & 8 ? NEVER : 0);
		break;
	case 2:
		p.client = s->arg / 8 % 8 < 4 ? s->arg / 8 % 4 : 0;
		nl_u64(&msg, NBD_ATTR_CLIENT_FLAGS, p.client);
		break;
	case 3:
		/* Not while requests wait: what holds for them is not said. */
		if (m->state == RUNNING && !m->alive)
			return LEFT_OUT;
		p.dead = s->arg & 8 ? NEVER : 0;
		nl_u64(&msg, NBD_ATTR_DEAD_CONN_TIMEOUT, p.dead);
		break;
	case 4:
		nl_u64(&msg, NBD_ATTR_SIZE_BYTES, 1ULL << 63);
		error = -EINVAL;
		break;
	default:
		n = new_socks(s->dev, 1 + s->arg / 8 % 3, KIND_UNIX, fd, sock);
		for (i = 0; i < n; i++) {
			sock[i]->stamp = m->stamp;
			/* From the first request on: one may be on its way. */
			if (m->mute)
				sock_mute(sock[i], true);
		}
		nl_socks(&msg, fd, n);
		break;
	}
	if (m->state != RUNNING || !m->netlink)
		error = -EINVAL;
	want(fuzz_ask(&genl, &msg, &r), error, "RECONFIGURE");
	close_fds(fd, n);
	for (i = 0; i < n; i++) {
		bool used = !error && m->alive < m->conns;

		sock[i]->state = used ? SOCK_KEPT : SOCK_DROPPED;
		m->alive += used;
		if (used)
			m->given_up = false;
	}
	if (!error)
		m->params = p;
	return TAKEN;
}

int take_nl_status(struct step *s)
{
	see_status(s->dev);
	return TAKEN;
}

/* The one of these sockets that the driver has closed, or NULL. */
static struct sock *closed_sock(struct sock **own, int n)
{
	int i;

	for (i = 0; i < n * 1000; i++)
		if (saw_eof(own[i % n]->fd, 1))
			return own[i % n];
	return NULL;
}

/* A connection is replaced, added or removed by its number. */
int take_nl_place(struct step *s)
{
	enum { REPLACE, ADD, REMOVE } what = s->arg % 3;
	struct mdev *m = &devs[s->dev];
	int fd = -1, error = 0, index, next, n;
	struct sock *own[SOCKS], *sock = NULL, *gone;
	struct nl_answer r;
	struct nl_msg msg;
	bool open;

	/* What is in flight would stay with the server that has it. */
	if (m->state != RUNNING || !m->netlink || m->mute || (m->alive && is_pending(s->dev)))
		return LEFT_OUT;
	if (what == ADD && m->conns >= 6)
		return LEFT_OUT;
	nl_begin(&msg, NBD_CMD_STATUS, nl_index(s->dev));
	nl_u32(&msg, NBD_ATTR_FIRST_CONNECTION, 0);
	want(fuzz_ask(&genl, &msg, &r), 0, "STATUS");
	want(r.nconns, m->conns, "connections");
	if (!r.nconns)
		return TAKEN;
	index = s->arg / 3 % r.nconns;
	open = r.conn[index].value[NL_CONN_STATE] == NL_OPEN;
	index = r.conn[index].value[NL_CONN_INDEX];
	for (next = 0; next < r.nconns && r.conn[next].value[NL_CONN_INDEX] == next; next++)
		;
	if (what == ADD) {
		index = next;
		open = false;
		error = m->params.multi ? 0 : -EINVAL;
	} else if (what == REMOVE && (m->conns == 1 || (open && m->alive == 1))) {
		error = -EBUSY;
	}
	n = kept_socks(s->dev, own);
	if (what != REMOVE && !new_socks(s->dev, 1, KIND_UNIX, &fd, &sock))
		return LEFT_OUT;
	if (fd >= 0)
		sock->stamp = m->stamp;
	nl_begin(&msg, NBD_CMD_RECONFIGURE, nl_index(s->dev));
	nl_conns(&msg, &index, &fd, 1);
	want(fuzz_ask(&genl, &msg, &r), error, "RECONFIGURE of a connection");
	if (fd >= 0) {
		close_fds(&fd, 1);
		sock->state = error ? SOCK_DROPPED : SOCK_KEPT;
	}
	if (error)
		return TAKEN;
	if (open) {
		gone = closed_sock(own, n);
		if (gone)
			gone->state = SOCK_DROPPED;
		else
			fuzz_fail("nbd%d: the previous socket is still held", m->dev.index);
	}
	m->conns += (what == ADD) - (what == REMOVE);
	m->alive += (what != REMOVE) - open;
	if (what != REMOVE)
		m->given_up = false;
	return TAKEN;
}
