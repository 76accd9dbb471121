// SPDX-License-Identifier: GPL-2.0
/*
 * Who may add a socket to a device, and when: every state of the configuration, every kind of
 * owner, every kind of descriptor.
 */
#define _GNU_SOURCE
#include <kselftest_harness.h>
#include <linux/netlink.h>

#include "nbd_test.h"

FIXTURE(sock) {
	struct nbd_dev dev;
	struct agent a, b, holder;
	/* Sockets for a and b, and what is at their other end. */
	int a_sock[2], b_sock[2];
	struct session s;
};

FIXTURE_SETUP(sock)
{
	const char *why;

	why = nbd_pick(&self->dev);
	if (why)
		SKIP(return, "%s", why);
	ASSERT_EQ(0, make_pair(KIND_UNIX, self->a_sock));
	ASSERT_EQ(0, make_pair(KIND_UNIX, self->b_sock));
	ASSERT_EQ(0, agent_start(&self->a, self->dev.path));
	ASSERT_EQ(0, agent_start(&self->b, self->dev.path));
}

FIXTURE_TEARDOWN(sock)
{
	EXPECT_TRUE(nbd_give_back(&self->dev));
}

#define A_PEER self->a_sock[1]
#define B_PEER self->b_sock[1]

/* SET_SOCK with a new socket, whose other end stays open. */
static long set_new_sock(struct agent *a)
{
	int fd[2];

	return make_pair(KIND_UNIX, fd) ? -errno : agent_set_sock(a, &fd[0]);
}

/* Another process keeps the device open, so that nothing happens by a last close. */
#define HOLD() do {								\
	ASSERT_EQ(0, agent_start(&self->holder, self->dev.path));		\
	ASSERT_EQ(0, agent_open_as(&self->holder, 0, O_RDONLY));		\
} while (0)

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
	EXPECT_EQ(0, set_new_sock(&self->a));					\
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
	EXPECT_EQ(-EBUSY, set_new_sock(&child));
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
	ASSERT_EQ(0, set_new_sock(&self->a));
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

/*
 * go-nbd gives the socket away first and negotiates then, over its own descriptor: until the
 * session begins the driver neither reads nor writes.
 */
static void negotiate(struct __test_metadata *_metadata, int client, int server)
{
	static char sent[16384], got[sizeof(sent)];
	size_t len;
	int round;

	for (round = 0; round < 6; round++) {
		int from = round % 2 ? client : server, to = round % 2 ? server : client;

		len = 1 << (2 * round + 4);
		memset(sent, 'a' + round, len);
		ASSERT_EQ((ssize_t)len, send(from, sent, len, MSG_NOSIGNAL));
		ASSERT_EQ((ssize_t)len, recv(to, got, len, MSG_WAITALL)) TH_LOG("round %d", round);
		ASSERT_EQ(0, memcmp(sent, got, len));
	}
}

FIXTURE(negotiated) {
	struct nbd_dev dev;
	struct session s;
};

FIXTURE_VARIANT(negotiated) {
	enum sock_kind kind;
	bool nonblock;		/* as a Go program has its sockets */
};

FIXTURE_VARIANT_ADD(negotiated, unix) { .kind = KIND_UNIX };
FIXTURE_VARIANT_ADD(negotiated, tcp) { .kind = KIND_TCP };
FIXTURE_VARIANT_ADD(negotiated, tcp_nonblock) { .kind = KIND_TCP, .nonblock = true };

FIXTURE_SETUP(negotiated)
{
	const char *why;

	why = nbd_pick(&self->dev);
	if (why)
		SKIP(return, "%s", why);
}

FIXTURE_TEARDOWN(negotiated)
{
	EXPECT_TRUE(nbd_give_back(&self->dev));
}

