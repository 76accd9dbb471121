// SPDX-License-Identifier: GPL-2.0
/*
 * Whatever ends a session, a setup or an attempt: the peer sees the end of its connection within
 * a second, with every kind of socket.
 */
#define _GNU_SOURCE
#include <kselftest_harness.h>

#include "nbd_test.h"

FIXTURE(eof) {
	struct nbd_dev dev;
	struct agent a, b, holder;
	int sock[2], other[2];
	struct session s;
};

FIXTURE_VARIANT(eof) {
	enum sock_kind kind;
};

FIXTURE_VARIANT_ADD(eof, unix) { .kind = KIND_UNIX };
FIXTURE_VARIANT_ADD(eof, tcp) { .kind = KIND_TCP };
FIXTURE_VARIANT_ADD(eof, tcp6) { .kind = KIND_TCP6 };

FIXTURE_SETUP(eof)
{
	const char *why;

	why = nbd_pick(&self->dev);
	if (why)
		SKIP(return, "%s", why);
	if (make_pair(variant->kind, self->sock) || make_pair(variant->kind, self->other)) {
		ASSERT_TRUE(variant->kind == KIND_TCP6);
		nbd_give_back(&self->dev);
		SKIP(return, "no IPv6 here");
	}
	ASSERT_EQ(0, agent_start(&self->a, self->dev.path));
	ASSERT_EQ(0, agent_start(&self->b, self->dev.path));
	ASSERT_EQ(0, agent_start(&self->holder, self->dev.path));
	ASSERT_EQ(0, agent_open_as(&self->holder, 0, O_RDONLY));
}

FIXTURE_TEARDOWN(eof)
{
	EXPECT_TRUE(nbd_give_back(&self->dev));
}

#define PEER self->sock[1]
#define OTHER_PEER self->other[1]

#define SETUP() do {								\
	ASSERT_EQ(0, agent_open(&self->a));					\
	ASSERT_EQ(0, agent_set_sock(&self->a, &self->sock[0]));			\
	ASSERT_TRUE(no_eof(PEER));						\
} while (0)

#define RUN(mode) \
	ASSERT_EQ(0, session_start(&self->s, &self->dev, variant->kind, mode))

/* What must be true of every session's end, besides that it ends. */
#define ENDED() do {								\
	EXPECT_TRUE(saw_eof(self->s.toy.fd, SOON));				\
	EXPECT_NE(-ETIME, session_result(&self->s));				\
} while (0)

TEST_F(eof, setup_refused)
{
	SETUP();
	ASSERT_EQ(0, agent_open(&self->b));
	EXPECT_EQ(-EBUSY, agent_set_sock(&self->b, &self->other[0]));
	EXPECT_TRUE(saw_eof(OTHER_PEER, SOON));
	EXPECT_TRUE(no_eof(PEER));
}

TEST_F(eof, setup_cleared)
{
	SETUP();
	EXPECT_EQ(0, agent_ioctl(&self->a, NBD_CLEAR_SOCK, 0));
	EXPECT_TRUE(saw_eof(PEER, SOON));
}

TEST_F(eof, setup_cleared_twice)
{
	SETUP();
	EXPECT_EQ(0, agent_ioctl(&self->a, NBD_CLEAR_SOCK, 0));
	EXPECT_TRUE(saw_eof(PEER, SOON));
	EXPECT_EQ(0, agent_set_sock(&self->a, &self->other[0]));
	EXPECT_EQ(0, agent_ioctl(&self->a, NBD_CLEAR_SOCK, 0));
	EXPECT_TRUE(saw_eof(OTHER_PEER, SOON));
}

TEST_F(eof, setup_owner_died_and_was_replaced)
{
	SETUP();
	ASSERT_TRUE(agent_kill(&self->a));
	ASSERT_EQ(0, agent_open(&self->b));
	EXPECT_EQ(0, agent_set_sock(&self->b, &self->other[0]));
	EXPECT_TRUE(saw_eof(PEER, SOON));
	EXPECT_TRUE(no_eof(OTHER_PEER));
}

TEST_F(eof, setup_last_close)
{
	SETUP();
	ASSERT_EQ(0, agent_close(&self->holder));
	EXPECT_TRUE(no_eof(PEER));
	ASSERT_EQ(0, agent_close(&self->a));
	EXPECT_TRUE(saw_eof(PEER, SOON));
}

TEST_F(eof, setup_owner_killed_without_holder)
{
	SETUP();
	ASSERT_EQ(0, agent_close(&self->holder));
	ASSERT_TRUE(agent_kill(&self->a));
	EXPECT_TRUE(saw_eof(PEER, SOON));
}

