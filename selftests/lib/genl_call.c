// SPDX-License-Identifier: GPL-2.0
/*
 * Netlink requests, each from a process of its own.
 */
#include <pthread.h>

#include "nbd_genl.h"

static void *nl_send(void *arg)
{
	struct nl_call *c = arg;
	struct nl_msg *m = (void *)(c + 1);
	struct genl g;
	int ret;

	c->answer->tid = syscall(SYS_gettid);
	c->answer->index = -1;
	ret = m->before ? m->before() : 0;
	if (!ret)
		ret = genl_open(&g);
	if (ret)
		c->answer->ret = ret;
	else
		nl_exchange(g.fd, g.family, m, c->answer);
	__atomic_store_n(&c->answer->done, 1, __ATOMIC_SEQ_CST);
	return NULL;
}

/* Send a request from a new process. */
struct nl_call nl_start(struct nl_msg *m)
{
	struct nl_call c = {};

	c.answer = shared_memory(sizeof(*c.answer));
	if (!c.answer)
		exit(1);
	fflush(NULL);
	c.pid = fork();
	if (!c.pid) {
		struct {
			struct nl_call c;
			struct nl_msg m;
		} *arg = malloc(sizeof(*arg));
		int null = open("/dev/null", O_RDWR | O_CLOEXEC);
		pthread_t t;

		/* One that is stuck must not hold a pipe of the test's open. */
		dup2(null, 0);
		dup2(null, 1);
		dup2(null, 2);
		arg->c = c;
		arg->m = *m;
		if (!m->thread)
			nl_send(arg);
		else if (!pthread_create(&t, NULL, nl_send, arg))
			pthread_join(t, NULL);
		_exit(0);
	}
	return c;
}

/*
 * Its answer, which is overwritten by the next one; ret is -ETIME if there is none in time, and
 * the process is left behind.
 */
struct nl_answer *nl_wait(struct nl_call c, int ms)
{
	static struct nl_answer last;
	bool ok = WAIT_UNTIL(__atomic_load_n(&c.answer->done, __ATOMIC_SEQ_CST) || exited(c.pid),
			     ms);

	last = *c.answer;
	if (!ok)
		last.ret = -ETIME;
	else if (!last.done)
		last.ret = -EPIPE;
	if (!ok || !reap(c.pid, 1000))
		nbd_child(c.pid);
	munmap(c.answer, sizeof(*c.answer));
	return &last;
}

struct nl_answer *nl_do(struct nl_msg *m)
{
	return nl_wait(nl_start(m), BOUNDED);
}

/* A request that has nothing but an index. */
struct nl_answer *nl_simple(int cmd, int index)
{
	struct nl_msg m;

	nl_begin(&m, cmd, index);
	return nl_do(&m);
}

int nl_disconnect(int index)
{
	return nl_simple(NBD_CMD_DISCONNECT, index)->ret;
}

/* What STATUS says of one device: 0, 1, -ENODEV if it is not in the list, or another error. */
int nl_connected(int index)
{
	struct nl_answer *r = nl_simple(NBD_CMD_STATUS, index);

	if (r->ret)
		return r->ret;
	if (r->ndevs != 1 || r->dev[0].index != index)
		return -ENODEV;
	return r->dev[0].connected;
}

/* What STATUS says of one device and its session, with the connections from this one on. */
struct nl_answer *nl_status(int index, int first)
{
	struct nl_msg m;

	nl_begin(&m, NBD_CMD_STATUS, index);
	nl_u32(&m, NBD_ATTR_FIRST_CONNECTION, first);
	return nl_do(&m);
}

/* One number of a connection, or -1. */
long long nl_conn(int index, int connection, int attr)
{
	struct nl_answer *r = nl_status(index, connection);

	if (r->ret || !r->nconns || r->conn[0].value[NL_CONN_INDEX] != connection)
		return -1;
	return r->conn[0].value[attr];
}

/* The next notification of the device is this one, with this attribute. */
bool nl_event(struct genl *g, int index, int cmd, int attr, int value)
{
	int got, of, what;

	do
		got = genl_event_of(g, SOON, &of, attr, &what);
	while (got >= 0 && of != index);
	return got == cmd && what == value;
}

/* How many NBD_CMD_LINK_DEAD of this device come within this time, or are there if ms is 0. */
int nl_link_dead(struct genl *g, int index, int ms)
{
	long long end = now_ms() + ms, left;
	int n = 0, cmd, i;

	do {
		left = end - now_ms();
		cmd = genl_event(g, left > 0 ? left : 0, &i);
		if (cmd == NBD_CMD_LINK_DEAD && i == index)
			n++;
	} while (cmd >= 0);
	return n;
}
