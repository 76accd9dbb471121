// SPDX-License-Identifier: GPL-2.0
/*
 * What process may add a socket to a device whose session starts, runs or has ended, and what ends
 * it.
 */
#include "setup_sock.h"

/* Starting */

/* Is a session being made at this moment, as far as can be seen? */
static bool starting(struct nbd_dev *d)
{
	char path[64], state[16] = "";
	int fd;

	snprintf(path, sizeof(path), "/sys/kernel/debug/nbd/nbd%d/state", d->index);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	if (read(fd, state, sizeof(state) - 1) < 0)
		state[0] = 0;
	close(fd);
	return !strncmp(state, "starting", 8);
}

TEST_F(sock, starting_others_are_refused)
{
	bool visible = nbd_is_rust() && !access("/sys/kernel/debug/nbd", F_OK);
	int round, i, peer[8], met = 0;

	/* Where the state can be read, until a call has met it. */
	for (round = 0; round < 3 || (visible && !met && round < 20); round++) {
		struct agent c;
		int refused = 0;
		uint32_t do_it;

		ASSERT_EQ(0, agent_start(&c, self->dev.path));
		ASSERT_EQ(0, agent_open(&c));
		/* Several queues, so that starting has to resize, which takes a while. */
		for (i = 0; i < 8; i++) {
			int fd[2];

			ASSERT_EQ(0, make_pair(KIND_UNIX, fd));
			ASSERT_EQ(0, agent_set_sock(&c, &fd[0]));
			peer[i] = fd[1];
		}
		ASSERT_EQ(0, agent_ioctl(&c, NBD_SET_FLAGS, MULTI_CONN));
		if (!round) {
			ASSERT_EQ(0, agent_open(&self->b));
			ASSERT_LE(0, agent_take(&self->b, 1, &self->b_sock[0]));
		}
		do_it = agent_do_it(&c);
		while (!nbd_sys_exists(&self->dev, "pid") && refused < 2000) {
			uint32_t call = agent_send(&self->b, AGENT_IOCTL_FD, 0, 0, NBD_SET_SOCK, 1,
						   -1);

			met += visible && starting(&self->dev);
			ASSERT_EQ(-EBUSY, agent_wait(&self->b, call, BOUNDED));
			refused++;
		}
		for (i = 0; i < 8; i++)
			shutdown(peer[i], SHUT_WR);
		EXPECT_EQ(0, agent_wait(&c, do_it, BOUNDED));
		for (i = 0; i < 8; i++) {
			EXPECT_TRUE(saw_eof(peer[i], SOON));
			close(peer[i]);
		}
		ASSERT_TRUE(agent_kill(&c));
		/* Let the old session's last opener go. */
		ASSERT_EQ(0, agent_close(&self->b));
		ASSERT_EQ(0, agent_open(&self->b));
	}
	if (visible)
		EXPECT_LT(0, met) TH_LOG("no call was made while the session started");
}

/*
 * The owner's other threads: what they add is in the session, or it is refused; nothing in
 * between.
 */
TEST_F(sock, starting_owner_adds_before_or_not_at_all)
{
	bool refused = false;
	int i, peer[8];
	uint32_t do_it;
	long ret;

	ASSERT_EQ(0, agent_open(&self->a));
	for (i = 0; i < 8; i++) {
		int fd[2];

		ASSERT_EQ(0, make_pair(KIND_UNIX, fd));
		ASSERT_EQ(0, agent_set_sock(&self->a, &fd[0]));
		peer[i] = fd[1];
	}
	ASSERT_EQ(0, agent_ioctl(&self->a, NBD_SET_FLAGS, MULTI_CONN));
	ASSERT_LE(0, agent_take(&self->a, 1, &self->a_sock[0]));
	do_it = agent_do_it(&self->a);
	while (!nbd_sys_exists(&self->dev, "pid")) {
		ret = agent_call(&self->a, AGENT_IOCTL_FD, 0, 0, NBD_SET_SOCK, 1);
		ASSERT_TRUE(ret == -EBUSY || (ret == 0 && !refused)) {
			TH_LOG("SET_SOCK: %ld", ret);
		}
		refused = ret;
	}
	EXPECT_EQ(-EBUSY, agent_call(&self->a, AGENT_IOCTL_FD, 0, 0, NBD_SET_SOCK, 1));
	EXPECT_EQ(0, agent_ioctl(&self->a, NBD_CLEAR_SOCK, 0));
	EXPECT_EQ(0, agent_wait(&self->a, do_it, BOUNDED));
	for (i = 0; i < 8; i++)
		EXPECT_TRUE(saw_eof(peer[i], SOON));
	ASSERT_EQ(0, agent_call(&self->a, AGENT_CLOSE, 0, 1, 0, 0));
	EXPECT_TRUE(saw_eof(A_PEER, SOON));
}

/* Running */

