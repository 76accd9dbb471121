// SPDX-License-Identifier: GPL-2.0
/*
 * CONNECT, DISCONNECT and STATUS: what they do.
 */
#include <pthread.h>
#include <sched.h>

#include "netlink_connect.h"

#define FAR_INDEX	200

static int highest_index(void)
{
	FILE *f = fopen("/sys/module/nbd/parameters/max_part", "re");
	int max_part = 0, shift = 0;

	if (f && fscanf(f, "%d", &max_part) != 1)
		max_part = 0;
	if (f)
		fclose(f);
	for (; max_part; max_part >>= 1)
		shift++;
	return ((1 << 20) - 1) >> shift;
}

TEST_F(connect, with_an_index)
{
	struct peer_session *s = &self->ns.s;

	ASSERT_EQ(0, nl_connect(&self->ns)) TH_LOG("%s", self->ns.answer.text);
	EXPECT_EQ(s->dev.index, self->ns.answer.index) TH_LOG("the reply's index");
	EXPECT_EQ(NL_SECTORS, nbd_sys(&s->dev, "size"));
	EXPECT_EQ(NL_BLKSIZE, nbd_sys(&s->dev, "queue/logical_block_size"));
	EXPECT_EQ(0, nbd_sys(&s->dev, "ro"));
	EXPECT_EQ(0, other_wait(other_run(s, read_all), 10000));
	EXPECT_EQ(0, nl_disconnect(s->dev.index));
	/* At once, without any wait: DISCONNECT is done when it returns. */
	EXPECT_FALSE(nbd_sys_exists(&s->dev, "pid"));
	EXPECT_FALSE(nbd_sys_exists(&s->dev, "backend"));
	EXPECT_EQ(0, nbd_sys(&s->dev, "size"));
	EXPECT_TRUE(WAIT_UNTIL(exited(s->peer[0]), SOON)) TH_LOG("the server sees no end");
}

TEST_F(connect, again_and_again)
{
	struct peer_session *s = &self->ns.s;
	int i;

	for (i = 0; i < 10; i++) {
		ASSERT_EQ(0, nl_connect(&self->ns)) TH_LOG("round %d", i);
		ASSERT_EQ(0, other_wait(other_run(s, read_block), BOUNDED));
		ASSERT_EQ(0, nl_disconnect(s->dev.index));
		ASSERT_TRUE(WAIT_UNTIL(exited(s->peer[0]), SOON));
	}
}

TEST_F(connect, over_tcp)
{
	struct peer_session *s = &self->ns.s;

	s->tcp = true;
	ASSERT_EQ(0, nl_connect(&self->ns));
	EXPECT_EQ(0, other_wait(other_run(s, read_all), 10000));
	EXPECT_EQ(0, nl_disconnect(s->dev.index));
	EXPECT_TRUE(WAIT_UNTIL(exited(s->peer[0]), SOON));
}

TEST_F(connect, four_sockets)
{
	struct peer_session *s = &self->ns.s;
	int i;

	s->npeers = 4;
	ASSERT_EQ(0, nl_connect(&self->ns));
	EXPECT_EQ(0, other_wait(other_run(s, read_all), 10000));
	EXPECT_EQ(0, nl_disconnect(s->dev.index));
	for (i = 0; i < 4; i++)
		EXPECT_TRUE(WAIT_UNTIL(exited(s->peer[i]), SOON)) TH_LOG("connection %d", i);
}

TEST_F(connect, four_sockets_without_multi_conn_is_einval)
{
	struct nl_session *ns = &self->ns;
	struct nl_msg m;
	int i;

	ns->s.npeers = 4;
	ASSERT_EQ(0, nl_peers(ns));
	nl_begin(&m, NBD_CMD_CONNECT, ns->s.dev.index);
	nl_u64(&m, NBD_ATTR_SIZE_BYTES, PEER_SIZE);
	nl_u64(&m, NBD_ATTR_SERVER_FLAGS, NL_FLAGS);
	nl_socks(&m, ns->s.fd, 4);
	EXPECT_EQ(-EINVAL, nl_finish(ns, &m));
	nl_expect_why(_metadata, &ns->answer, nl_offset(&m, NBD_ATTR_SOCKETS),
		      "multiple connections");
	EXPECT_TRUE(nbd_idle(&ns->s.dev));
	for (i = 0; i < 4; i++)
		EXPECT_TRUE(WAIT_UNTIL(exited(ns->s.peer[i]), SOON)) TH_LOG("connection %d", i);
	ASSERT_EQ(0, nl_connect(ns));
}

