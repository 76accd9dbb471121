// SPDX-License-Identifier: GPL-2.0
/*
 * RECONFIGURE with another block size, which waits for the requests in flight: when it is refused
 * instead.
 */
#include "netlink_reconf.h"

/* Returns when the driver knows that the connection is dead: before, it may not refuse. */
static int kill_and_hear(struct nl_session *ns, struct genl *g)
{
	int ret = genl_listen(g);

	if (ret)
		return ret;
	if (!nl_kill_peer(&ns->s, 0))
		return -EBUSY;
	ret = WAIT_UNTIL(nl_link_dead(g, ns->s.dev.index, 10), BOUNDED) ? 0 : -ETIME;
	close(g->fd);
	return ret;
}

/* The session and its block size are as before, and another can be had when nothing hinders. */
static void expect_block_size_unchanged(struct __test_metadata *_metadata, struct nl_session *ns)
{
	struct nbd_dev *d = &ns->s.dev;

	EXPECT_EQ(NL_BLKSIZE, nbd_sys(d, "queue/logical_block_size"));
	EXPECT_EQ(0, other_wait(other_run(&ns->s, read_all), 10000));
	/* It is not to come later either, with whatever changes next. */
	EXPECT_EQ(0, nl_change(ns, NBD_ATTR_SIZE_BYTES, PEER_SIZE * 2));
	EXPECT_EQ(NL_BLKSIZE, nbd_sys(d, "queue/logical_block_size"));
	EXPECT_EQ(0, nl_change(ns, NBD_ATTR_BLOCK_SIZE_BYTES, 1024));
	EXPECT_EQ(1024, nbd_sys(d, "queue/logical_block_size"));
	EXPECT_EQ(0, other_wait(other_run(&ns->s, nl_read_other), BOUNDED));
}

TEST_F(reconf, block_size_without_a_connection_is_ebusy)
{
	struct nl_session *ns = &self->ns;
	struct genl g;

	if (!nbd_is_rust())
		SKIP(return, "the C driver changes it while no request hinders");
	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_EQ(0, kill_and_hear(ns, &g));
	EXPECT_EQ(-EBUSY, nl_change(ns, NBD_ATTR_BLOCK_SIZE_BYTES, 1024));
	nl_expect_why(_metadata, &ns->answer, 0, "no connection is open");
	EXPECT_EQ(NL_BLKSIZE, nbd_sys(&ns->s.dev, "queue/logical_block_size"));
	/* Not so the same, or another size. */
	EXPECT_EQ(0, nl_change(ns, NBD_ATTR_BLOCK_SIZE_BYTES, NL_BLKSIZE));
	EXPECT_EQ(0, nl_change(ns, NBD_ATTR_SIZE_BYTES, PEER_SIZE));
	ASSERT_EQ(0, nl_reconnect(ns, 0));
	expect_block_size_unchanged(_metadata, ns);
}

TEST_F(reconf, block_size_with_a_socket_for_a_dead_connection)
{
	struct nl_session *ns = &self->ns;
	struct nl_msg m;
	struct genl g;

	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_EQ(0, kill_and_hear(ns, &g));
	ASSERT_EQ(0, nl_peer(&ns->s, 0));
	nl_begin(&m, NBD_CMD_RECONFIGURE, ns->s.dev.index);
	nl_u64(&m, NBD_ATTR_BLOCK_SIZE_BYTES, 1024);
	nl_socks(&m, ns->s.fd, 1);
	EXPECT_EQ(0, nl_finish(ns, &m));
	EXPECT_EQ(1024, nbd_sys(&ns->s.dev, "queue/logical_block_size"));
	EXPECT_EQ(0, other_wait(other_run(&ns->s, read_all), 10000));
}

static void expect_all_done(struct __test_metadata *_metadata, struct peer_shared *sh)
{
	int i;

	ASSERT_TRUE(WAIT_UNTIL(sh->io_done == HOLDER_THREADS, END_MS))
		TH_LOG("%d of %d requests are finished", sh->io_done, HOLDER_THREADS);
	for (i = 0; i < HOLDER_THREADS; i++)
		EXPECT_EQ(0, sh->io_errno[i]);
	EXPECT_TRUE(WAIT_UNTIL(sh->late_done == HOLDER_THREADS, END_MS));
}

