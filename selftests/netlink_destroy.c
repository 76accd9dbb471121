// SPDX-License-Identifier: GPL-2.0
/*
 * What the client flags ask for: the device goes when it is disconnected, or the session when the
 * device is closed.
 */
#include "kselftest_harness.h"
#include "nbd_expect.h"
#include "nbd_nlpeer.h"

#define END_MS		2000
#define INDEX		220
#define DESTROY		NBD_CFLAG_DESTROY_ON_DISCONNECT
#define ON_CLOSE	NBD_CFLAG_DISCONNECT_ON_CLOSE

static bool gone(struct nbd_dev *d)
{
	return !nbd_sys_exists(d, "size") && access(d->path, F_OK) &&
	       nl_connected(d->index) == -ENODEV;
}

static int holder(struct agent *a, struct nbd_dev *d)
{
	return agent_start(a, d->path) ?: agent_open(a);
}

FIXTURE(destroy)
{
	struct nl_session ns;
	struct agent a;
	int picked;
};

FIXTURE_SETUP(destroy)
{
	const char *why = nl_init(&self->ns, 1, PEER_GOOD);

	if (why)
		SKIP(return, "%s", why);
	/* Not one of those that other tests use. */
	self->picked = self->ns.s.dev.index;
	nl_use(&self->ns, INDEX);
	self->ns.cflags = DESTROY;
}

FIXTURE_TEARDOWN(destroy)
{
	struct nl_session *ns = &self->ns;

	if (self->a.pid)
		agent_kill(&self->a);
	nl_disconnect(ns->s.dev.index);
	nl_use(ns, self->picked);
	EXPECT_TRUE(nl_cleanup(ns));
}

TEST_F(destroy, gone_at_once)
{
	struct nl_session *ns = &self->ns;

	ASSERT_EQ(0, nl_connect(ns));
	EXPECT_EQ(0, other_wait(other_run(&ns->s, read_block), BOUNDED));
	EXPECT_EQ(0, nl_disconnect(INDEX));
	EXPECT_TRUE(WAIT_UNTIL(gone(&ns->s.dev), SOON));
	EXPECT_TRUE(WAIT_UNTIL(exited(ns->s.peer[0]), SOON));
	EXPECT_EQ(-EINVAL, nl_disconnect(INDEX));
}

TEST_F(destroy, gone_after_the_last_close)
{
	struct nl_session *ns = &self->ns;
	struct agent b;

	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_EQ(0, holder(&self->a, &ns->s.dev));
	ASSERT_EQ(0, holder(&b, &ns->s.dev));
	EXPECT_EQ(0, nl_disconnect(INDEX));
	EXPECT_TRUE(nbd_sys_exists(&ns->s.dev, "size"));
	EXPECT_GE(0, agent_read(&self->a, 8192, 4096)) TH_LOG("data after the end");
	EXPECT_EQ(0, agent_close(&b));
	EXPECT_TRUE(nbd_sys_exists(&ns->s.dev, "size"));
	EXPECT_EQ(0, agent_close(&self->a));
	EXPECT_TRUE(WAIT_UNTIL(gone(&ns->s.dev), SOON));
}

TEST_F(destroy, can_be_connected_again_at_once)
{
	struct nl_session *ns = &self->ns;
	int i;

	for (i = 0; i < 30; i++) {
		ASSERT_EQ(0, nl_connect(ns)) TH_LOG("round %d: %d", i, ns->answer.ret);
		EXPECT_EQ(1, nl_connected(INDEX));
		ASSERT_EQ(0, nl_disconnect(INDEX)) TH_LOG("round %d", i);
		ASSERT_TRUE(WAIT_UNTIL(exited(ns->s.peer[0]), SOON));
	}
	EXPECT_TRUE(WAIT_UNTIL(gone(&ns->s.dev), SOON));
}

/* While the old one is open it is refused, soon, and possible as soon as that is over. */
TEST_F(destroy, connect_while_it_is_going_down)
{
	struct nl_session *ns = &self->ns;
	int ret;

	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_EQ(0, holder(&self->a, &ns->s.dev));
	EXPECT_EQ(0, nl_disconnect(INDEX));
	ret = nl_connect(ns);
	EXPECT_TRUE(ret == -EBUSY || ret == -EINVAL) TH_LOG("%d", ret);
	EXPECT_TRUE(WAIT_UNTIL(exited(ns->s.peer[0]), SOON)) TH_LOG("the refused socket is kept");
	EXPECT_EQ(0, agent_close(&self->a));
	ASSERT_EQ(0, nl_connect(ns));
	EXPECT_EQ(0, other_wait(other_run(&ns->s, read_block), BOUNDED));
}

