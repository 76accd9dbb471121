// SPDX-License-Identifier: GPL-2.0
/*
 * RECONFIGURE: what it refuses, and what it changes while the device is in use.
 */
#include "netlink_reconf.h"

TEST_F(reconf, idle_device_is_einval)
{
	struct nl_session *ns = &self->ns;
	struct nl_msg m;

	nl_begin(&m, NBD_CMD_RECONFIGURE, ns->s.dev.index);
	nl_u64(&m, NBD_ATTR_SIZE_BYTES, PEER_SIZE);
	ns->answer = *nl_do(&m);
	EXPECT_EQ(-EINVAL, ns->answer.ret);
	nl_expect_why(_metadata, &ns->answer, 0, "no session made by netlink");
	EXPECT_TRUE(nbd_idle(&ns->s.dev));
	/* The sockets that came along are dropped. */
	ASSERT_EQ(0, make_pair(KIND_UNIX, self->pair));
	nl_begin(&m, NBD_CMD_RECONFIGURE, ns->s.dev.index);
	nl_socks(&m, self->pair, 1);
	EXPECT_EQ(-EINVAL, nl_do(&m)->ret);
	close(self->pair[0]);
	EXPECT_TRUE(saw_eof(self->pair[1], SOON));
}

TEST_F(reconf, after_the_end_is_einval)
{
	struct nl_session *ns = &self->ns;

	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_EQ(0, nl_disconnect(ns->s.dev.index));
	EXPECT_EQ(-EINVAL, nl_change(ns, NBD_ATTR_SIZE_BYTES, PEER_SIZE / 2));
	nl_expect_why(_metadata, &ns->answer, 0, "no session made by netlink");
	EXPECT_TRUE(nbd_idle(&ns->s.dev));
}

TEST_F(reconf, after_the_end_while_open_is_einval)
{
	struct nl_session *ns = &self->ns;

	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_EQ(0, agent_start(&self->a, ns->s.dev.path));
	ASSERT_EQ(0, agent_open(&self->a));
	ASSERT_EQ(0, nl_disconnect(ns->s.dev.index));
	EXPECT_EQ(-EINVAL, nl_change(ns, NBD_ATTR_SIZE_BYTES, PEER_SIZE / 2));
	EXPECT_EQ(-EINVAL, nl_reconnect(ns, 0)) TH_LOG("new sockets for a session that has ended");
	EXPECT_TRUE(WAIT_UNTIL(exited(ns->s.peer[0]), SOON));
	EXPECT_EQ(0, agent_close(&self->a));
}

TEST_F(reconf, ioctl_session_is_einval)
{
	struct nl_session *ns = &self->ns;
	long long size;

	ASSERT_EQ(0, session_setup(&self->io, &ns->s.dev, KIND_UNIX, TOY_OBEDIENT));
	EXPECT_EQ(-EINVAL, nl_change(ns, NBD_ATTR_SIZE_BYTES, PEER_SIZE)) TH_LOG("set up");
	ASSERT_EQ(0, session_run(&self->io));
	size = nbd_sys(&ns->s.dev, "size");
	EXPECT_EQ(-EINVAL, nl_change(ns, NBD_ATTR_SIZE_BYTES, PEER_SIZE)) TH_LOG("running");
	nl_expect_why(_metadata, &ns->answer, 0, "no session made by netlink");
	EXPECT_EQ(size, nbd_sys(&ns->s.dev, "size"));
	EXPECT_EQ(1024, agent_read(&self->io.client, 0, 1024));
}

TEST_F(reconf, nothing_to_change)
{
	struct nl_session *ns = &self->ns;

	ASSERT_EQ(0, nl_connect(ns));
	EXPECT_EQ(0, nl_simple(NBD_CMD_RECONFIGURE, ns->s.dev.index)->ret);
	EXPECT_EQ(NL_SECTORS, nbd_sys(&ns->s.dev, "size"));
	EXPECT_EQ(0, other_wait(other_run(&ns->s, read_block), BOUNDED));
}