TEST_F(connect, more_than_256_sockets_is_enospc)
{
	struct nl_session *ns = &self->ns;
	struct nl_msg m;
	int fd[257], i;

	if (!nbd_is_rust())
		SKIP(return, "the C driver takes any number");
	/* One socket so many times, without any I/O. */
	ASSERT_EQ(0, nl_peers(ns));
	for (i = 0; i < 257; i++)
		fd[i] = ns->s.fd[0];
	nl_begin_connect(&m, ns, ns->s.dev.index, fd, 257);
	EXPECT_EQ(-ENOSPC, nl_finish(ns, &m));
	nl_expect_why(_metadata, &ns->answer, nl_offset(&m, NBD_ATTR_SOCKETS), "256 sockets");
	EXPECT_TRUE(nbd_idle(&ns->s.dev));
	EXPECT_EQ(0, nl_connected(ns->s.dev.index));
	EXPECT_TRUE(WAIT_UNTIL(exited(ns->s.peer[0]), SOON)) TH_LOG("the socket is kept");
	ASSERT_EQ(0, nl_connect(ns));
}

/* Without an index: the first idle device, and a new one where there is none. */
TEST_F(connect, without_an_index)
{
	struct nl_session *ns = &self->ns;
	struct nl_answer *all;
	struct nl_msg m;
	int i, first = -1;

	all = nl_simple(NBD_CMD_STATUS, -1);
	ASSERT_EQ(0, all->ret);
	for (i = 0; i < all->ndevs; i++)
		if (!all->dev[i].connected && (first < 0 || all->dev[i].index < first))
			first = all->dev[i].index;
	ASSERT_LE(0, first);
	ASSERT_EQ(0, nl_peers(ns));
	nl_begin_connect(&m, ns, -1, ns->s.fd, 1);
	ASSERT_EQ(0, nl_finish(ns, &m));
	EXPECT_EQ(first, ns->answer.index);
	nl_use(ns, ns->answer.index);
	EXPECT_TRUE(nbd_running(&ns->s.dev));
	EXPECT_EQ(0, other_wait(other_run(&ns->s, read_block), BOUNDED));
}

/* Connect without an index until that makes a new device; returns how many it connected. */
static int take_all(struct __test_metadata *_metadata, struct nl_session *ns, int taken[256])
{
	struct nl_answer before = *nl_simple(NBD_CMD_STATUS, -1);
	struct nl_msg m;
	int n = 0, i;

	/* All of them have the same server, which gets no request. */
	ASSERT_EQ(0, nl_peers(ns));
	do {
		nl_begin_connect(&m, ns, -1, ns->s.fd, 1);
		ns->answer = *nl_do(&m);
		ASSERT_EQ(0, ns->answer.ret) TH_LOG("%d are taken", n);
		taken[n++] = ns->answer.index;
		for (i = 0; i < before.ndevs && before.dev[i].index != taken[n - 1]; i++)
			;
	} while (i < before.ndevs && n < 256);
	EXPECT_EQ(before.ndevs, i) TH_LOG("no new device");
	EXPECT_LE(NBD_DEVICES, ns->answer.index);
	return n;
}

TEST_F(connect, without_an_index_when_all_are_busy)
{
	struct nl_session *ns = &self->ns;
	int taken[256], n, i, picked = ns->s.dev.index;
	struct nl_answer *all;

	n = take_all(_metadata, ns, taken);
	all = nl_simple(NBD_CMD_STATUS, -1);
	EXPECT_EQ(0, all->ret);
	for (i = 0; i < all->ndevs; i++)
		if (all->dev[i].index < taken[n - 1])
			EXPECT_EQ(1, all->dev[i].connected) TH_LOG("nbd%d", all->dev[i].index);
	nl_use(ns, taken[n - 1]);
	EXPECT_TRUE(nbd_running(&ns->s.dev));
	nl_close_ends(&ns->s);
	ns->s.sh->close[0] = 1;
	for (i = 0; i < n; i++)
		EXPECT_EQ(0, nl_disconnect(taken[i]));
	nl_use(ns, picked);
}