TEST_F(sock, running_set_sock_is_ebusy_for_all)
{
	ASSERT_EQ(0, session_start(&self->s, &self->dev, KIND_UNIX, TOY_OBEDIENT));
	EXPECT_EQ(-EBUSY, agent_set_sock(&self->s.client, &self->a_sock[0]));
	EXPECT_TRUE(saw_eof(A_PEER, SOON));
	ASSERT_EQ(0, agent_open(&self->b));
	EXPECT_EQ(-EBUSY, agent_set_sock(&self->b, &self->b_sock[0]));
	EXPECT_TRUE(saw_eof(B_PEER, SOON));
	/* And the session does not mind. */
	EXPECT_EQ(4096, agent_read(&self->b, 0, 4096));
	EXPECT_TRUE(no_eof(self->s.toy.fd));
}

TEST_F(sock, running_do_it_is_ebusy)
{
	ASSERT_EQ(0, session_start(&self->s, &self->dev, KIND_UNIX, TOY_OBEDIENT));
	ASSERT_EQ(0, agent_open(&self->b));
	EXPECT_EQ(-EBUSY, agent_ioctl(&self->b, NBD_DO_IT, 0));
	EXPECT_EQ(4096, agent_read(&self->b, 0, 4096));
}

TEST_F(sock, running_clear_sock_ends_it)
{
	ASSERT_EQ(0, session_start(&self->s, &self->dev, KIND_UNIX, TOY_OBEDIENT));
	ASSERT_EQ(0, agent_open(&self->b));
	EXPECT_EQ(0, agent_ioctl(&self->b, NBD_CLEAR_SOCK, 0));
	EXPECT_TRUE(saw_eof(self->s.toy.fd, SOON));
	EXPECT_EQ(0, session_result(&self->s));
}

TEST_F(sock, running_disconnect_ends_it)
{
	ASSERT_EQ(0, session_start(&self->s, &self->dev, KIND_UNIX, TOY_OBEDIENT));
	ASSERT_EQ(0, agent_open(&self->b));
	EXPECT_EQ(0, agent_ioctl(&self->b, NBD_DISCONNECT, 0));
	EXPECT_EQ(0, session_result(&self->s));
	EXPECT_TRUE(saw_eof(self->s.toy.fd, SOON));
	EXPECT_LE(1, toy_requests(&self->s.toy));
}

TEST_F(sock, running_signal_ends_it)
{
	ASSERT_EQ(0, session_start(&self->s, &self->dev, KIND_UNIX, TOY_OBEDIENT));
	kill(self->s.client.pid, SIGUSR1);
	EXPECT_EQ(-EINTR, session_result(&self->s));
	EXPECT_TRUE(saw_eof(self->s.toy.fd, SOON));
}

TEST_F(sock, running_server_close_ends_it)
{
	ASSERT_EQ(0, session_start(&self->s, &self->dev, KIND_UNIX, TOY_OBEDIENT));
	EXPECT_EQ(0, session_stop(&self->s));
	EXPECT_TRUE(saw_eof(self->s.toy.fd, SOON));
	ASSERT_EQ(0, agent_close(&self->s.client));
	EXPECT_FALSE(nbd_sys_exists(&self->dev, "pid"));
	EXPECT_EQ(0, nbd_sys(&self->dev, "size"));
}

TEST_F(sock, running_survives_the_owners_last_close)
{
	ASSERT_EQ(0, session_start(&self->s, &self->dev, KIND_UNIX, TOY_OBEDIENT));
	ASSERT_EQ(0, agent_open(&self->b));
	EXPECT_EQ(4096, agent_read(&self->b, 0, 4096));
	ASSERT_EQ(0, agent_close(&self->b));
	EXPECT_TRUE(nbd_running(&self->dev));
	EXPECT_TRUE(no_eof(self->s.toy.fd));
}

/* Stopped */

TEST_F(sock, stopped_only_opener_can_set_up_again)
{
	struct toy toy;
	uint32_t do_it;

	ASSERT_EQ(0, session_start(&self->s, &self->dev, KIND_UNIX, TOY_OBEDIENT));
	ASSERT_EQ(0, session_stop(&self->s));
	EXPECT_EQ(0, agent_set_sock(&self->s.client, &self->a_sock[0]));
	EXPECT_TRUE(no_eof(A_PEER));
	/* Back in Idle means without the old parameters. */
	ASSERT_EQ(0, toy_start(&toy, A_PEER, TOY_OBEDIENT));
	EXPECT_EQ(0, agent_ioctl(&self->s.client, NBD_SET_SIZE, SESSION_SIZE));
	do_it = agent_do_it(&self->s.client);
	EXPECT_TRUE(WAIT_UNTIL(nbd_running(&self->dev), BOUNDED));
	EXPECT_EQ(4096, agent_read(&self->s.client, 0, 4096));
	EXPECT_EQ(0, agent_ioctl(&self->s.client, NBD_DISCONNECT, 0));
	EXPECT_EQ(0, agent_wait(&self->s.client, do_it, BOUNDED));
}