TEST_F(destroy, cleared_by_reconfigure)
{
	struct nl_session *ns = &self->ns;

	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_EQ(0, nl_change(ns, NBD_ATTR_CLIENT_FLAGS, 0));
	EXPECT_EQ(0, nl_disconnect(INDEX));
	EXPECT_FALSE(WAIT_UNTIL(gone(&ns->s.dev), 300));
	EXPECT_EQ(0, nl_connected(INDEX));
	/* And the next session does not remember it either. */
	ns->cflags = 0;
	ASSERT_EQ(0, nl_connect(ns));
	EXPECT_EQ(0, nl_disconnect(INDEX));
	EXPECT_EQ(0, nl_connected(INDEX));
}

TEST_F(destroy, set_by_reconfigure)
{
	struct nl_session *ns = &self->ns;

	ns->cflags = 0;
	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_EQ(0, nl_change(ns, NBD_ATTR_CLIENT_FLAGS, DESTROY));
	EXPECT_EQ(0, other_wait(other_run(&ns->s, read_block), BOUNDED));
	EXPECT_EQ(0, nl_disconnect(INDEX));
	EXPECT_TRUE(WAIT_UNTIL(gone(&ns->s.dev), SOON));
}

TEST_F(destroy, toggled_many_times)
{
	struct nl_session *ns = &self->ns;
	int i;

	ASSERT_EQ(0, nl_connect(ns));
	for (i = 0; i < 20; i++)
		ASSERT_EQ(0, nl_change(ns, NBD_ATTR_CLIENT_FLAGS, i % 3 ? DESTROY : 0));
	EXPECT_EQ(1, nl_connected(INDEX));
	EXPECT_EQ(0, nl_disconnect(INDEX));
	EXPECT_TRUE(WAIT_UNTIL(gone(&ns->s.dev), SOON));
}

TEST_F(destroy, one_of_the_module)
{
	struct nl_session *ns = &self->ns;

	nl_use(ns, self->picked);
	ASSERT_EQ(0, nl_connect(ns));
	EXPECT_EQ(0, nl_disconnect(self->picked));
	EXPECT_TRUE(WAIT_UNTIL(gone(&ns->s.dev), SOON));
	ns->cflags = 0;
	ASSERT_EQ(0, nl_connect(ns));
	EXPECT_EQ(0, nl_disconnect(self->picked));
	EXPECT_EQ(0, nl_connected(self->picked));
}

TEST_F(destroy, when_clear_sock_ends_the_session)
{
	struct nl_session *ns = &self->ns;

	ASSERT_EQ(0, nl_connect(ns));
	EXPECT_EQ(0, other_wait(other_ioctl(&ns->s, NBD_CLEAR_SOCK), END_MS));
	EXPECT_TRUE(WAIT_UNTIL(gone(&ns->s.dev), SOON));
}

/* It was not disconnected: it stays when the server dies. */
TEST_F(destroy, stays_when_the_server_dies)
{
	struct nl_session *ns = &self->ns;

	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_TRUE(nl_kill_peer(&ns->s, 0));
	EXPECT_FALSE(WAIT_UNTIL(gone(&ns->s.dev), 300));
	EXPECT_EQ(1, nl_connected(INDEX));
	EXPECT_EQ(0, nl_disconnect(INDEX));
	EXPECT_TRUE(WAIT_UNTIL(gone(&ns->s.dev), SOON));
}

TEST_F(destroy, opened_and_closed_all_the_time)
{
	struct nl_session *ns = &self->ns;

	nl_connect_while_opened(_metadata, ns, EINVAL);
	EXPECT_TRUE(WAIT_UNTIL(gone(&ns->s.dev), SOON));
}