/* A client sets a socket up, and has a child start the session: it exits before. */
TEST_F(connect, without_an_index_leaves_a_setup_alone)
{
	struct nl_session *ns = &self->ns;
	int taken[256], n, i, pair[2];
	struct agent client, child;
	uint32_t do_it;
	struct toy toy;

	ASSERT_EQ(0, agent_start(&client, ns->s.dev.path));
	ASSERT_EQ(0, agent_open(&client));
	ASSERT_EQ(0, make_pair(KIND_UNIX, pair));
	ASSERT_EQ(0, agent_set_sock(&client, &pair[0]));
	ASSERT_EQ(0, toy_start(&toy, pair[1], TOY_OBEDIENT));
	ASSERT_EQ(0, agent_ioctl(&client, NBD_SET_SIZE, SESSION_SIZE));
	ASSERT_EQ(0, agent_fork(&client, &child));
	ASSERT_TRUE(agent_kill(&client));
	n = take_all(_metadata, ns, taken);
	for (i = 0; i < n; i++)
		EXPECT_NE(ns->s.dev.index, taken[i]);
	nl_close_ends(&ns->s);
	ns->s.sh->close[0] = 1;
	do_it = agent_do_it(&child);
	EXPECT_TRUE(WAIT_UNTIL(nbd_running(&ns->s.dev), BOUNDED));
	EXPECT_EQ(0, agent_ioctl(&child, NBD_DISCONNECT, 0));
	EXPECT_EQ(0, agent_wait(&child, do_it, BOUNDED));
	EXPECT_EQ(0, agent_close(&child));
	for (i = 0; i < n; i++)
		EXPECT_EQ(0, nl_disconnect(taken[i]));
}

/* A thread that opens a new device before its maker goes on, and sets it up. */
struct opener {
	int events, sock, index, fd, error;
};

static void *open_new(void *arg)
{
	struct sched_param first = { .sched_priority = 1 };
	struct opener *o = arg;
	char path[32];

	if (pthread_setschedparam(pthread_self(), SCHED_FIFO, &first))
		return NULL;
	o->index = uevent(o->events, "add");
	snprintf(path, sizeof(path), "/dev/nbd%d", o->index);
	o->fd = open(path, O_RDWR | O_CLOEXEC);
	o->error = ioctl(o->fd, NBD_SET_SOCK, o->sock) ? errno : 0;
	return NULL;
}

TEST_F_TIMEOUT(connect, without_an_index_although_somebody_is_quicker, 60)
{
	struct opener opener = { .events = uevents(), .fd = -1, .error = -1 };
	struct nl_session *ns = &self->ns;
	int taken[256], n, i;
	pthread_t thread;
	cpu_set_t one;

	ASSERT_LE(0, opener.events);
	ASSERT_EQ(0, make_pair(KIND_UNIX, self->pair));
	opener.sock = self->pair[0];
	CPU_ZERO(&one);
	CPU_SET(0, &one);
	ASSERT_EQ(0, sched_setaffinity(0, sizeof(one), &one));
	ASSERT_EQ(0, pthread_create(&thread, NULL, open_new, &opener));
	n = take_all(_metadata, ns, taken);
	pthread_join(thread, NULL);
	for (i = 0; i < n; i++)
		EXPECT_EQ(0, nl_disconnect(taken[i]));
	if (opener.fd < 0)
		SKIP(return, "nobody can open a new device before it is connected");
	EXPECT_EQ(0, opener.error) TH_LOG("nbd%d", opener.index);
	for (i = 0; i < n; i++)
		EXPECT_NE(opener.index, taken[i]);
	EXPECT_FALSE(saw_eof(self->pair[1], 1));
	close(opener.fd);
	EXPECT_TRUE(saw_eof(self->pair[1], SOON));
}