static int change_as(struct nl_session *ns, const char *backend)
{
	struct nl_msg m;

	nl_begin(&m, NBD_CMD_RECONFIGURE, ns->s.dev.index);
	nl_u64(&m, NBD_ATTR_SIZE_BYTES, PEER_SIZE / 2);
	if (backend)
		nl_str(&m, NBD_ATTR_BACKEND_IDENTIFIER, backend);
	return nl_finish(ns, &m);
}

TEST_F(reconf, backend_must_match)
{
	struct nl_session *ns = &self->ns;

	ns->backend = "right";
	ASSERT_EQ(0, nl_connect(ns));
	EXPECT_EQ(-EINVAL, change_as(ns, NULL)) TH_LOG("missing");
	nl_expect_why(_metadata, &ns->answer, 0, "backend identifier");
	EXPECT_EQ(-EINVAL, change_as(ns, "wrong"));
	nl_expect_why(_metadata, &ns->answer, 0, "backend identifier");
	EXPECT_EQ(-EINVAL, change_as(ns, ""));
	EXPECT_EQ(-EINVAL, change_as(ns, "rightmost"));
	EXPECT_EQ(-EINVAL, change_as(ns, "righ"));
	EXPECT_EQ(NL_SECTORS, nbd_sys(&ns->s.dev, "size"));
	EXPECT_EQ(0, change_as(ns, "right"));
	EXPECT_EQ(NL_SECTORS / 2, nbd_sys(&ns->s.dev, "size"));
}

TEST_F(reconf, backend_is_not_set_later)
{
	struct nl_session *ns = &self->ns;

	ASSERT_EQ(0, nl_connect(ns));
	EXPECT_EQ(0, change_as(ns, "some other"));
	EXPECT_EQ(0, change_as(ns, NULL));
}

TEST_F(reconf, wrong_backend_drops_the_sockets)
{
	struct nl_session *ns = &self->ns;

	ns->backend = "right";
	ns->s.npeers = 2;
	ns->dead = 5;
	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_TRUE(nl_kill_peer(&ns->s, 1));
	ns->backend = "wrong";
	EXPECT_EQ(-EINVAL, nl_reconnect(ns, 1));
	EXPECT_TRUE(WAIT_UNTIL(exited(ns->s.peer[1]), SOON));
	ns->backend = "right";
	EXPECT_EQ(0, nl_reconnect(ns, 1));
	EXPECT_EQ(0, other_wait(other_run(&ns->s, read_all), 10000));
}

/* Sizes */

TEST_F(reconf, size)
{
	struct nl_session *ns = &self->ns;
	int fd = uevents();

	ASSERT_LE(0, fd);
	ASSERT_EQ(0, nl_connect(ns));
	EXPECT_TRUE(uevent_of(fd, "change", &ns->s.dev));
	EXPECT_EQ(0, nl_change(ns, NBD_ATTR_SIZE_BYTES, PEER_SIZE / 2));
	EXPECT_EQ(NL_SECTORS / 2, nbd_sys(&ns->s.dev, "size"));
	EXPECT_TRUE(uevent_of(fd, "change", &ns->s.dev)) TH_LOG("smaller");
	EXPECT_EQ(0, nl_change(ns, NBD_ATTR_SIZE_BYTES, PEER_SIZE * 4));
	EXPECT_EQ(NL_SECTORS * 4, nbd_sys(&ns->s.dev, "size"));
	EXPECT_TRUE(uevent_of(fd, "change", &ns->s.dev)) TH_LOG("larger");
	close(fd);
	ASSERT_EQ(0, agent_start(&self->a, ns->s.dev.path));
	ASSERT_EQ(0, agent_open(&self->a));
	EXPECT_EQ(4096, agent_read(&self->a, PEER_SIZE * 4 - 4096, 4096));
	EXPECT_EQ(0, agent_read(&self->a, PEER_SIZE * 4, 4096));
	EXPECT_EQ(0, agent_close(&self->a));
}