/* CONNECT, DISCONNECT, RECONFIGURE and opening at random, from several processes at once. */
TEST_F(destroy, everything_at_once)
{
	struct nl_session *ns = &self->ns;
	atomic_uint *worst = &ns->s.sh->error;
	int i, n, fd[2];
	pid_t pid[4];
	char zero = 0;

	for (n = 0; n < 4; n++) {
		pid[n] = fork_quiet();
		if (pid[n])
			continue;
		srandom(n + 1);
		for (i = 0; i < 40; i++) {
			int ret = 0, open_fd;
			struct nl_msg m;

			switch (random() % 4) {
			case 0:
				if (make_pair(KIND_UNIX, fd))
					_exit(1);
				nl_begin_connect(&m, ns, INDEX, fd, 1);
				/* It has no server, so that all I/O fails at once. */
				shutdown(fd[1], SHUT_RDWR);
				ret = nl_do(&m)->ret;
				close(fd[0]);
				close(fd[1]);
				break;
			case 1:
				ret = nl_disconnect(INDEX);
				break;
			case 2:
				ret = nl_change(ns, NBD_ATTR_CLIENT_FLAGS, random() % 4);
				break;
			case 3:
				open_fd = open(ns->s.dev.path, O_RDONLY | O_CLOEXEC);
				if (open_fd >= 0 && pread(open_fd, &zero, 1, 0) > 0)
					*worst = 1;
				close(open_fd);
				break;
			}
			if (ret && ret != -EBUSY && ret != -EINVAL)
				*worst = -ret;
		}
		_exit(0);
	}
	for (n = 0; n < 4; n++)
		EXPECT_EQ(0, other_wait(pid[n], 20000));
	EXPECT_EQ(0, (int)*worst);
	*worst = 0;
	nl_disconnect(INDEX);
	EXPECT_TRUE(WAIT_UNTIL(nl_connect(ns) == 0, END_MS));
	EXPECT_EQ(0, other_wait(other_run(&ns->s, read_block), BOUNDED));
	EXPECT_EQ(0, nl_disconnect(INDEX));
	EXPECT_TRUE(WAIT_UNTIL(gone(&ns->s.dev), SOON));
}

FIXTURE(on_close)
{
	struct nl_session ns;
	struct agent a, b;
};

FIXTURE_SETUP(on_close)
{
	const char *why = nl_init(&self->ns, 1, PEER_GOOD);

	if (why)
		SKIP(return, "%s", why);
	self->ns.cflags = ON_CLOSE;
}

FIXTURE_TEARDOWN(on_close)
{
	EXPECT_TRUE(nl_cleanup(&self->ns));
}

TEST_F(on_close, last_close_ends_the_session)
{
	struct nl_session *ns = &self->ns;

	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_EQ(0, holder(&self->a, &ns->s.dev));
	ASSERT_EQ(0, holder(&self->b, &ns->s.dev));
	EXPECT_EQ(4096, agent_read(&self->a, 0, 4096));
	EXPECT_EQ(0, agent_close(&self->a));
	EXPECT_EQ(1, nl_connected(ns->s.dev.index)) TH_LOG("ended by the first close");
	EXPECT_EQ(4096, agent_read(&self->b, 8192, 4096));
	EXPECT_EQ(0, agent_close(&self->b));
	EXPECT_TRUE(WAIT_UNTIL(nbd_idle(&ns->s.dev), SOON));
	EXPECT_TRUE(WAIT_UNTIL(exited(ns->s.peer[0]), SOON));
	EXPECT_EQ(0, nl_connected(ns->s.dev.index));
	ASSERT_EQ(0, nl_connect(ns));
	EXPECT_EQ(0, other_wait(other_run(&ns->s, read_block), BOUNDED));
	EXPECT_TRUE(WAIT_UNTIL(nbd_idle(&ns->s.dev), SOON));
}

TEST_F(on_close, without_it_the_session_stays)
{
	struct nl_session *ns = &self->ns;

	ns->cflags = 0;
	ASSERT_EQ(0, nl_connect(ns));
	EXPECT_EQ(0, other_wait(other_run(&ns->s, read_block), BOUNDED));
	EXPECT_FALSE(WAIT_UNTIL(!nbd_running(&ns->s.dev), 300));
}

TEST_F(on_close, set_by_reconfigure)
{
	struct nl_session *ns = &self->ns;

	ns->cflags = 0;
	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_EQ(0, nl_change(ns, NBD_ATTR_CLIENT_FLAGS, ON_CLOSE));
	EXPECT_TRUE(nbd_running(&ns->s.dev));
	EXPECT_EQ(0, other_wait(other_run(&ns->s, read_block), BOUNDED));
	EXPECT_TRUE(WAIT_UNTIL(nbd_idle(&ns->s.dev), SOON));
}