TEST_F(connect, makes_a_device_that_is_not_there)
{
	struct nl_session *ns = &self->ns;
	int picked = ns->s.dev.index;

	nl_use(ns, FAR_INDEX);
	EXPECT_EQ(0, nl_connect(ns));
	EXPECT_EQ(FAR_INDEX, ns->answer.index);
	EXPECT_EQ(0, access(ns->s.dev.path, F_OK));
	EXPECT_EQ(1, nl_connected(FAR_INDEX));
	EXPECT_EQ(0, other_wait(other_run(&ns->s, read_block), BOUNDED));
	EXPECT_EQ(0, nl_disconnect(FAR_INDEX));
	EXPECT_EQ(0, nl_connected(FAR_INDEX)) TH_LOG("it stays");
	EXPECT_EQ(0, access(ns->s.dev.path, F_OK));
	nl_use(ns, picked);
}

static void expect_bad_index(struct __test_metadata *_metadata, struct nl_msg *m,
			     const char *words)
{
	struct nl_answer *r = nl_do(m);

	EXPECT_EQ(-EINVAL, r->ret);
	nl_expect_why(_metadata, r, nl_offset(m, NBD_ATTR_INDEX), words);
}

TEST_F(connect, highest_index)
{
	struct nl_session *ns = &self->ns;
	int picked = ns->s.dev.index, highest = highest_index();
	struct nl_msg m;

	ASSERT_EQ(0, nl_peers(ns));
	nl_begin_connect(&m, ns, highest + 1, ns->s.fd, 1);
	expect_bad_index(_metadata, &m, "too large");
	nl_begin_connect(&m, ns, INT32_MAX, ns->s.fd, 1);
	expect_bad_index(_metadata, &m, "too large");
	nl_begin(&m, NBD_CMD_CONNECT, -1);
	nl_u32(&m, NBD_ATTR_INDEX, 0xffffffff);
	nl_u64(&m, NBD_ATTR_SIZE_BYTES, PEER_SIZE);
	nl_socks(&m, ns->s.fd, 1);
	expect_bad_index(_metadata, &m, "too large");
	nl_use(ns, highest);
	nl_begin_connect(&m, ns, highest, ns->s.fd, 1);
	nl_u64(&m, NBD_ATTR_CLIENT_FLAGS, NBD_CFLAG_DESTROY_ON_DISCONNECT);
	EXPECT_EQ(0, nl_finish(ns, &m));
	EXPECT_TRUE(WAIT_UNTIL(nbd_running(&ns->s.dev), SOON));
	EXPECT_EQ(0, nl_disconnect(highest));
	nl_use(ns, picked);
}

TEST_F(connect, pid_is_the_thread_that_connects)
{
	struct nl_session *ns = &self->ns;
	struct nl_call call;
	struct nl_msg m;

	ASSERT_EQ(0, nl_peers(ns));
	nl_begin_connect(&m, ns, ns->s.dev.index, ns->s.fd, 1);
	m.thread = true;
	call = nl_start(&m);
	ns->answer = *nl_wait(call, BOUNDED);
	ASSERT_EQ(0, ns->answer.ret);
	EXPECT_NE(call.pid, ns->answer.tid);
	EXPECT_EQ(ns->answer.tid, nbd_sys(&ns->s.dev, "pid"));
}

TEST_F(connect, backend_identifier)
{
	struct nl_session *ns = &self->ns;
	const char *text;

	ns->backend = "some image";
	ASSERT_EQ(0, nl_connect(ns));
	text = nbd_sys_text(&ns->s.dev, "backend");
	ASSERT_NE(NULL, text);
	EXPECT_STREQ("some image\n", text);
	EXPECT_EQ(0, nl_disconnect(ns->s.dev.index));
	EXPECT_FALSE(nbd_sys_exists(&ns->s.dev, "backend"));
	/* Nothing is left of it in the next session. */
	ns->backend = NULL;
	ASSERT_EQ(0, nl_connect(ns));
	text = nbd_sys_text(&ns->s.dev, "backend");
	ASSERT_NE(NULL, text);
	EXPECT_STREQ("\n", text);
}

