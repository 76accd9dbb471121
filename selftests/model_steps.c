// SPDX-License-Identifier: GPL-2.0
/*
 * The steps of users and servers in fuzz_model: each does what it is called after, and to the
 * model what must come of that.
 */
#include "model.h"

/* What users do */

int take_spawn(struct step *s)
{
	struct user *u = &users[s->user];

	if (u->pid)
		return LEFT_OUT;
	if (!user_start(u, NULL))
		fuzz_fail("no process");
	return TAKEN;
}

int take_fork(struct step *s)
{
	int child = s->arg % USERS, i;

	if (!users[s->user].pid || users[child].pid)
		return LEFT_OUT;
	if (!user_start(&users[child], &users[s->user]))
		fuzz_fail("no fork");
	fuzz->count[SAW_FORKS]++;
	for (i = 0; i < FILES; i++)
		if (files[i].users & (1U << s->user))
			files[i].users |= 1U << child;
	return TAKEN;
}

int take_kill(struct step *s)
{
	struct user *u;
	int d, i;

	/* Most often one that leaves a setup or ends a session. */
	for (d = 0; d < DEVS && s->arg % 4; d++)
		if ((devs[d].state == SETUP || (devs[d].state == RUNNING && !devs[d].netlink)) &&
		    devs[d].owner >= 0 && openers(d) > 1)
			s->user = devs[d].owner;
	u = &users[s->user];
	if (!u->pid)
		return LEFT_OUT;
	/* It dies when its I/O has ended; that is so if the session ends with it. */
	for (i = 0; i < PENDING; i++) {
		struct mdev *m = &devs[pending[i].dev];

		if (pending[i].busy && pending[i].user == s->user &&
		    (m->state != RUNNING || m->netlink || m->owner != s->user))
			return LEFT_OUT;
	}
	fuzz->count[SAW_KILLS]++;
	if (!user_kill(u))
		return TAKEN;
	for (i = 0; i < PENDING; i++)
		if (pending[i].busy && pending[i].user == s->user)
			pending[i].busy = false;
	for (d = 0; d < DEVS; d++) {
		if ((devs[d].state == SETUP || (devs[d].state == RUNNING && !devs[d].netlink)) &&
		    devs[d].owner == s->user) {
			devs[d].owner = -1;
			if (devs[d].state == RUNNING)
				end_session(d);
		}
	}
	for (i = 0; i < FILES; i++)
		if (files[i].users & (1U << s->user))
			drop_file(i, s->user);
	return TAKEN;
}

int take_open(struct step *s)
{
	struct mdev *m = &devs[s->dev];
	struct user_call c = { .op = USER_OPEN };
	long ret;
	int f;

	for (f = 0; f < FILES && files[f].users; f++)
		;
	/* The first open reads the partition table. */
	if (!users[s->user].pid || f == FILES || openers(s->dev) >= 4 || !io_flows(m))
		return LEFT_OUT;
	/* A device that others have open gets nowhere once it has stopped. */
	if (skip(s, m->state == STOPPED ? 9 : 1 + 2 * openers(s->dev)))
		return LEFT_OUT;
	c.file = f;
	c.arg = s->arg & 1 ? O_DIRECT : 0;
	memcpy(c.path, m->dev.path, sizeof(c.path));
	ret = user_ask(&users[s->user], &c, -1);
	if (m->state == ABSENT) {
		/* The name may be there for a moment longer than the device. */
		want(ret == -ENXIO ? -ENOENT : ret, -ENOENT, "open");
		return TAKEN;
	}
	want(ret, 0, "open");
	files[f] = (struct mfile) { .users = 1U << s->user, .dev = s->dev, .direct = s->arg & 1 };
	return TAKEN;
}

