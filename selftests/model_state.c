// SPDX-License-Identifier: GPL-2.0
/*
 * The model of fuzz_model: in what state each device must be.
 */
#include "model.h"

struct mdev devs[DEVS];
struct mfile files[FILES];
struct mpending pending[PENDING];
struct genl genl, link_dead;
const struct mparams defaults = { .block = 1024 };
bool wrong_model;

static unsigned char stamps;

int openers(int d)
{
	int i, n = 0;

	for (i = 0; i < FILES; i++)
		n += files[i].users && files[i].dev == d;
	return n;
}

/* One of the user's descriptors of the device, or -1. */
int file_of(struct step *s)
{
	int own[FILES], i, n = 0;

	if (!users[s->user].pid)
		return -1;
	for (i = 0; i < FILES; i++)
		if (files[i].users & (1U << s->user) && files[i].dev == s->dev)
			own[n++] = i;
	return n ? own[(s->arg >> 24) % n] : -1;
}

bool is_pending(int d)
{
	int i;

	for (i = 0; i < PENDING; i++)
		if (pending[i].busy && pending[i].dev == d)
			return true;
	return false;
}

/* What is nearly always refused is tried now and then: is this one to be left out? */
bool skip(struct step *s, unsigned int n)
{
	return (s->arg >> 4) * 2654435761U % 65537 % n;
}

/* A descriptor that is no socket for the driver, and what it says to that. */
int bad_fd(unsigned int kind, int *error)
{
	*error = -EINVAL;
	switch (kind % 4) {
	case 0:
		*error = -EBADF;
		return -1;
	case 1:
		*error = -ENOTSOCK;
		return open("/dev/null", O_RDWR | O_CLOEXEC);
	case 2:
		return socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	default:
		return socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	}
}

/* Does input and output end by itself? */
bool io_flows(struct mdev *m)
{
	return m->state != RUNNING ||
	       (m->alive ? !m->mute : !m->params.dead || m->given_up);
}

void want(long got, long expected, const char *what)
{
	if (got != expected)
		fuzz_fail("%s: %ld, not %ld", what, got, expected);
}

/* The sockets that the driver must have of a device. */
int kept_socks(int d, struct sock **own)
{
	int i, n = 0;

	for (i = 0; i < SOCKS; i++)
		if (socks[i].state == SOCK_KEPT && socks[i].dev == d)
			own[n++] = &socks[i];
	return n;
}

/* Have all servers of the device stop reading, or go on. */
void mute(int d, bool on)
{
	struct sock *own[SOCKS];
	int n = kept_socks(d, own);

	devs[d].mute = on;
	while (n)
		sock_mute(own[--n], on);
}

/* All sockets of the device are to go. */
static void drop_socks(int d)
{
	struct sock *own[SOCKS];
	int n = kept_socks(d, own);

	while (n)
		own[--n]->state = SOCK_DROPPED;
}

void to_idle(int d, struct mparams params)
{
	struct mdev *m = &devs[d];

	drop_socks(d);
	m->state = IDLE;
	m->params = params;
	m->shown = 0;
	m->was_cached = false;
	m->mute = false;
	m->netlink = false;
}

/* The session has ended. */
void ended(int d)
{
	struct mdev *m = &devs[d];

	drop_socks(d);
	m->mute = false;
	if (!openers(d)) {
		to_idle(d, defaults);
		return;
	}
	/* Its openers still see its size, and get errors; not the task in NBD_DO_IT. */
	m->shown = openers(d) > (m->netlink ? 0 : 1) ? m->params.size : 0;
	m->state = STOPPED;
	m->old_stamp = m->stamp;
	m->was_cached = true;
}

static void gone_if_destroyed(int d, unsigned int client)
{
	struct mdev *m = &devs[d];

	if (m->state != IDLE || !(client & NBD_CFLAG_DESTROY_ON_DISCONNECT))
		return;
	m->state = ABSENT;
	fuzz->count[SAW_REMOVED]++;
}

void end_session(int d)
{
	unsigned int client = devs[d].params.client;

	ended(d);
	gone_if_destroyed(d, client);
}

void want_do_it(int d, long ret)
{
	struct user_thread *t = &shared->do_it[d];

	if (!WAIT_UNTIL(t->done, 1000))
		fuzz_fail("nbd%d: DO_IT has not returned", devs[d].dev.index);
	else
		want(t->ret, ret, "DO_IT");
}

/* The task in NBD_DO_IT has left it before the step is over. */
void end_on_request(int d)
{
	if (!devs[d].netlink)
		want_do_it(d, 0);
	end_session(d);
}

/* A descriptor has one user less. */
void drop_file(int f, int user)
{
	int d = files[f].dev;
	struct mdev *m = &devs[d];
	unsigned int client = m->params.client;

	files[f].users &= ~(1U << user);
	if (files[f].users || openers(d))
		return;
	switch (m->state) {
	case RUNNING:
		if (client & NBD_CFLAG_DISCONNECT_ON_CLOSE)
			end_session(d);
		break;
	case STOPPED:
		to_idle(d, defaults);
		gone_if_destroyed(d, client);
		break;
	case IDLE:
	case SETUP:
		to_idle(d, defaults);
		break;
	case ABSENT:
		break;
	}
}

void session_starts(int d, bool netlink)
{
	struct mdev *m = &devs[d];
	struct sock *own[SOCKS];
	int i;

	stamps = stamps % 0x7e + 1;
	m->stamp = stamps;
	m->state = RUNNING;
	m->netlink = netlink;
	fuzz->count[netlink ? SAW_NETLINK : SAW_IOCTL]++;
	m->mute = false;
	m->given_up = false;
	m->was_cached = false;
	pthread_mutex_lock(&socks_lock);
	m->conns = kept_socks(d, own);
	for (i = 0; i < m->conns; i++)
		own[i]->stamp = stamps;
	pthread_mutex_unlock(&socks_lock);
	m->alive = m->conns;
}