TEST_F(connect, read_only)
{
	struct peer_session *s = &self->ns.s;

	s->flags = NBD_FLAG_READ_ONLY;
	ASSERT_EQ(0, nl_connect(&self->ns));
	EXPECT_EQ(1, nbd_sys(&s->dev, "ro"));
	EXPECT_EQ(0, other_wait(other_run(s, read_block), BOUNDED));
	EXPECT_EQ(0, nl_disconnect(s->dev.index));
	s->flags = 0;
	ASSERT_EQ(0, nl_connect(&self->ns));
	EXPECT_EQ(0, nbd_sys(&s->dev, "ro"));
}

TEST_F(connect, timeout)
{
	struct peer_session *s = &self->ns.s;

	s->timeout = 7;
	ASSERT_EQ(0, nl_connect(&self->ns));
	EXPECT_EQ(7000, nbd_sys(&s->dev, "queue/io_timeout"));
}

TEST_F(connect, default_block_size)
{
	struct nl_session *ns = &self->ns;
	struct nl_msg m;

	ASSERT_EQ(0, nl_peers(ns));
	nl_begin(&m, NBD_CMD_CONNECT, ns->s.dev.index);
	nl_socks(&m, ns->s.fd, 1);
	nl_u64(&m, NBD_ATTR_SIZE_BYTES, PEER_SIZE);
	ASSERT_EQ(0, nl_finish(ns, &m));
	EXPECT_EQ(1024, nbd_sys(&ns->s.dev, "queue/logical_block_size"));
	EXPECT_EQ(NL_SECTORS, nbd_sys(&ns->s.dev, "size"));
}

TEST_F(connect, change_uevent)
{
	int fd = uevents();

	ASSERT_LE(0, fd);
	ASSERT_EQ(0, nl_connect(&self->ns));
	EXPECT_TRUE(uevent_of(fd, "change", &self->ns.s.dev));
	close(fd);
}

TEST_F(connect, connected_already_is_ebusy)
{
	struct nl_session *ns = &self->ns;
	struct nl_msg m;

	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_EQ(0, make_pair(KIND_UNIX, self->pair));
	nl_begin_connect(&m, ns, ns->s.dev.index, self->pair, 1);
	ns->answer = *nl_do(&m);
	EXPECT_EQ(-EBUSY, ns->answer.ret);
	nl_expect_why(_metadata, &ns->answer, 0, "a session is running");
	close(self->pair[0]);
	EXPECT_TRUE(saw_eof(self->pair[1], SOON)) TH_LOG("the refused socket is kept");
	EXPECT_EQ(0, other_wait(other_run(&ns->s, read_block), BOUNDED));
}

TEST_F(connect, second_disconnect_is_harmless)
{
	struct nl_session *ns = &self->ns;

	EXPECT_EQ(0, nl_disconnect(ns->s.dev.index)) TH_LOG("never connected");
	ASSERT_EQ(0, nl_connect(ns));
	EXPECT_EQ(0, nl_disconnect(ns->s.dev.index));
	EXPECT_EQ(0, nl_disconnect(ns->s.dev.index));
	EXPECT_EQ(0, nl_disconnect(ns->s.dev.index));
	ASSERT_EQ(0, nl_connect(ns));
	EXPECT_EQ(0, other_wait(other_run(&ns->s, read_block), BOUNDED));
}

/* Two at once: each returns, and the device is free when either has. */
TEST_F(connect, two_disconnects_at_once)
{
	struct nl_session *ns = &self->ns;
	struct nl_call a, b;
	struct nl_msg m;
	int i;

	for (i = 0; i < 5; i++) {
		ASSERT_EQ(0, nl_connect(ns));
		nl_begin(&m, NBD_CMD_DISCONNECT, ns->s.dev.index);
		a = nl_start(&m);
		b = nl_start(&m);
		EXPECT_EQ(0, nl_wait(a, BOUNDED)->ret);
		EXPECT_EQ(0, nl_wait(b, BOUNDED)->ret);
		EXPECT_TRUE(nbd_idle(&ns->s.dev));
		EXPECT_TRUE(WAIT_UNTIL(exited(ns->s.peer[0]), SOON));
	}
}