TEST_F(reconf, block_size_while_io_hangs_is_ebusy)
{
	struct nl_session *ns = &self->ns;
	long long start;

	ns->s.kind = PEER_HELD;
	/* So that a driver that waits longer comes back one day. */
	ns->s.timeout = 4;
	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_EQ(0, holder_start(&ns->s));
	start = now_ms();
	EXPECT_EQ(-EBUSY, nl_change(ns, NBD_ATTR_BLOCK_SIZE_BYTES, 1024));
	EXPECT_LT(800, now_ms() - start) TH_LOG("it did not wait");
	EXPECT_GT(scaled(END_MS), now_ms() - start);
	nl_expect_why(_metadata, &ns->answer, 0, "requests wait for the server");
	EXPECT_EQ(0, ns->s.sh->io_done);
	ns->s.sh->go[0] = 1;
	expect_all_done(_metadata, ns->s.sh);
	ns->s.sh->kind[0] = PEER_GOOD;
	expect_block_size_unchanged(_metadata, ns);
}

/* Is the process in uninterruptible sleep, as one that waits for requests in flight? */
static bool waits(pid_t pid)
{
	char path[64], stat[512] = "", *p;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	if (read(fd, stat, sizeof(stat) - 1) < 0)
		stat[0] = 0;
	close(fd);
	p = strrchr(stat, ')');
	return p && p[2] == 'D';
}

/* The reply comes while it waits: then it need not give up. */
TEST_F(reconf, block_size_when_io_ends_in_time)
{
	struct nl_session *ns = &self->ns;
	struct nl_call call;
	struct nl_msg m;

	ns->s.kind = PEER_HELD;
	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_EQ(0, holder_start(&ns->s));
	nl_begin(&m, NBD_CMD_RECONFIGURE, ns->s.dev.index);
	nl_u64(&m, NBD_ATTR_BLOCK_SIZE_BYTES, 1024);
	call = nl_start(&m);
	EXPECT_TRUE(WAIT_UNTIL(waits(call.pid), SOON)) TH_LOG("it does not wait");
	ns->s.sh->go[0] = 1;
	EXPECT_EQ(0, nl_wait(call, BOUNDED)->ret);
	EXPECT_EQ(1024, nbd_sys(&ns->s.dev, "queue/logical_block_size"));
	expect_all_done(_metadata, ns->s.sh);
}

/* Requests that wait for a connection would not end: no need to wait for them. */
TEST_F(reconf, block_size_after_the_death_with_io_is_ebusy)
{
	struct nl_session *ns = &self->ns;
	struct genl g;

	ns->s.kind = PEER_HELD;
	ns->s.timeout = 4;
	ns->dead = 4;
	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_EQ(0, holder_start(&ns->s));
	ASSERT_EQ(0, kill_and_hear(ns, &g));
	EXPECT_EQ(-EBUSY, nl_change(ns, NBD_ATTR_BLOCK_SIZE_BYTES, 1024));
	nl_expect_why(_metadata, &ns->answer, 0, "no connection is open");
	EXPECT_EQ(0, ns->s.sh->io_done);
	ASSERT_EQ(0, nl_reconnect(ns, 0));
	expect_all_done(_metadata, ns->s.sh);
	expect_block_size_unchanged(_metadata, ns);
}

/* The server dies while it waits for the requests in flight, which then wait for a connection. */
TEST_F(reconf, block_size_and_the_server_dies_is_ebusy)
{
	struct nl_session *ns = &self->ns;
	struct nl_call call;
	struct nl_msg m;

	ns->s.kind = PEER_HELD;
	ns->s.timeout = 4;
	ns->dead = 4;
	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_EQ(0, holder_start(&ns->s));
	nl_begin(&m, NBD_CMD_RECONFIGURE, ns->s.dev.index);
	nl_u64(&m, NBD_ATTR_BLOCK_SIZE_BYTES, 1024);
	call = nl_start(&m);
	EXPECT_TRUE(WAIT_UNTIL(waits(call.pid), SOON)) TH_LOG("it does not wait");
	ASSERT_TRUE(nl_kill_peer(&ns->s, 0));
	EXPECT_EQ(-EBUSY, nl_wait(call, END_MS)->ret);
	EXPECT_EQ(0, ns->s.sh->io_done);
	ASSERT_EQ(0, nl_reconnect(ns, 0));
	expect_all_done(_metadata, ns->s.sh);
	expect_block_size_unchanged(_metadata, ns);
}

TEST_HARNESS_MAIN