TEST_F(reconf, block_size)
{
	struct nl_session *ns = &self->ns;

	ASSERT_EQ(0, nl_connect(ns));
	EXPECT_EQ(0, nl_change(ns, NBD_ATTR_BLOCK_SIZE_BYTES, 1024));
	EXPECT_EQ(1024, nbd_sys(&ns->s.dev, "queue/logical_block_size"));
	EXPECT_EQ(NL_SECTORS, nbd_sys(&ns->s.dev, "size"));
	EXPECT_EQ(0, other_wait(other_run(&ns->s, read_all), 10000));
}

TEST_F(reconf, wrong_sizes_are_einval)
{
	struct nl_session *ns = &self->ns;

	ASSERT_EQ(0, nl_connect(ns));
	EXPECT_EQ(-EINVAL, nl_change(ns, NBD_ATTR_SIZE_BYTES, 1ULL << 63));
	nl_expect_why(_metadata, &ns->answer, 0, "out of range");
	EXPECT_EQ(-EINVAL, nl_change(ns, NBD_ATTR_BLOCK_SIZE_BYTES, 1000));
	nl_expect_why(_metadata, &ns->answer, 0, "out of range");
	EXPECT_EQ(-EINVAL, nl_change(ns, NBD_ATTR_BLOCK_SIZE_BYTES, 256));
	EXPECT_EQ(NL_SECTORS, nbd_sys(&ns->s.dev, "size"));
	EXPECT_EQ(NL_BLKSIZE, nbd_sys(&ns->s.dev, "queue/logical_block_size"));
	EXPECT_EQ(0, other_wait(other_run(&ns->s, read_all), 10000));
}

/* The holder verifies what it writes while the device shrinks and grows behind its I/O. */
TEST_F(reconf, size_while_io_runs)
{
	struct nl_session *ns = &self->ns;
	int rounds = 40, i;

	ns->s.npeers = 4;
	ns->s.kind = PEER_SHUFFLE;
	ns->s.sh->loop = rounds;
	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_EQ(0, holder_begin(&ns->s));
	for (i = 1; i <= 20; i++) {
		uint64_t size = PEER_SIZE * (1 + i % 4);

		ASSERT_EQ(0, nl_change(ns, NBD_ATTR_SIZE_BYTES, size)) TH_LOG("round %d", i);
		ASSERT_EQ((long long)size / 512, nbd_sys(&ns->s.dev, "size"));
	}
	ASSERT_TRUE(WAIT_UNTIL(ns->s.sh->looped == rounds * HOLDER_THREADS, 15000))
		TH_LOG("%d of %d rounds", ns->s.sh->looped, rounds * HOLDER_THREADS);
	EXPECT_EQ(0, ns->s.sh->loop_errors);
}

/* Timeouts */

TEST_F(reconf, timeout)
{
	struct nl_session *ns = &self->ns;
	struct peer_shared *sh = ns->s.sh;
	long long start;

	ns->s.timeout = 20;
	ns->s.kind = PEER_MUTE;
	ASSERT_EQ(0, nl_connect(ns));
	EXPECT_EQ(20000, nbd_sys(&ns->s.dev, "queue/io_timeout"));
	EXPECT_EQ(0, nl_change(ns, NBD_ATTR_TIMEOUT, 2));
	EXPECT_EQ(2000, nbd_sys(&ns->s.dev, "queue/io_timeout"));
	start = now_ms();
	ASSERT_EQ(0, holder_start(&ns->s));
	ASSERT_TRUE(WAIT_UNTIL(sh->io_done == HOLDER_THREADS, 6000))
		TH_LOG("%d of %d requests are finished", sh->io_done, HOLDER_THREADS);
	EXPECT_LT(1000, now_ms() - start);
	EXPECT_EQ(EIO, sh->io_errno[1]);
}