int take_close(struct step *s)
{
	struct mdev *m = &devs[s->dev];
	struct user_call c = { .op = USER_CLOSE };
	int f = file_of(s), i;

	/* Or of another user that has one. */
	for (i = 1; f < 0 && i < USERS; i++) {
		s->user = (s->user + 1) % USERS;
		f = file_of(s);
	}
	if (f < 0)
		return LEFT_OUT;
	c.file = f;
	/* A descriptor that is in use stays open. */
	if (m->state == RUNNING && !m->netlink && m->owner == s->user && m->run_file == f)
		return LEFT_OUT;
	for (i = 0; i < PENDING; i++)
		if (pending[i].busy && pending[i].user == s->user && pending[i].dev == s->dev)
			return LEFT_OUT;
	want(user_ask(&users[s->user], &c, -1), 0, "close");
	drop_file(f, s->user);
	return TAKEN;
}

static long do_ioctl(struct step *s, int f, unsigned int cmd, unsigned long arg)
{
	struct user_call c = { .op = USER_IOCTL, .file = f, .slot = cmd, .arg = arg };

	return user_ask(&users[s->user], &c, -1);
}

int take_set_sock(struct step *s)
{
	struct mdev *m = &devs[s->dev];
	int f = file_of(s), fd, error = 0;
	struct user_call c = { .op = USER_SOCK, .file = f };
	struct sock *sock = NULL;

	if (f < 0 || ((m->state == RUNNING || m->state == STOPPED) && skip(s, 3)))
		return LEFT_OUT;
	if (s->arg % 8 == 0) {
		fd = bad_fd(s->arg / 8, &error);
	} else {
		sock = sock_new(s->dev, s->arg % 8 == 1 ? KIND_TCP : KIND_UNIX, 0, &fd);
		if (!sock)
			return LEFT_OUT;
		if (m->state == RUNNING || (m->state == SETUP && m->owner >= 0 &&
					    m->owner != s->user))
			error = -EBUSY;
		if (m->state == STOPPED && ((openers(s->dev) > 1 && !wrong_model) ||
					    m->params.client & NBD_CFLAG_DESTROY_ON_DISCONNECT))
			error = -EBUSY;
	}
	want(user_ask(&users[s->user], &c, fd), error, "SET_SOCK");
	if (fd >= 0)
		close(fd);
	if (!error && (m->state != SETUP || m->owner < 0)) {
		to_idle(s->dev, m->params);
		m->state = SETUP;
		m->owner = s->user;
	}
	if (sock)
		sock->state = error ? SOCK_DROPPED : SOCK_KEPT;
	return TAKEN;
}

int take_clear_sock(struct step *s)
{
	struct mdev *m = &devs[s->dev];
	int f = file_of(s);

	if (f < 0)
		return LEFT_OUT;
	want(do_ioctl(s, f, NBD_CLEAR_SOCK, 0), 0, "CLEAR_SOCK");
	if (m->state == RUNNING)
		end_on_request(s->dev);
	else if (m->state == SETUP)
		to_idle(s->dev, m->params);
	return TAKEN;
}

int take_disconnect(struct step *s)
{
	int f = file_of(s);

	/* A second each, if the server does not listen. */
	if (f < 0 || (devs[s->dev].mute && s->arg % 64))
		return LEFT_OUT;
	want(do_ioctl(s, f, NBD_DISCONNECT, 0), 0, "DISCONNECT");
	if (devs[s->dev].state == RUNNING) {
		/* It returns when the servers were told; the end goes on without the caller. */
		if (!WAIT_UNTIL(status_of(s->dev) != 1, 2000))
			fuzz_fail("nbd%d: the session goes on", devs[s->dev].dev.index);
		end_on_request(s->dev);
	}
	return TAKEN;
}

int take_do_it(struct step *s)
{
	struct mdev *m = &devs[s->dev];
	struct user_thread *t = &shared->do_it[s->dev];
	int f = file_of(s);
	struct user_call c = { .op = USER_DO_IT, .file = f, .slot = s->dev };
	struct sock *own[SOCKS];

	if (f < 0 || (m->state != SETUP && skip(s, 3)))
		return LEFT_OUT;
	if (m->state != SETUP) {
		want(do_ioctl(s, f, NBD_DO_IT, 0), m->state == IDLE ? -EINVAL : -EBUSY, "DO_IT");
		return TAKEN;
	}
	t->done = 0;
	if (kept_socks(s->dev, own) > 1 && !m->params.multi) {
		want(user_ask(&users[s->user], &c, -1), 0, "thread");
		want_do_it(s->dev, -EINVAL);
		to_idle(s->dev, m->params);
		return TAKEN;
	}
	session_starts(s->dev, false);
	m->owner = s->user;
	m->run_file = f;
	want(user_ask(&users[s->user], &c, -1), 0, "thread");
	if (!WAIT_UNTIL(t->done || (status_of(s->dev) == 1 &&
				    nbd_sys(&m->dev, "size") == (long long)m->params.size / 512),
			2000) || t->done)
		fuzz_fail("no session: %ld", t->done ? t->ret : 0);
	m->pid = t->tid;
	return TAKEN;
}