TEST_F(connect, disconnect_of_an_unknown_index_is_einval)
{
	struct nl_msg m;

	nl_begin(&m, NBD_CMD_DISCONNECT, FAR_INDEX + 1);
	expect_bad_index(_metadata, &m, "no such device");
	nl_begin(&m, NBD_CMD_DISCONNECT, highest_index() + 1);
	expect_bad_index(_metadata, &m, "no such device");
	nl_begin(&m, NBD_CMD_RECONFIGURE, FAR_INDEX + 1);
	expect_bad_index(_metadata, &m, "no such device");
}

/* STATUS */

TEST_F(connect, status_of_one)
{
	struct nl_session *ns = &self->ns;
	int index = ns->s.dev.index;

	EXPECT_EQ(0, nl_connected(index));
	ASSERT_EQ(0, nl_connect(ns));
	EXPECT_EQ(1, nl_connected(index));
	EXPECT_EQ(0, nl_disconnect(index));
	EXPECT_EQ(0, nl_connected(index));
}

TEST_F(connect, status_of_all)
{
	struct nl_session *ns = &self->ns;
	bool seen[NBD_DEVICES] = {};
	struct nl_answer *r;
	int i, n = 0;

	ASSERT_EQ(0, nl_connect(ns));
	r = nl_simple(NBD_CMD_STATUS, -1);
	ASSERT_EQ(0, r->ret);
	for (i = 0; i < r->ndevs; i++) {
		struct nbd_dev d = { .index = r->dev[i].index };

		EXPECT_TRUE(nbd_sys_exists(&d, "size")) TH_LOG("nbd%d", d.index);
		EXPECT_EQ(nbd_running(&d), r->dev[i].connected) TH_LOG("nbd%d", d.index);
		if (d.index >= 0 && d.index < NBD_DEVICES && !seen[d.index]) {
			seen[d.index] = true;
			n++;
		}
	}
	EXPECT_EQ(NBD_DEVICES, n) TH_LOG("not all devices are in the list");
}

TEST_F(connect, status_of_an_unknown_index_is_an_empty_list)
{
	struct nl_answer *r = nl_simple(NBD_CMD_STATUS, FAR_INDEX + 1);

	EXPECT_EQ(0, r->ret);
	EXPECT_EQ(0, r->ndevs);
}

TEST_F(connect, status_of_an_idle_device_that_is_open)
{
	struct agent a;

	ASSERT_EQ(0, agent_start(&a, self->ns.s.dev.path));
	ASSERT_EQ(0, agent_open(&a));
	EXPECT_EQ(0, nl_connected(self->ns.s.dev.index));
	EXPECT_EQ(0, agent_close(&a));
}

TEST_F(connect, status_after_the_end_while_open)
{
	struct nl_session *ns = &self->ns;
	struct agent a;

	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_EQ(0, agent_start(&a, ns->s.dev.path));
	ASSERT_EQ(0, agent_open(&a));
	EXPECT_EQ(1, nl_connected(ns->s.dev.index));
	EXPECT_EQ(0, nl_disconnect(ns->s.dev.index));
	EXPECT_EQ(0, nl_connected(ns->s.dev.index));
	EXPECT_FALSE(nbd_sys_exists(&ns->s.dev, "pid"));
	EXPECT_EQ(0, agent_close(&a));
}

TEST_F(connect, status_of_an_ioctl_session)
{
	struct session io;
	struct nbd_dev *d = &self->ns.s.dev;

	ASSERT_EQ(0, session_setup(&io, d, KIND_UNIX, TOY_OBEDIENT));
	EXPECT_EQ(0, nl_connected(d->index)) TH_LOG("set up, not started");
	ASSERT_EQ(0, session_run(&io));
	EXPECT_EQ(1, nl_connected(d->index));
	EXPECT_EQ(0, agent_ioctl(&io.client, NBD_DISCONNECT, 0));
	EXPECT_EQ(0, agent_wait(&io.client, io.do_it, BOUNDED));
	EXPECT_EQ(0, nl_connected(d->index)) TH_LOG("still open");
}

TEST_HARNESS_MAIN