TEST_F(reconf, dead_conn_timeout)
{
	struct nl_session *ns = &self->ns;
	struct peer_shared *sh = ns->s.sh;
	int i;

	ns->s.kind = PEER_HELD;
	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_EQ(0, nl_change(ns, NBD_ATTR_DEAD_CONN_TIMEOUT, 10));
	ASSERT_EQ(0, holder_start(&ns->s));
	ASSERT_TRUE(nl_kill_peer(&ns->s, 0));
	EXPECT_FALSE(WAIT_UNTIL(sh->io_done, 1500)) TH_LOG("it did not wait");
	ASSERT_EQ(0, nl_reconnect(ns, 0));
	ASSERT_TRUE(WAIT_UNTIL(sh->io_done == HOLDER_THREADS, END_MS));
	for (i = 0; i < HOLDER_THREADS; i++)
		EXPECT_EQ(0, sh->io_errno[i]);
}

TEST_F(reconf, dead_conn_timeout_off)
{
	struct nl_session *ns = &self->ns;
	struct peer_shared *sh = ns->s.sh;
	int i;

	ns->s.kind = PEER_HELD;
	ns->dead = 20;
	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_EQ(0, nl_change(ns, NBD_ATTR_DEAD_CONN_TIMEOUT, 0));
	ASSERT_EQ(0, holder_start(&ns->s));
	ASSERT_TRUE(nl_kill_peer(&ns->s, 0));
	ASSERT_TRUE(WAIT_UNTIL(sh->io_done == HOLDER_THREADS, END_MS));
	for (i = 0; i < HOLDER_THREADS; i++)
		EXPECT_EQ(EIO, sh->io_errno[i]);
}

/* Sockets */

TEST_F(reconf, sockets_that_nobody_needs_are_dropped)
{
	struct nl_session *ns = &self->ns;
	int i;

	ns->s.npeers = 2;
	ASSERT_EQ(0, nl_connect(ns));
	for (i = 0; i < 3; i++) {
		ASSERT_EQ(0, nl_reconnect(ns, 2));
		EXPECT_TRUE(WAIT_UNTIL(exited(ns->s.peer[2]), SOON)) TH_LOG("it is kept");
		EXPECT_EQ(0, ns->s.sh->requests[2]);
	}
	EXPECT_FALSE(exited(ns->s.peer[0]) || exited(ns->s.peer[1]));
	EXPECT_EQ(0, other_wait(other_run(&ns->s, read_all), 10000));
}

TEST_F(reconf, more_sockets_than_dead_ones)
{
	struct nl_session *ns = &self->ns;
	int fd[2], pair[2][2];
	struct nl_msg m;

	ns->s.npeers = 2;
	ns->dead = 5;
	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_TRUE(nl_kill_peer(&ns->s, 1));
	ASSERT_EQ(0, nl_peer(&ns->s, 1));
	ASSERT_EQ(0, make_pair(KIND_UNIX, pair[0]));
	ASSERT_EQ(0, make_pair(KIND_TCP, pair[1]));
	nl_begin(&m, NBD_CMD_RECONFIGURE, ns->s.dev.index);
	fd[0] = ns->s.fd[1];
	fd[1] = pair[0][0];
	nl_socks(&m, fd, 2);
	EXPECT_EQ(0, nl_finish(ns, &m));
	nl_begin(&m, NBD_CMD_RECONFIGURE, ns->s.dev.index);
	nl_socks(&m, &pair[1][0], 1);
	EXPECT_EQ(0, nl_finish(ns, &m));
	close(pair[0][0]);
	close(pair[1][0]);
	EXPECT_TRUE(saw_eof(pair[0][1], SOON)) TH_LOG("the second of two is kept");
	EXPECT_TRUE(saw_eof(pair[1][1], SOON)) TH_LOG("the one that came last is kept");
	EXPECT_EQ(0, other_wait(other_run(&ns->s, read_all), 10000));
	EXPECT_EQ(0, nl_disconnect(ns->s.dev.index));
	EXPECT_TRUE(WAIT_UNTIL(exited(ns->s.peer[1]), SOON));
}

