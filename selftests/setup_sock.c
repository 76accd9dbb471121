// SPDX-License-Identifier: GPL-2.0
/*
 * What process may add a socket to a device that has no session: every state of the setup, and
 * every kind of owner.
 */
#include "setup_sock.h"

/* a has the device open and is the owner of its setup. */
#define A_SETS_UP() do {							\
	ASSERT_EQ(0, agent_open(&self->a));					\
	ASSERT_EQ(0, agent_set_sock(&self->a, &self->a_sock[0]));		\
} while (0)

/* b's SET_SOCK is refused, its socket is not kept, and a's is still there. */
#define B_IS_REFUSED() do {							\
	EXPECT_EQ(-EBUSY, agent_set_sock(&self->b, &self->b_sock[0]));		\
	EXPECT_TRUE(saw_eof(B_PEER, SOON));					\
	EXPECT_TRUE(no_eof(A_PEER));						\
} while (0)

/* That b is refused has not changed whose it is. */
#define A_STAYS_THE_OWNER() do {						\
	ASSERT_EQ(0, agent_open(&self->b));					\
	B_IS_REFUSED();								\
	EXPECT_EQ(0, agent_set_new_sock(&self->a));					\
} while (0)

/* b's SET_SOCK succeeds, and what a had set up is gone. */
#define B_TAKES_OVER() do {							\
	EXPECT_EQ(0, agent_set_sock(&self->b, &self->b_sock[0]));		\
	EXPECT_TRUE(saw_eof(A_PEER, SOON));					\
	EXPECT_TRUE(no_eof(B_PEER));						\
} while (0)

/* Idle */

TEST_F(sock, idle_first_caller_becomes_owner)
{
	A_SETS_UP();
	EXPECT_TRUE(no_eof(A_PEER));
	ASSERT_EQ(0, agent_open(&self->b));
	B_IS_REFUSED();
}

TEST_F(sock, idle_other_openers_do_not_matter)
{
	HOLD();
	ASSERT_EQ(0, agent_open(&self->b));
	A_SETS_UP();
	EXPECT_TRUE(no_eof(A_PEER));
}

TEST_F(sock, idle_read_only_descriptor_can_configure)
{
	ASSERT_EQ(0, agent_open_as(&self->a, 0, O_RDONLY));
	EXPECT_EQ(0, agent_set_sock(&self->a, &self->a_sock[0]));
}

TEST_F(sock, idle_do_it_is_einval)
{
	ASSERT_EQ(0, agent_open(&self->a));
	EXPECT_EQ(-EINVAL, agent_ioctl(&self->a, NBD_DO_IT, 0));
	EXPECT_FALSE(nbd_sys_exists(&self->dev, "pid"));
	EXPECT_EQ(0, agent_set_sock(&self->a, &self->a_sock[0]));
}

TEST_F(sock, idle_clear_sock_succeeds)
{
	ASSERT_EQ(0, agent_open(&self->a));
	EXPECT_EQ(0, agent_ioctl(&self->a, NBD_CLEAR_SOCK, 0));
	EXPECT_EQ(0, agent_ioctl(&self->a, NBD_CLEAR_SOCK, 0));
}

TEST_F(sock, idle_disconnect_succeeds)
{
	ASSERT_EQ(0, agent_open(&self->a));
	EXPECT_EQ(0, agent_ioctl(&self->a, NBD_DISCONNECT, 0));
	EXPECT_EQ(0, agent_ioctl(&self->a, NBD_DISCONNECT, 0));
}

TEST_F(sock, idle_after_disconnect_a_session_runs)
{
	HOLD();
	EXPECT_EQ(0, agent_ioctl(&self->holder, NBD_DISCONNECT, 0));
	ASSERT_EQ(0, session_start(&self->s, &self->dev, KIND_UNIX, TOY_OBEDIENT));
	EXPECT_EQ(4096, agent_read(&self->s.client, 0, 4096));
}

/* Setup */

TEST_F(sock, setup_same_owner_twice)
{
	int second[2];

	A_SETS_UP();
	ASSERT_EQ(0, make_pair(KIND_UNIX, second));
	EXPECT_EQ(0, agent_set_sock(&self->a, &second[0]));
	EXPECT_TRUE(no_eof(A_PEER));
	EXPECT_TRUE(no_eof(second[1]));
}

TEST_F(sock, setup_same_owner_by_another_descriptor)
{
	int second[2];

	A_SETS_UP();
	ASSERT_EQ(0, make_pair(KIND_UNIX, second));
	ASSERT_EQ(0, agent_open_as(&self->a, 1, O_RDWR));
	ASSERT_LE(0, agent_take(&self->a, 2, &second[0]));
	EXPECT_EQ(0, agent_call(&self->a, AGENT_IOCTL_FD, 0, 1, NBD_SET_SOCK, 2));
}