TEST_F(on_close, cleared_by_reconfigure)
{
	struct nl_session *ns = &self->ns;

	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_EQ(0, holder(&self->a, &ns->s.dev));
	ASSERT_EQ(0, nl_change(ns, NBD_ATTR_CLIENT_FLAGS, 0));
	EXPECT_EQ(0, agent_close(&self->a));
	EXPECT_FALSE(WAIT_UNTIL(!nbd_running(&ns->s.dev), 300));
	EXPECT_EQ(0, other_wait(other_run(&ns->s, read_block), BOUNDED));
	EXPECT_EQ(0, nl_disconnect(ns->s.dev.index));
	/* It is the session's, not the device's. */
	ns->cflags = 0;
	ASSERT_EQ(0, nl_connect(ns));
	EXPECT_EQ(0, other_wait(other_run(&ns->s, read_block), BOUNDED));
	EXPECT_FALSE(WAIT_UNTIL(!nbd_running(&ns->s.dev), 300));
}

TEST_F(on_close, other_changes_leave_it)
{
	struct nl_session *ns = &self->ns;

	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_EQ(0, nl_change(ns, NBD_ATTR_SIZE_BYTES, PEER_SIZE * 2));
	EXPECT_EQ(0, other_wait(other_run(&ns->s, read_block), BOUNDED));
	EXPECT_TRUE(WAIT_UNTIL(nbd_idle(&ns->s.dev), SOON));
}

TEST_F(on_close, and_destroy)
{
	struct nl_session *ns = &self->ns;
	int picked = ns->s.dev.index;

	nl_use(ns, INDEX + 1);
	ns->cflags = ON_CLOSE | DESTROY;
	ASSERT_EQ(0, nl_connect(ns));
	EXPECT_EQ(0, other_wait(other_run(&ns->s, read_block), BOUNDED));
	EXPECT_TRUE(WAIT_UNTIL(gone(&ns->s.dev), SOON));
	EXPECT_TRUE(WAIT_UNTIL(exited(ns->s.peer[0]), SOON));
	nl_use(ns, picked);
}

/* A close is not held up by a server that answers nothing. */
TEST_F(on_close, with_a_mute_server)
{
	struct nl_session *ns = &self->ns;
	long long start;

	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_EQ(0, holder(&self->a, &ns->s.dev));
	ns->s.sh->kind[0] = PEER_MUTE;
	start = now_ms();
	EXPECT_EQ(0, agent_close(&self->a));
	EXPECT_GT(scaled(END_MS), now_ms() - start);
	EXPECT_TRUE(WAIT_UNTIL(nbd_idle(&ns->s.dev), SOON));
	EXPECT_TRUE(WAIT_UNTIL(exited(ns->s.peer[0]), SOON));
}

TEST_F(on_close, close_and_disconnect_at_once)
{
	struct nl_session *ns = &self->ns;
	struct nl_call call;
	struct nl_msg m;
	uint32_t seq;
	int i;

	ASSERT_EQ(0, agent_start(&self->a, ns->s.dev.path));
	for (i = 0; i < 20; i++) {
		ASSERT_EQ(0, nl_connect(ns)) TH_LOG("round %d", i);
		ASSERT_EQ(0, agent_open(&self->a));
		nl_begin(&m, NBD_CMD_DISCONNECT, ns->s.dev.index);
		/* In one order and the other. */
		if (i % 2) {
			call = nl_start(&m);
			usleep(i * 300);
		}
		seq = agent_send(&self->a, AGENT_CLOSE, 0, 0, 0, 0, -1);
		if (i % 2 == 0) {
			usleep(i * 100);
			call = nl_start(&m);
		}
		EXPECT_EQ(0, agent_wait(&self->a, seq, END_MS)) TH_LOG("round %d: close", i);
		EXPECT_EQ(0, nl_wait(call, END_MS)->ret) TH_LOG("round %d: DISCONNECT", i);
		EXPECT_TRUE(WAIT_UNTIL(nbd_idle(&ns->s.dev), SOON));
		EXPECT_TRUE(WAIT_UNTIL(exited(ns->s.peer[0]), SOON));
	}
}

TEST_HARNESS_MAIN