/* All at once, from several processes, while I/O runs. */
TEST_F(reconf, many_at_once)
{
	struct nl_session *ns = &self->ns;
	struct nl_call call[12];
	int rounds = 30, i;
	struct nl_msg m;

	ns->s.npeers = 2;
	ns->s.kind = PEER_SHUFFLE;
	ns->s.sh->loop = rounds;
	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_EQ(0, holder_begin(&ns->s));
	for (i = 0; i < 12; i++) {
		nl_begin(&m, NBD_CMD_RECONFIGURE, ns->s.dev.index);
		switch (i % 4) {
		case 0:
			nl_u64(&m, NBD_ATTR_SIZE_BYTES, PEER_SIZE * (1 + i / 4));
			break;
		case 1:
			nl_u64(&m, NBD_ATTR_TIMEOUT, 20 + i);
			break;
		case 2:
			nl_u64(&m, NBD_ATTR_CLIENT_FLAGS, 0);
			break;
		case 3:
			nl_u64(&m, NBD_ATTR_DEAD_CONN_TIMEOUT, i);
			break;
		}
		call[i] = nl_start(&m);
	}
	for (i = 0; i < 12; i++)
		EXPECT_EQ(0, nl_wait(call[i], BOUNDED)->ret);
	ASSERT_TRUE(WAIT_UNTIL(ns->s.sh->looped == rounds * HOLDER_THREADS, 15000));
	EXPECT_EQ(0, ns->s.sh->loop_errors);
}

/* The size changes although the server answers nothing: no change waits for I/O in flight. */
TEST_F(reconf, size_while_io_hangs)
{
	struct nl_session *ns = &self->ns;
	struct peer_shared *sh = ns->s.sh;
	long long start;
	int i;

	ns->s.kind = PEER_HELD;
	/* So that a driver that does wait comes back one day. */
	ns->s.timeout = 4;
	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_EQ(0, holder_start(&ns->s));
	start = now_ms();
	EXPECT_EQ(0, nl_change(ns, NBD_ATTR_SIZE_BYTES, PEER_SIZE * 2));
	EXPECT_GT(scaled(END_MS), now_ms() - start);
	EXPECT_EQ(NL_SECTORS * 2, nbd_sys(&ns->s.dev, "size"));
	sh->go[0] = 1;
	ASSERT_TRUE(WAIT_UNTIL(sh->io_done == HOLDER_THREADS, END_MS));
	for (i = 0; i < HOLDER_THREADS; i++)
		EXPECT_EQ(0, sh->io_errno[i]);
}

/* One message resizes and reconnects while I/O waits on a dead link. */
TEST_F(reconf, size_and_sockets_while_io_waits_on_a_dead_link)
{
	struct nl_session *ns = &self->ns;
	struct peer_shared *sh = ns->s.sh;
	long long start;
	struct nl_msg m;
	int i;

	ns->s.kind = PEER_HELD;
	ns->s.timeout = 4;
	ns->dead = 4;
	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_EQ(0, holder_start(&ns->s));
	ASSERT_TRUE(nl_kill_peer(&ns->s, 0));
	ASSERT_EQ(0, nl_peer(&ns->s, 0));
	start = now_ms();
	nl_begin(&m, NBD_CMD_RECONFIGURE, ns->s.dev.index);
	nl_u64(&m, NBD_ATTR_SIZE_BYTES, PEER_SIZE * 2);
	nl_socks(&m, ns->s.fd, 1);
	EXPECT_EQ(0, nl_finish(ns, &m));
	EXPECT_GT(scaled(END_MS), now_ms() - start) TH_LOG("it took %lld ms", now_ms() - start);
	EXPECT_EQ(NL_SECTORS * 2, nbd_sys(&ns->s.dev, "size"));
	ASSERT_TRUE(WAIT_UNTIL(sh->io_done == HOLDER_THREADS, END_MS))
		TH_LOG("%d of %d requests are finished", sh->io_done, HOLDER_THREADS);
	for (i = 0; i < HOLDER_THREADS; i++)
		EXPECT_EQ(0, sh->io_errno[i]);
	EXPECT_TRUE(WAIT_UNTIL(sh->late_done == HOLDER_THREADS, END_MS));
	EXPECT_EQ(HOLDER_THREADS * 4096, sh->late_bytes);
}

TEST_HARNESS_MAIN