int take_signal(struct step *s)
{
	struct mdev *m = &devs[s->dev];

	if (m->state != RUNNING || m->netlink)
		return LEFT_OUT;
	syscall(SYS_tgkill, users[m->owner].pid, m->pid, SIGUSR1);
	want_do_it(s->dev, -EINTR);
	end_session(s->dev);
	return TAKEN;
}

int take_set(struct step *s)
{
	static const unsigned long blocks[] = { 512, 1024, 4096, 0, 1000, 256 };
	static const uint64_t sizes[] = { MIB, 16 * MIB, 1ULL << 40, 0, 1ULL << 63 };
	struct mdev *m = &devs[s->dev];
	struct mparams p = m->params;
	unsigned int pick = s->arg / 8 % 8;
	int f = file_of(s), error = 0;
	unsigned long cmd, arg;

	if (f < 0 || (m->state == RUNNING && m->netlink && skip(s, 4)))
		return LEFT_OUT;
	switch (s->arg % 8) {
	case 0:
	case 1:
		cmd = NBD_SET_SIZE;
		arg = sizes[pick % ARRAY_SIZE(sizes)];
		p.size = arg;
		break;
	case 2:
		cmd = NBD_SET_SIZE_BLOCKS;
		arg = pick ? pick * 4096 : 1ULL << 62;
		p.size = arg * p.block;
		break;
	case 3:
		/* Waits for all requests. */
		if (m->mute || m->state == RUNNING)
			return LEFT_OUT;
		cmd = NBD_SET_BLKSIZE;
		arg = blocks[pick % ARRAY_SIZE(blocks)];
		p.block = arg ?: 1024;
		break;
	case 4:
		cmd = NBD_SET_TIMEOUT;
		arg = pick ? NEVER * (pick % 2) : 1UL << 40;
		break;
	case 5:
	case 6:
		cmd = NBD_SET_FLAGS;
		arg = NBD_FLAG_HAS_FLAGS | (pick ? NBD_FLAG_CAN_MULTI_CONN : 0);
		p.multi = pick;
		break;
	default:
		want(do_ioctl(s, f, pick % 2 ? NBD_CLEAR_QUE : NBD_PRINT_DEBUG, 0), 0, "nothing");
		return TAKEN;
	}
	if (arg >= 1UL << 40 && arg != 1ULL << 40)
		error = -EINVAL;
	if ((cmd == NBD_SET_TIMEOUT && arg > NEVER) || arg == 1000 || arg == 256)
		error = -EINVAL;
	if (m->state == RUNNING && m->netlink)
		error = -EINVAL;
	want(do_ioctl(s, f, cmd, arg), error, "SET_*");
	if (!error)
		m->params = p;
	return TAKEN;
}

int take_read(struct step *s)
{
	struct mdev *m = &devs[s->dev];
	int f = file_of(s);
	struct user_call c = { .op = USER_READ, .file = f };
	bool whole, right;
	long ret;

	if (f < 0 || !io_flows(m) || (m->state != RUNNING && skip(s, 3)))
		return LEFT_OUT;
	ret = user_ask(&users[s->user], &c, -1);
	whole = ret == (long)BLOCK;
	right = whole && shared->data[0] == m->stamp && shared->data[BLOCK - 1] == m->stamp;
	if (m->state == RUNNING && m->params.size && m->alive) {
		if (!right)
			fuzz_fail("reading: %ld, data %d, not %d", ret, shared->data[0], m->stamp);
	} else if (m->state == RUNNING && m->params.size) {
		/* From the page cache. */
		if (!right && ret != -EIO)
			fuzz_fail("reading without connection: %ld", ret);
	} else if (ret > 0 && !(m->state == STOPPED && m->was_cached && !files[f].direct &&
				shared->data[0] == m->old_stamp)) {
		fuzz_fail("reading without session: %ld, data %d", ret, shared->data[0]);
	}
	return TAKEN;
}