TEST_F(sock, setup_other_live_owner_is_ebusy)
{
	A_SETS_UP();
	A_STAYS_THE_OWNER();
}

TEST_F(sock, setup_owner_has_exited_a_zombie)
{
	HOLD();
	A_SETS_UP();
	ASSERT_TRUE(agent_kill(&self->a));
	ASSERT_EQ(0, agent_open(&self->b));
	B_TAKES_OVER();
}

TEST_F(sock, setup_owner_has_exited_and_was_reaped)
{
	HOLD();
	A_SETS_UP();
	agent_send(&self->a, AGENT_EXIT, 0, 0, 0, 0, -1);
	ASSERT_TRUE(reap(self->a.pid, BOUNDED));
	ASSERT_EQ(0, agent_open(&self->b));
	B_TAKES_OVER();
}

TEST_F(sock, setup_stale_setup_is_dropped_whole)
{
	int second[2];
	uint32_t do_it;

	HOLD();
	A_SETS_UP();
	ASSERT_EQ(0, make_pair(KIND_UNIX, second));
	ASSERT_EQ(0, agent_set_sock(&self->a, &second[0]));
	ASSERT_TRUE(agent_kill(&self->a));
	ASSERT_EQ(0, agent_open(&self->b));
	B_TAKES_OVER();
	EXPECT_TRUE(saw_eof(second[1], SOON));
	/*
	 * With one of a's sockets left, this would be a second connection, which the flags do not
	 * allow.
	 */
	ASSERT_EQ(0, toy_start(&self->s.toy, self->b_sock[1], TOY_OBEDIENT));
	EXPECT_EQ(0, agent_ioctl(&self->b, NBD_SET_SIZE, SESSION_SIZE));
	do_it = agent_do_it(&self->b);
	EXPECT_TRUE(WAIT_UNTIL(nbd_running(&self->dev), BOUNDED));
	toy_hang_up(&self->s.toy);
	EXPECT_EQ(0, agent_wait(&self->b, do_it, BOUNDED));
}

TEST_F(sock, setup_thread_of_the_owner_is_the_owner)
{
	int second[2];

	A_SETS_UP();
	ASSERT_EQ(0, make_pair(KIND_UNIX, second));
	EXPECT_EQ(0, agent_set_sock_as(&self->a, &second[0], AGENT_THREAD));
}

TEST_F(sock, setup_by_a_thread_that_has_ended)
{
	ASSERT_EQ(0, agent_open(&self->a));
	ASSERT_EQ(0, agent_set_sock_as(&self->a, &self->a_sock[0], AGENT_THREAD));
	A_STAYS_THE_OWNER();
}

TEST_F(sock, setup_owner_lives_without_its_first_thread)
{
	char path[64];

	HOLD();
	A_SETS_UP();
	ASSERT_EQ(0, agent_call(&self->a, AGENT_LEADER_EXIT, 0, 0, 0, 0));
	/* Until the first thread is a zombie there is nothing to test. */
	snprintf(path, sizeof(path), "/proc/%d/task/%d/stat", self->a.pid, self->a.pid);
	ASSERT_TRUE(WAIT_UNTIL(({
		char buf[256] = "", *p;
		int fd = open(path, O_RDONLY);

		if (read(fd, buf, sizeof(buf) - 1) < 0)
			buf[0] = 0;
		close(fd);
		p = strrchr(buf, ')');
		p && p[2] == 'Z';
	}), BOUNDED));
	A_STAYS_THE_OWNER();
}

TEST_F(sock, setup_child_is_another_process)
{
	struct agent child;

	A_SETS_UP();
	ASSERT_EQ(0, agent_fork(&self->a, &child));
	EXPECT_EQ(-EBUSY, agent_set_sock(&child, &self->b_sock[0]));
	EXPECT_TRUE(saw_eof(B_PEER, SOON));
	EXPECT_TRUE(no_eof(A_PEER));
}

TEST_F(sock, setup_child_does_not_keep_it_alive)
{
	struct agent child;

	A_SETS_UP();
	ASSERT_EQ(0, agent_fork(&self->a, &child));
	ASSERT_TRUE(agent_kill(&self->a));
	ASSERT_EQ(0, agent_open(&self->b));
	B_TAKES_OVER();
	EXPECT_EQ(-EBUSY, agent_set_new_sock(&child));
}