TEST_F(eof, start_failed)
{
	SETUP();
	ASSERT_EQ(0, agent_set_sock(&self->a, &self->other[0]));
	EXPECT_EQ(-EINVAL, agent_ioctl(&self->a, NBD_DO_IT, 0));
	EXPECT_TRUE(saw_eof(PEER, SOON));
	EXPECT_TRUE(saw_eof(OTHER_PEER, SOON));
}

TEST_F(eof, running_refused)
{
	RUN(TOY_OBEDIENT);
	ASSERT_EQ(0, agent_open(&self->b));
	EXPECT_EQ(-EBUSY, agent_set_sock(&self->b, &self->other[0]));
	EXPECT_TRUE(saw_eof(OTHER_PEER, SOON));
	EXPECT_TRUE(no_eof(self->s.toy.fd));
}

TEST_F(eof, running_server_closes)
{
	RUN(TOY_OBEDIENT);
	toy_hang_up(&self->s.toy);
	ENDED();
}

TEST_F(eof, running_disconnect)
{
	RUN(TOY_OBEDIENT);
	EXPECT_EQ(0, agent_ioctl(&self->holder, NBD_DISCONNECT, 0));
	ENDED();
}

TEST_F(eof, running_clear_sock)
{
	RUN(TOY_OBEDIENT);
	EXPECT_EQ(0, agent_ioctl(&self->holder, NBD_CLEAR_SOCK, 0));
	ENDED();
}

TEST_F(eof, running_clear_sock_by_the_client)
{
	RUN(TOY_OBEDIENT);
	EXPECT_EQ(0, agent_ioctl(&self->s.client, NBD_CLEAR_SOCK, 0));
	ENDED();
}

TEST_F(eof, running_signal)
{
	RUN(TOY_OBEDIENT);
	kill(self->s.client.pid, SIGUSR1);
	ENDED();
}

TEST_F(eof, running_client_killed)
{
	RUN(TOY_OBEDIENT);
	EXPECT_TRUE(agent_kill(&self->s.client));
	EXPECT_TRUE(saw_eof(self->s.toy.fd, SOON));
}

TEST_F(eof, running_client_killed_without_holder)
{
	RUN(TOY_OBEDIENT);
	ASSERT_EQ(0, agent_close(&self->holder));
	EXPECT_TRUE(agent_kill(&self->s.client));
	EXPECT_TRUE(saw_eof(self->s.toy.fd, SOON));
}

TEST_F(eof, running_client_killed_server_mute)
{
	RUN(TOY_MUTE);
	EXPECT_TRUE(agent_kill(&self->s.client));
	EXPECT_TRUE(saw_eof(self->s.toy.fd, SOON));
}

/* The other end of every connection is closed, not only of the one that ended the session. */
TEST_F(eof, running_all_connections)
{
	struct toy toy[2];
	uint32_t do_it;

	SETUP();
	ASSERT_EQ(0, agent_set_sock(&self->a, &self->other[0]));
	ASSERT_EQ(0, agent_ioctl(&self->a, NBD_SET_FLAGS, MULTI_CONN));
	ASSERT_EQ(0, agent_ioctl(&self->a, NBD_SET_SIZE, SESSION_SIZE));
	ASSERT_EQ(0, toy_start(&toy[0], PEER, TOY_OBEDIENT));
	ASSERT_EQ(0, toy_start(&toy[1], OTHER_PEER, TOY_OBEDIENT));
	do_it = agent_do_it(&self->a);
	ASSERT_TRUE(WAIT_UNTIL(nbd_running(&self->dev), BOUNDED));
	EXPECT_EQ(0, agent_ioctl(&self->holder, NBD_CLEAR_SOCK, 0));
	EXPECT_TRUE(saw_eof(PEER, SOON));
	EXPECT_TRUE(saw_eof(OTHER_PEER, SOON));
	EXPECT_EQ(0, agent_wait(&self->a, do_it, BOUNDED));
}

TEST_F(eof, stopped_refused)
{
	RUN(TOY_OBEDIENT);
	ASSERT_EQ(0, session_stop(&self->s));
	ASSERT_EQ(0, agent_open(&self->b));
	EXPECT_EQ(-EBUSY, agent_set_sock(&self->b, &self->other[0]));
	EXPECT_TRUE(saw_eof(OTHER_PEER, SOON));
}

TEST_HARNESS_MAIN