int take_write(struct step *s)
{
	struct mdev *m = &devs[s->dev];
	int f = file_of(s);
	struct user_call c = { .op = USER_WRITE, .file = f, .arg = m->stamp };
	long ret;

	/* Errors of what is in the page cache come later, to others. */
	if (f < 0 || !io_flows(m) || (!files[f].direct && (m->state != RUNNING || !m->alive)))
		return LEFT_OUT;
	ret = user_ask(&users[s->user], &c, -1);
	if (m->state == RUNNING && m->params.size && m->alive)
		want(ret, BLOCK, "writing");
	else if (ret > 0)
		fuzz_fail("writing without session: %ld", ret);
	return TAKEN;
}

static int free_pending(void)
{
	int i;

	for (i = 0; i < PENDING && pending[i].busy; i++)
		;
	return i < PENDING ? i : -1;
}

/* A descriptor for a read from the running session, past the page cache, or -1. */
static int reader(struct step *s)
{
	struct mdev *m = &devs[s->dev];
	int f = file_of(s);

	if (f < 0 || !files[f].direct || m->state != RUNNING || m->params.size < MIB ||
	    free_pending() < 0)
		return -1;
	return f;
}

/* A read that no step waits for. */
static void start_read(struct step *s, int f)
{
	int i = free_pending();
	struct user_call c = { .op = USER_PENDING, .file = f, .slot = i };

	shared->pending[i].done = 0;
	pending[i] = (struct mpending) { .busy = true, .user = s->user, .dev = s->dev };
	want(user_ask(&users[s->user], &c, -1), 0, "thread");
}

/* While the server does not answer. */
int take_pending(struct step *s)
{
	int f = reader(s);

	if (f < 0 || io_flows(&devs[s->dev]))
		return LEFT_OUT;
	start_read(s, f);
	fuzz->count[SAW_PENDING]++;
	return TAKEN;
}

/* What servers do */

int take_mute(struct step *s)
{
	struct mdev *m = &devs[s->dev];

	if (m->state != RUNNING || !m->alive)
		return LEFT_OUT;
	mute(s->dev, !m->mute);
	return TAKEN;
}

/* NBD_CMD_LINK_DEAD came within this time. */
static bool heard(int index, int ms)
{
	struct pollfd p = { .fd = link_dead.fd, .events = POLLIN };
	long long left = scaled(ms);
	int i;

	while (poll_while(&p, 1, &left) == 1)
		if (genl_event(&link_dead, 0, &i) == NBD_CMD_LINK_DEAD && i == index)
			return true;
	return false;
}

/* A connection less; with the last one an ioctl session ends. */
static void lost(int d, long ret)
{
	struct mdev *m = &devs[d];

	fuzz->count[SAW_DEAD]++;
	m->alive--;
	if (m->alive)
		return;
	m->mute = false;
	if (!m->netlink) {
		want_do_it(d, ret);
		end_session(d);
	}
}

static void kill_server(int d, struct sock *sock)
{
	sock_close(sock);
	if (!heard(devs[d].dev.index, 1000))
		fuzz_fail("nbd%d: no LINK_DEAD", devs[d].dev.index);
	lost(d, 0);
}

int take_server_dies(struct step *s)
{
	struct sock *own[SOCKS];
	int n = kept_socks(s->dev, own);

	if (devs[s->dev].state != RUNNING || !n)
		return LEFT_OUT;
	kill_server(s->dev, own[s->arg % n]);
	return TAKEN;
}

/* What takes time */

/* This step waits, and is no step to complain about before so many milliseconds. */
static void step_waits(int ms)
{
	step_since = 0;
	step_limit = ms;
}