TEST_F(negotiated, after_set_sock)
{
	struct agent *a = &self->s.client;
	struct timeval tv = { .tv_sec = 10 };
	int fd[2], client;
	uint32_t do_it;

	ASSERT_EQ(0, make_pair(variant->kind, fd));
	client = dup(fd[0]);
	ASSERT_LE(0, client);
	setsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
	setsockopt(fd[1], SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
	ASSERT_EQ(0, agent_start(a, self->dev.path));
	ASSERT_EQ(0, agent_open(a));
	ASSERT_EQ(0, agent_set_sock(a, &fd[0]));
	negotiate(_metadata, client, fd[1]);
	ASSERT_EQ(0, agent_ioctl(a, NBD_SET_BLKSIZE, 1024));
	ASSERT_EQ(0, agent_ioctl(a, NBD_SET_SIZE, SESSION_SIZE));
	negotiate(_metadata, client, fd[1]);
	ASSERT_EQ(0, agent_ioctl(a, NBD_SET_FLAGS, NBD_FLAG_HAS_FLAGS));
	if (variant->nonblock)
		ASSERT_EQ(0, fcntl(client, F_SETFL, O_NONBLOCK));
	setsockopt(fd[1], SOL_SOCKET, SO_RCVTIMEO, &(struct timeval) {}, sizeof(tv));
	ASSERT_EQ(0, toy_start(&self->s.toy, fd[1], TOY_OBEDIENT));
	do_it = agent_do_it(a);
	ASSERT_TRUE(WAIT_UNTIL(nbd_running(&self->dev), BOUNDED));
	EXPECT_EQ(262144, agent_read(a, 0, 262144));
	EXPECT_EQ(4096, agent_call(a, AGENT_WRITE, 0, 0, 0, 4096));
	EXPECT_EQ(0, agent_ioctl(a, NBD_DISCONNECT, 0));
	EXPECT_EQ(0, agent_wait(a, do_it, BOUNDED));
	EXPECT_TRUE(saw_eof(fd[1], SOON)) TH_LOG("the client's own descriptor keeps it open");
}

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

/* Descriptors */

TEST_F(sock, descriptor_recycled)
{
	struct toy toy[2];
	uint32_t do_it;
	int cpu;

	ASSERT_EQ(0, agent_open(&self->a));
	ASSERT_LE(0, agent_take(&self->a, 1, &self->a_sock[0]));
	ASSERT_LE(0, agent_take(&self->a, 2, &self->b_sock[0]));
	/* Number 200 is first the one socket, then the other. */
	ASSERT_LE(0, agent_call(&self->a, AGENT_DUP, 0, 3, 200, 1));
	ASSERT_EQ(0, agent_call(&self->a, AGENT_IOCTL, 0, 0, NBD_SET_SOCK, 200));
	ASSERT_EQ(0, agent_call(&self->a, AGENT_CLOSE, 0, 3, 0, 0));
	ASSERT_EQ(0, agent_call(&self->a, AGENT_CLOSE, 0, 1, 0, 0));
	EXPECT_TRUE(no_eof(A_PEER));
	ASSERT_LE(0, agent_call(&self->a, AGENT_DUP, 0, 3, 200, 2));
	ASSERT_EQ(0, agent_call(&self->a, AGENT_IOCTL, 0, 0, NBD_SET_SOCK, 200));
	ASSERT_EQ(0, agent_call(&self->a, AGENT_CLOSE, 0, 3, 0, 0));
	ASSERT_EQ(0, agent_call(&self->a, AGENT_CLOSE, 0, 2, 0, 0));

	ASSERT_EQ(0, toy_start(&toy[0], A_PEER, TOY_OBEDIENT));
	ASSERT_EQ(0, toy_start(&toy[1], B_PEER, TOY_OBEDIENT));
	ASSERT_EQ(0, agent_ioctl(&self->a, NBD_SET_FLAGS, MULTI_CONN));
	ASSERT_EQ(0, agent_ioctl(&self->a, NBD_SET_SIZE, SESSION_SIZE));
	do_it = agent_do_it(&self->a);
	ASSERT_TRUE(WAIT_UNTIL(nbd_running(&self->dev), BOUNDED));
	ASSERT_EQ(0, agent_open_as(&self->a, 4, O_RDONLY | O_DIRECT));
	/* Which of them a request takes depends on the CPU. */
	for (cpu = 0; cpu < 2; cpu++) {
		agent_call(&self->a, AGENT_CPU, 0, 0, cpu, 0);
		EXPECT_EQ(4096, agent_call(&self->a, AGENT_READ, 0, 4, 8192 * cpu, 4096));
	}
	if (sysconf(_SC_NPROCESSORS_ONLN) > 1) {
		EXPECT_LE(1, toy_requests(&toy[0]));
		EXPECT_LE(1, toy_requests(&toy[1]));
	}
	EXPECT_EQ(0, agent_ioctl(&self->a, NBD_DISCONNECT, 0));
	EXPECT_EQ(0, agent_wait(&self->a, do_it, BOUNDED));
	EXPECT_TRUE(saw_eof(A_PEER, SOON));
	EXPECT_TRUE(saw_eof(B_PEER, SOON));
}

TEST_F(sock, descriptor_the_same_socket_twice)
{
	ASSERT_EQ(0, agent_open(&self->a));
	ASSERT_LE(0, agent_take(&self->a, 1, &self->a_sock[0]));
	ASSERT_EQ(0, agent_call(&self->a, AGENT_IOCTL_FD, 0, 0, NBD_SET_SOCK, 1));
	/* Whatever it says, no reference may be left behind. */
	agent_call(&self->a, AGENT_IOCTL_FD, 0, 0, NBD_SET_SOCK, 1);
	ASSERT_EQ(0, agent_call(&self->a, AGENT_CLOSE, 0, 1, 0, 0));
	EXPECT_TRUE(no_eof(A_PEER));
	EXPECT_EQ(0, agent_ioctl(&self->a, NBD_CLEAR_SOCK, 0));
	EXPECT_TRUE(saw_eof(A_PEER, SOON));
}

TEST_F(sock, descriptor_open_elsewhere_is_shut_down_too)
{
	int dup_fd = dup(self->a_sock[0]);

	/* A copy in another process must not keep the peer waiting. */
	ASSERT_EQ(0, agent_open(&self->a));
	ASSERT_EQ(0, agent_set_sock(&self->a, &dup_fd));
	ASSERT_EQ(0, agent_ioctl(&self->a, NBD_CLEAR_SOCK, 0));
	EXPECT_TRUE(saw_eof(A_PEER, SOON));
}

TEST_F(sock, descriptor_listening_or_unconnected_does_not_hang)
{
	struct sockaddr_in in = {
		.sin_family = AF_INET,
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK),
	};
	int i;

	ASSERT_EQ(0, agent_open(&self->a));
	for (i = 0; i < 2; i++) {
		int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
		long ret;

		if (!i) {
			ASSERT_EQ(0, bind(fd, (struct sockaddr *)&in, sizeof(in)));
			ASSERT_EQ(0, listen(fd, 1));
		}
		ret = agent_set_sock(&self->a, &fd);
		/* The C driver takes them; to refuse them is as good. */
		if (ret) {
			EXPECT_EQ(-EINVAL, ret);
			continue;
		}
		EXPECT_NE(-ETIME, agent_wait(&self->a, agent_do_it(&self->a), BOUNDED));
		EXPECT_EQ(0, agent_ioctl(&self->a, NBD_CLEAR_SOCK, 0));
		ASSERT_EQ(0, agent_close(&self->a));
		ASSERT_EQ(0, agent_open(&self->a));
	}
}