/* nbd-client sets up, forks, and exits; its child calls NBD_DO_IT. */
TEST_F(sock, setup_child_of_a_dead_owner_can_start)
{
	struct agent child;
	uint32_t do_it;

	A_SETS_UP();
	ASSERT_EQ(0, toy_start(&self->s.toy, A_PEER, TOY_OBEDIENT));
	ASSERT_EQ(0, agent_ioctl(&self->a, NBD_SET_SIZE, SESSION_SIZE));
	ASSERT_EQ(0, agent_fork(&self->a, &child));
	ASSERT_TRUE(agent_kill(&self->a));
	do_it = agent_do_it(&child);
	ASSERT_TRUE(WAIT_UNTIL(nbd_running(&self->dev), BOUNDED));
	EXPECT_EQ(4096, agent_read(&child, 0, 4096));
	EXPECT_EQ(0, agent_ioctl(&child, NBD_DISCONNECT, 0));
	EXPECT_EQ(0, agent_wait(&child, do_it, BOUNDED));
}

TEST_F(sock, setup_owner_survives_exec)
{
	HOLD();
	A_SETS_UP();
	ASSERT_EQ(0, agent_call(&self->a, AGENT_EXEC, 0, 0, 0, 0));
	A_STAYS_THE_OWNER();
}

TEST_F(sock, setup_owner_survives_exec_by_a_thread)
{
	HOLD();
	A_SETS_UP();
	ASSERT_EQ(0, agent_call(&self->a, AGENT_EXEC, AGENT_THREAD, 0, 0, 0));
	A_STAYS_THE_OWNER();
}

TEST_F(sock, setup_clear_sock_returns_to_idle)
{
	HOLD();
	A_SETS_UP();
	EXPECT_EQ(0, agent_ioctl(&self->a, NBD_CLEAR_SOCK, 0));
	EXPECT_TRUE(saw_eof(A_PEER, SOON));
	ASSERT_EQ(0, agent_open(&self->b));
	EXPECT_EQ(-EINVAL, agent_ioctl(&self->b, NBD_DO_IT, 0));
	EXPECT_EQ(0, agent_set_sock(&self->b, &self->b_sock[0]));
	EXPECT_TRUE(no_eof(B_PEER));
}

TEST_F(sock, setup_clear_sock_by_another_process)
{
	A_SETS_UP();
	ASSERT_EQ(0, agent_open(&self->b));
	EXPECT_EQ(0, agent_ioctl(&self->b, NBD_CLEAR_SOCK, 0));
	EXPECT_TRUE(saw_eof(A_PEER, SOON));
	EXPECT_EQ(0, agent_set_sock(&self->b, &self->b_sock[0]));
}

TEST_F(sock, setup_disconnect_succeeds)
{
	A_SETS_UP();
	EXPECT_EQ(0, agent_ioctl(&self->a, NBD_DISCONNECT, 0));
}

TEST_F(sock, setup_last_close_drops_it)
{
	A_SETS_UP();
	ASSERT_EQ(0, agent_close(&self->a));
	EXPECT_TRUE(saw_eof(A_PEER, SOON));
	ASSERT_EQ(0, agent_open(&self->b));
	EXPECT_EQ(0, agent_set_sock(&self->b, &self->b_sock[0]));
}

TEST_F(sock, setup_close_by_the_owner_keeps_it_while_others_hold)
{
	HOLD();
	A_SETS_UP();
	ASSERT_EQ(0, agent_close(&self->a));
	ASSERT_EQ(0, agent_open(&self->b));
	B_IS_REFUSED();
}

TEST_F(sock, setup_last_close_drops_the_parameters)
{
	ASSERT_EQ(0, agent_open(&self->a));
	ASSERT_EQ(0, agent_ioctl(&self->a, NBD_SET_SIZE, SESSION_SIZE));
	ASSERT_EQ(0, agent_ioctl(&self->a, NBD_SET_FLAGS, NBD_FLAG_HAS_FLAGS | NBD_FLAG_READ_ONLY));
	ASSERT_EQ(0, agent_close(&self->a));

	A_SETS_UP();
	ASSERT_EQ(0, toy_start(&self->s.toy, A_PEER, TOY_OBEDIENT));
	agent_do_it(&self->a);
	ASSERT_TRUE(WAIT_UNTIL(nbd_sys_exists(&self->dev, "pid"), BOUNDED));
	EXPECT_EQ(0, nbd_sys(&self->dev, "size"));
	EXPECT_EQ(0, nbd_sys(&self->dev, "ro"));
}

TEST_F(sock, setup_two_sockets_without_multi_conn_is_einval)
{
	int second[2];

	HOLD();
	A_SETS_UP();
	ASSERT_EQ(0, make_pair(KIND_UNIX, second));
	ASSERT_EQ(0, agent_set_sock(&self->a, &second[0]));
	EXPECT_EQ(-EINVAL, agent_ioctl(&self->a, NBD_DO_IT, 0));
	/* A start that failed leaves nothing. */
	EXPECT_TRUE(saw_eof(A_PEER, SOON));
	EXPECT_TRUE(saw_eof(second[1], SOON));
	EXPECT_FALSE(nbd_sys_exists(&self->dev, "pid"));
	ASSERT_EQ(0, agent_open(&self->b));
	EXPECT_EQ(0, agent_set_sock(&self->b, &self->b_sock[0]));
	EXPECT_TRUE(no_eof(B_PEER));
}