TEST_F(sock, stopped_old_opener_alone_can_set_up)
{
	ASSERT_EQ(0, agent_open(&self->b));
	ASSERT_EQ(0, session_start(&self->s, &self->dev, KIND_UNIX, TOY_OBEDIENT));
	ASSERT_EQ(0, session_stop(&self->s));
	ASSERT_TRUE(agent_kill(&self->s.client));
	EXPECT_EQ(0, agent_set_sock(&self->b, &self->b_sock[0]));
	EXPECT_TRUE(no_eof(B_PEER));
}

TEST_F(sock, stopped_other_openers_is_ebusy_until_they_are_gone)
{
	int again[2];

	HOLD();
	ASSERT_EQ(0, session_start(&self->s, &self->dev, KIND_UNIX, TOY_OBEDIENT));
	ASSERT_EQ(0, session_stop(&self->s));
	ASSERT_TRUE(agent_kill(&self->s.client));
	ASSERT_EQ(0, agent_open(&self->b));
	EXPECT_EQ(-EBUSY, agent_set_sock(&self->b, &self->b_sock[0]));
	EXPECT_TRUE(saw_eof(B_PEER, SOON));
	ASSERT_EQ(0, agent_close(&self->holder));
	ASSERT_EQ(0, make_pair(KIND_UNIX, again));
	EXPECT_EQ(0, agent_set_sock(&self->b, &again[0]));
	EXPECT_TRUE(no_eof(again[1]));
	/* Back in Idle means without the old size, now and after the last close. */
	EXPECT_EQ(0, nbd_sys(&self->dev, "size"));
	ASSERT_EQ(0, agent_close(&self->b));
	EXPECT_EQ(0, nbd_sys(&self->dev, "size"));
}

TEST_F(sock, stopped_old_client_is_refused_too)
{
	HOLD();
	ASSERT_EQ(0, session_start(&self->s, &self->dev, KIND_UNIX, TOY_OBEDIENT));
	ASSERT_EQ(0, session_stop(&self->s));
	EXPECT_EQ(-EBUSY, agent_set_sock(&self->s.client, &self->a_sock[0]));
	EXPECT_TRUE(saw_eof(A_PEER, SOON));
}

TEST_F(sock, stopped_old_opener_reads_nothing_new)
{
	HOLD();
	ASSERT_EQ(0, session_start(&self->s, &self->dev, KIND_UNIX, TOY_OBEDIENT));
	ASSERT_EQ(0, agent_open_as(&self->holder, 0, O_RDONLY | O_DIRECT));
	EXPECT_EQ(4096, agent_read(&self->holder, 0, 4096));
	ASSERT_EQ(0, session_stop(&self->s));
	/* An error or the end of a device without a size: no data. */
	EXPECT_GE(0, agent_read(&self->holder, 0, 4096));
}

TEST_F(sock, stopped_clear_sock_and_disconnect_succeed)
{
	HOLD();
	ASSERT_EQ(0, session_start(&self->s, &self->dev, KIND_UNIX, TOY_OBEDIENT));
	ASSERT_EQ(0, session_stop(&self->s));
	EXPECT_EQ(0, agent_ioctl(&self->holder, NBD_DISCONNECT, 0));
	EXPECT_EQ(0, agent_ioctl(&self->holder, NBD_CLEAR_SOCK, 0));
	EXPECT_EQ(0, agent_ioctl(&self->holder, NBD_DISCONNECT, 0));
}

TEST_F(sock, stopped_do_it_fails)
{
	HOLD();
	ASSERT_EQ(0, session_start(&self->s, &self->dev, KIND_UNIX, TOY_OBEDIENT));
	ASSERT_EQ(0, session_stop(&self->s));
	EXPECT_GT(0, agent_ioctl(&self->s.client, NBD_DO_IT, 0));
	EXPECT_GT(0, agent_ioctl(&self->holder, NBD_DO_IT, 0));
}

TEST_F(sock, stopped_last_close_returns_to_idle)
{
	HOLD();
	ASSERT_EQ(0, session_start(&self->s, &self->dev, KIND_UNIX, TOY_OBEDIENT));
	ASSERT_EQ(0, session_stop(&self->s));
	ASSERT_TRUE(agent_kill(&self->s.client));
	ASSERT_EQ(0, agent_close(&self->holder));
	EXPECT_FALSE(nbd_sys_exists(&self->dev, "pid"));
	ASSERT_EQ(0, session_start(&self->s, &self->dev, KIND_UNIX, TOY_OBEDIENT));
	EXPECT_EQ(4096, agent_read(&self->s.client, 0, 4096));
}

TEST_HARNESS_MAIN