/* What is refused leaves no trace. */

FIXTURE(bad) {
	struct nbd_dev dev;
	struct agent a, b;
};

FIXTURE_VARIANT(bad) {
	int family, type, protocol;	/* of a socket to make, or */
	const char *file;		/* a file to open, or */
	unsigned long number;		/* a number that is no descriptor */
	int error;
};

FIXTURE_VARIANT_ADD(bad, minus_one) { .number = -1UL, .error = EINVAL };
FIXTURE_VARIANT_ADD(bad, past_int_max) { .number = 1UL << 31, .error = EINVAL };
FIXTURE_VARIANT_ADD(bad, past_32_bits) { .number = 1UL << 32, .error = EINVAL };
FIXTURE_VARIANT_ADD(bad, closed) { .number = 999, .error = EBADF };
FIXTURE_VARIANT_ADD(bad, int_max) { .number = 0x7fffffff, .error = EBADF };
FIXTURE_VARIANT_ADD(bad, file) { .file = "/dev/null", .error = ENOTSOCK };
FIXTURE_VARIANT_ADD(bad, directory) { .file = "/", .error = ENOTSOCK };
FIXTURE_VARIANT_ADD(bad, the_device_itself) { .file = "device", .error = ENOTSOCK };
FIXTURE_VARIANT_ADD(bad, udp) { .family = AF_INET, .type = SOCK_DGRAM, .error = EINVAL };
FIXTURE_VARIANT_ADD(bad, udp6) { .family = AF_INET6, .type = SOCK_DGRAM, .error = EINVAL };
FIXTURE_VARIANT_ADD(bad, unix_dgram) { .family = AF_UNIX, .type = SOCK_DGRAM, .error = EINVAL };
FIXTURE_VARIANT_ADD(bad, unix_seqpacket) {
	.family = AF_UNIX, .type = SOCK_SEQPACKET, .error = EINVAL,
};