TEST_F(sock, setup_after_a_failed_start_a_session_runs)
{
	HOLD();
	A_SETS_UP();
	ASSERT_EQ(0, agent_set_new_sock(&self->a));
	EXPECT_EQ(-EINVAL, agent_ioctl(&self->a, NBD_DO_IT, 0));
	ASSERT_EQ(0, session_start(&self->s, &self->dev, KIND_UNIX, TOY_OBEDIENT));
	EXPECT_EQ(4096, agent_read(&self->s.client, 0, 4096));
}

TEST_F(sock, setup_two_sockets_with_multi_conn_runs)
{
	struct toy toy[2];
	uint32_t do_it;

	A_SETS_UP();
	ASSERT_EQ(0, agent_set_sock(&self->a, &self->b_sock[0]));
	ASSERT_EQ(0, toy_start(&toy[0], A_PEER, TOY_OBEDIENT));
	ASSERT_EQ(0, toy_start(&toy[1], B_PEER, TOY_OBEDIENT));
	ASSERT_EQ(0, agent_ioctl(&self->a, NBD_SET_FLAGS, MULTI_CONN));
	ASSERT_EQ(0, agent_ioctl(&self->a, NBD_SET_SIZE, SESSION_SIZE));
	do_it = agent_do_it(&self->a);
	ASSERT_TRUE(WAIT_UNTIL(nbd_running(&self->dev), BOUNDED));
	EXPECT_EQ(4096, agent_read(&self->a, 0, 4096));
	EXPECT_EQ(0, agent_ioctl(&self->a, NBD_DISCONNECT, 0));
	EXPECT_EQ(0, agent_wait(&self->a, do_it, BOUNDED));
	EXPECT_TRUE(saw_eof(A_PEER, SOON));
	EXPECT_TRUE(saw_eof(B_PEER, SOON));
}

TEST_F(sock, setup_parameters_in_any_order)
{
	uint32_t do_it;

	ASSERT_EQ(0, agent_open(&self->a));
	EXPECT_EQ(0, agent_ioctl(&self->a, NBD_SET_FLAGS, NBD_FLAG_HAS_FLAGS));
	EXPECT_EQ(0, agent_ioctl(&self->a, NBD_SET_TIMEOUT, 5));
	EXPECT_EQ(0, agent_ioctl(&self->a, NBD_SET_BLKSIZE, 4096));
	EXPECT_EQ(0, agent_ioctl(&self->a, NBD_SET_SIZE_BLOCKS, SESSION_SIZE / 4096));
	EXPECT_EQ(0, agent_set_sock(&self->a, &self->a_sock[0]));
	ASSERT_EQ(0, toy_start(&self->s.toy, A_PEER, TOY_OBEDIENT));
	do_it = agent_do_it(&self->a);
	ASSERT_TRUE(WAIT_UNTIL(nbd_running(&self->dev), BOUNDED));
	EXPECT_EQ(SESSION_SIZE / 512, nbd_sys(&self->dev, "size"));
	EXPECT_EQ(4096, nbd_sys(&self->dev, "queue/logical_block_size"));
	toy_hang_up(&self->s.toy);
	EXPECT_EQ(0, agent_wait(&self->a, do_it, BOUNDED));
}

/* As many as receivers can surely run; what is past that is refused and changes nothing. */
TEST_F(sock, setup_takes_256_sockets)
{
	int peer[257], i;

	if (!nbd_is_rust())
		SKIP(return, "the C driver takes any number");
	ASSERT_EQ(0, agent_open(&self->a));
	for (i = 0; i < 257; i++) {
		int fd[2];

		ASSERT_EQ(0, make_pair(KIND_UNIX, fd));
		ASSERT_EQ(i < 256 ? 0 : -ENOSPC, agent_set_sock(&self->a, &fd[0]))
			TH_LOG("number %d", i + 1);
		peer[i] = fd[1];
	}
	EXPECT_TRUE(saw_eof(peer[256], SOON)) TH_LOG("the refused socket is kept");
	for (i = 0; i < 256; i++)
		EXPECT_TRUE(no_eof(peer[i])) TH_LOG("number %d", i + 1);
	EXPECT_EQ(0, agent_ioctl(&self->a, NBD_CLEAR_SOCK, 0));
	for (i = 0; i < 256; i++)
		EXPECT_TRUE(saw_eof(peer[i], SOON)) TH_LOG("number %d", i + 1);
	EXPECT_EQ(0, agent_set_sock(&self->a, &self->a_sock[0]));
	EXPECT_TRUE(no_eof(A_PEER));
}

TEST_HARNESS_MAIN