static void set_timeout(struct step *s, int f, unsigned int seconds)
{
	struct nl_answer r;
	struct nl_msg msg;

	if (devs[s->dev].state == RUNNING && devs[s->dev].netlink) {
		nl_begin(&msg, NBD_CMD_RECONFIGURE, devs[s->dev].dev.index);
		nl_u64(&msg, NBD_ATTR_TIMEOUT, seconds);
		want(fuzz_ask(&genl, &msg, &r), 0, "RECONFIGURE");
	} else {
		want(do_ioctl(s, f, NBD_SET_TIMEOUT, seconds), 0, "SET_TIMEOUT");
	}
}

/*
 * A request takes longer than its timeout: the connection is given up, and the others, which
 * answer now, have the request.
 */
int take_timeout(struct step *s)
{
	struct mdev *m = &devs[s->dev];
	struct sock *own[SOCKS], *gone = NULL;
	int f = reader(s), n = kept_socks(s->dev, own), i;
	long long start;

	/* Others that wait would have longer. */
	if (f < 0 || !m->alive || is_pending(s->dev))
		return LEFT_OUT;
	step_waits(5000);
	mute(s->dev, true);
	set_timeout(s, f, 1);
	start = now_ms();
	start_read(s, f);
	if (!heard(m->dev.index, 3000)) {
		fuzz_fail("nbd%d: no LINK_DEAD after the timeout", m->dev.index);
		return TAKEN;
	}
	if (now_ms() - start < 950)
		fuzz_fail("nbd%d: a timeout after %lld ms", m->dev.index, now_ms() - start);
	fuzz->count[SAW_TIMEOUTS]++;
	/* The socket is closed a moment after that is announced. */
	for (i = 0; i < n * 1000 && !gone; i++) {
		if (saw_eof(own[i % n]->fd, 1))
			gone = own[i % n];
	}
	if (!gone) {
		fuzz_fail("nbd%d: the socket is still held", m->dev.index);
		return TAKEN;
	}
	gone->state = SOCK_DROPPED;
	lost(s->dev, -ETIMEDOUT);
	if (m->alive)
		mute(s->dev, false);
	set_timeout(s, f, 0);
	return TAKEN;
}

static void set_dead_conn_timeout(int d, unsigned int seconds)
{
	struct nl_answer r;
	struct nl_msg msg;

	nl_begin(&msg, NBD_CMD_RECONFIGURE, devs[d].dev.index);
	nl_u64(&msg, NBD_ATTR_DEAD_CONN_TIMEOUT, seconds);
	want(fuzz_ask(&genl, &msg, &r), 0, "RECONFIGURE");
}

/* Does any I/O of the device still wait? */
static bool waits(int d)
{
	int i;

	for (i = 0; i < PENDING; i++)
		if (pending[i].busy && pending[i].dev == d && !shared->pending[i].done)
			return true;
	return false;
}

/* All connections are lost, and no new one comes in time: what waits has an error then. */
int take_give_up(struct step *s)
{
	struct mdev *m = &devs[s->dev];
	struct sock *own[SOCKS];
	int f = reader(s), n = kept_socks(s->dev, own);
	bool waited = !m->alive;
	long long start;

	if (m->state != RUNNING || !m->netlink || (!m->alive && io_flows(m)) ||
	    (f < 0 && !is_pending(s->dev)))
		return LEFT_OUT;
	step_waits(5000);
	start = now_ms();
	set_dead_conn_timeout(s->dev, 1);
	m->given_up = false;
	while (n)
		kill_server(s->dev, own[--n]);
	if (f >= 0)
		start_read(s, f);
	if (!WAIT_UNTIL(!waits(s->dev), 2000))
		fuzz_fail("nbd%d: I/O waits for longer than for a connection", m->dev.index);
	if (!waited && now_ms() - start < 950)
		fuzz_fail("nbd%d: I/O has waited for %lld ms", m->dev.index, now_ms() - start);
	m->given_up = true;
	fuzz->count[SAW_GIVEN_UP]++;
	set_dead_conn_timeout(s->dev, m->params.dead);
	return TAKEN;
}