FIXTURE_VARIANT_ADD(bad, netlink) { .family = AF_NETLINK, .type = SOCK_RAW, .error = EINVAL };
FIXTURE_VARIANT_ADD(bad, raw) {
	.family = AF_INET, .type = SOCK_RAW, .protocol = IPPROTO_ICMP, .error = EINVAL,
};

FIXTURE_SETUP(bad)
{
	const char *why;

	why = nbd_pick(&self->dev);
	if (why)
		SKIP(return, "%s", why);
	ASSERT_EQ(0, agent_start(&self->a, self->dev.path));
	ASSERT_EQ(0, agent_start(&self->b, self->dev.path));
	ASSERT_EQ(0, agent_open(&self->a));
	ASSERT_EQ(0, agent_open(&self->b));
}

FIXTURE_TEARDOWN(bad)
{
	EXPECT_TRUE(nbd_give_back(&self->dev));
}

static int bad_fd(const struct _fixture_variant_bad *v, const char *dev)
{
	if (v->file)
		return open(strcmp(v->file, "device") ? v->file : dev, O_RDONLY | O_CLOEXEC);
	return socket(v->family, v->type | SOCK_CLOEXEC, v->protocol);
}

static long set_bad(struct agent *a, const struct _fixture_variant_bad *v, const char *dev)
{
	int fd;

	if (v->number)
		return agent_ioctl(a, NBD_SET_SOCK, v->number);
	fd = bad_fd(v, dev);
	return fd < 0 ? -errno : agent_set_sock(a, &fd);
}

TEST_F(bad, refused_and_no_owner)
{
	int fd[2];

	EXPECT_EQ(-variant->error, set_bad(&self->a, variant, self->dev.path));
	/* a is not the owner: b can be it, and then a cannot. */
	ASSERT_EQ(0, make_pair(KIND_UNIX, fd));
	EXPECT_EQ(0, agent_set_sock(&self->b, &fd[0]));
	EXPECT_TRUE(no_eof(fd[1]));
	EXPECT_EQ(-EBUSY, set_new_sock(&self->a));
}

TEST_F(bad, refused_in_a_setup_and_not_counted)
{
	int good[2];
	struct toy toy;
	uint32_t do_it;

	ASSERT_EQ(0, make_pair(KIND_UNIX, good));
	ASSERT_EQ(0, agent_set_sock(&self->a, &good[0]));
	EXPECT_EQ(-variant->error, set_bad(&self->a, variant, self->dev.path));
	EXPECT_TRUE(no_eof(good[1]));
	/* Were it counted, this would be two connections. */
	ASSERT_EQ(0, toy_start(&toy, good[1], TOY_OBEDIENT));
	ASSERT_EQ(0, agent_ioctl(&self->a, NBD_SET_SIZE, SESSION_SIZE));
	do_it = agent_do_it(&self->a);
	EXPECT_TRUE(WAIT_UNTIL(nbd_running(&self->dev), BOUNDED));
	toy_hang_up(&toy);
	EXPECT_EQ(0, agent_wait(&self->a, do_it, BOUNDED));
}

TEST_HARNESS_MAIN
