// SPDX-License-Identifier: GPL-2.0
/*
 * The failure that this driver was written for, case by case. In all of them another process
 * keeps the device open, as udev, a mount or a stuck virtual machine does.
 */
#define _GNU_SOURCE
#include <kselftest_harness.h>

#include "nbd_test.h"

#define AIO_N	16

FIXTURE(setup_case) {
	struct nbd_dev dev;
	struct agent a, b, holder;
	int a_sock[2], b_sock[2];
	struct session s;
};

FIXTURE_SETUP(setup_case)
{
	const char *why;

	why = nbd_pick(&self->dev);
	if (why)
		SKIP(return, "%s", why);
	ASSERT_EQ(0, make_pair(KIND_UNIX, self->a_sock));
	ASSERT_EQ(0, make_pair(KIND_UNIX, self->b_sock));
	ASSERT_EQ(0, agent_start(&self->a, self->dev.path));
	ASSERT_EQ(0, agent_start(&self->b, self->dev.path));
	ASSERT_EQ(0, agent_start(&self->holder, self->dev.path));
	ASSERT_EQ(0, agent_open(&self->holder));
}

FIXTURE_TEARDOWN(setup_case)
{
	EXPECT_TRUE(nbd_give_back(&self->dev));
}

/* A task sets a socket up and exits. */
#define FIRST_TASK() do {							\
	ASSERT_EQ(0, agent_open(&self->a));					\
	ASSERT_EQ(0, agent_set_sock(&self->a, &self->a_sock[0]));		\
	agent_send(&self->a, AGENT_EXIT, 0, 0, 0, 0, -1);			\
	ASSERT_TRUE(reap(self->a.pid, BOUNDED));				\
	ASSERT_EQ(0, agent_open(&self->b));					\
} while (0)

TEST_F(setup_case, A_owner_exits_and_another_task_sets_up)
{
	FIRST_TASK();
	EXPECT_EQ(0, agent_set_sock(&self->b, &self->b_sock[0]));
	EXPECT_TRUE(saw_eof(self->a_sock[1], SOON));
	EXPECT_TRUE(no_eof(self->b_sock[1]));
}

TEST_F(setup_case, A2_then_clear_sock_and_a_session)
{
	int again[2];
	uint32_t do_it;

	FIRST_TASK();
	agent_set_sock(&self->b, &self->b_sock[0]);
	EXPECT_EQ(0, agent_ioctl(&self->b, NBD_CLEAR_SOCK, 0));
	EXPECT_TRUE(saw_eof(self->a_sock[1], SOON));
	EXPECT_TRUE(saw_eof(self->b_sock[1], SOON));
	ASSERT_EQ(0, make_pair(KIND_UNIX, again));
	ASSERT_EQ(0, agent_set_sock(&self->b, &again[0]));
	ASSERT_EQ(0, toy_start(&self->s.toy, again[1], TOY_OBEDIENT));
	ASSERT_EQ(0, agent_ioctl(&self->b, NBD_SET_SIZE, SESSION_SIZE));
	do_it = agent_do_it(&self->b);
	ASSERT_TRUE(WAIT_UNTIL(nbd_running(&self->dev), BOUNDED)) {
		TH_LOG("NBD_DO_IT: %ld", agent_wait(&self->b, do_it, 0));
	}
	EXPECT_EQ(4096, agent_read(&self->holder, 0, 4096));
	EXPECT_EQ(0, agent_ioctl(&self->b, NBD_DISCONNECT, 0));
	EXPECT_EQ(0, agent_wait(&self->b, do_it, BOUNDED));
}

TEST_F(setup_case, B_five_rounds_of_set_sock_clear_sock)
{
	int round;

	ASSERT_EQ(0, agent_open(&self->a));
	for (round = 1; round <= 5; round++) {
		int fd[2];

		ASSERT_EQ(0, make_pair(KIND_UNIX, fd));
		EXPECT_EQ(0, agent_set_sock(&self->a, &fd[0]));
		EXPECT_EQ(0, agent_ioctl(&self->a, NBD_CLEAR_SOCK, 0));
		EXPECT_TRUE(saw_eof(fd[1], SOON)) {
			TH_LOG("round %d", round);
		}
		close(fd[1]);
	}
}

TEST_F(setup_case, C_session_ended_while_a_holder_remains)
{
	int again[2];
	uint32_t do_it;

	ASSERT_EQ(0, session_start(&self->s, &self->dev, KIND_UNIX, TOY_OBEDIENT));
	ASSERT_EQ(0, agent_ioctl(&self->s.client, NBD_DISCONNECT, 0));
	ASSERT_EQ(0, session_result(&self->s));
	ASSERT_TRUE(agent_kill(&self->s.client));
	ASSERT_EQ(0, agent_open(&self->b));
	EXPECT_EQ(-EBUSY, agent_set_sock(&self->b, &self->b_sock[0]));
	EXPECT_TRUE(saw_eof(self->b_sock[1], SOON));

	/* The moment the last old opener is gone. */
	ASSERT_EQ(0, agent_close(&self->holder));
	ASSERT_EQ(0, make_pair(KIND_UNIX, again));
	ASSERT_EQ(0, agent_set_sock(&self->b, &again[0]));
	ASSERT_EQ(0, toy_start(&self->s.toy, again[1], TOY_OBEDIENT));
	ASSERT_EQ(0, agent_ioctl(&self->b, NBD_SET_SIZE, SESSION_SIZE));
	do_it = agent_do_it(&self->b);
	ASSERT_TRUE(WAIT_UNTIL(nbd_running(&self->dev), BOUNDED));
	EXPECT_EQ(4096, agent_read(&self->b, 0, 4096));
	toy_hang_up(&self->s.toy);
	EXPECT_EQ(0, agent_wait(&self->b, do_it, BOUNDED));
}

/* Many refusals in a row: none may count for anything. */
TEST_F(setup_case, C_refusals_do_not_pile_up)
{
	int round;

	ASSERT_EQ(0, session_start(&self->s, &self->dev, KIND_UNIX, TOY_OBEDIENT));
	ASSERT_EQ(0, session_stop(&self->s));
	ASSERT_TRUE(agent_kill(&self->s.client));
	ASSERT_EQ(0, agent_open(&self->b));
	for (round = 0; round < scaled_down(100); round++) {
		int fd[2];

		ASSERT_EQ(0, make_pair(KIND_UNIX, fd));
		ASSERT_EQ(-EBUSY, agent_set_sock(&self->b, &fd[0]));
		ASSERT_TRUE(saw_eof(fd[1], SOON));
		close(fd[1]);
	}
	ASSERT_EQ(0, agent_close(&self->holder));
	EXPECT_EQ(0, agent_set_sock(&self->b, &self->b_sock[0]));
}

/* D: requests are in flight, there is no timeout, and all that could finish them goes away. */

FIXTURE(case_D) {
	struct nbd_dev dev;
	struct agent holder;
	struct session s;
};

FIXTURE_VARIANT(case_D) {
	bool server, client;	/* which of them dies */
	bool client_first;
	enum sock_kind kind;
};

FIXTURE_VARIANT_ADD(case_D, server_then_client) { .server = true, .client = true };
FIXTURE_VARIANT_ADD(case_D, client_then_server) {
	.server = true, .client = true, .client_first = true,
};

FIXTURE_VARIANT_ADD(case_D, server_only) { .server = true };
FIXTURE_VARIANT_ADD(case_D, client_only) { .client = true };
FIXTURE_VARIANT_ADD(case_D, server_then_client_tcp) {
	.server = true, .client = true, .kind = KIND_TCP,
};

FIXTURE_SETUP(case_D)
{
	const char *why;

	why = nbd_pick(&self->dev);
	if (why)
		SKIP(return, "%s", why);
	ASSERT_EQ(0, agent_start(&self->holder, self->dev.path));
	ASSERT_EQ(0, session_start(&self->s, &self->dev, variant->kind, TOY_OBEDIENT));
	/* Answered while the device is opened, silent from then on. */
	ASSERT_EQ(0, agent_open_as(&self->holder, 0, O_RDONLY | O_DIRECT));
	EXPECT_EQ(4096, agent_read(&self->holder, 0, 4096));
	kill(self->s.toy.pid, SIGSTOP);
	ASSERT_EQ(AIO_N, agent_call(&self->holder, AGENT_AIO_SUBMIT, 0, 0, AIO_N, 0));
	ASSERT_EQ(0, agent_call(&self->holder, AGENT_AIO_WAIT, 0, 0, 1, 20));
}

FIXTURE_TEARDOWN(case_D)
{
	EXPECT_TRUE(nbd_give_back(&self->dev));
}

/* One after the other has noticed. */
static void everybody_dies(struct session *s, const struct _fixture_variant_case_D *v)
{
	if (v->client && v->client_first) {
		kill(s->client.pid, SIGKILL);
		WAIT_UNTIL(exited(s->client.pid), SOON);
	}
	if (v->server) {
		toy_kill(&s->toy);
		if (v->client && !v->client_first)
			agent_wait(&s->client, s->do_it, SOON);
	}
	if (v->client)
		kill(s->client.pid, SIGKILL);
}

TEST_F(case_D, requests_are_finished_and_the_holder_can_exit)
{
	long long start = now_ms();

	everybody_dies(&self->s, variant);
	EXPECT_EQ(AIO_N, agent_call(&self->holder, AGENT_AIO_WAIT, 0, 0, AIO_N, scaled(SOON)));
	EXPECT_EQ(AIO_N, self->holder.aux);
	EXPECT_GE(scaled(2 * SOON), now_ms() - start);
	kill(self->holder.pid, SIGKILL);
	EXPECT_TRUE(WAIT_UNTIL(exited(self->holder.pid), 2 * SOON));
	kill(self->s.client.pid, SIGKILL);
	EXPECT_TRUE(WAIT_UNTIL(exited(self->s.client.pid), 2 * SOON));
	/* With the last opener gone everything is as at the start. */
	EXPECT_TRUE(WAIT_UNTIL(nbd_idle(&self->dev), SOON));
}

/* The holder exits with its requests still in flight: exit_aio() waits for them. */
TEST_F(case_D, a_killed_holder_is_not_stuck)
{
	kill(self->holder.pid, SIGKILL);
	everybody_dies(&self->s, variant);
	EXPECT_TRUE(WAIT_UNTIL(exited(self->holder.pid), 2 * SOON));
}

/* 1,000 rounds of case B: what was there before is there after, and nothing else. */

FIXTURE(rounds) {
	struct nbd_dev dev;
	struct agent a, holder;
};

FIXTURE_VARIANT(rounds) {
	enum sock_kind kind;
};

FIXTURE_VARIANT_ADD(rounds, unix) { .kind = KIND_UNIX };
FIXTURE_VARIANT_ADD(rounds, tcp) { .kind = KIND_TCP };

FIXTURE_SETUP(rounds)
{
	const char *why;

	why = nbd_pick(&self->dev);
	if (why)
		SKIP(return, "%s", why);
	ASSERT_EQ(0, agent_start(&self->holder, self->dev.path));
	ASSERT_EQ(0, agent_open(&self->holder));
	ASSERT_EQ(0, agent_start(&self->a, self->dev.path));
	ASSERT_EQ(0, agent_open(&self->a));
}

FIXTURE_TEARDOWN(rounds)
{
	EXPECT_TRUE(nbd_give_back(&self->dev));
}

/* Objects in use of a slab cache, -1 if that cannot be said. */
static int slab_in_use(const char *cache)
{
	char line[512], name[64];
	int n, in_use = -1;
	FILE *f;

	/* Give back what the processors have cached. */
	snprintf(line, sizeof(line), "/sys/kernel/slab/%s/shrink", cache);
	write_file(line, "1");
	f = fopen("/proc/slabinfo", "re");
	if (!f)
		return -1;
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, "%63s %d", name, &n) == 2 && !strcmp(name, cache))
			in_use = n;
	fclose(f);
	return in_use;
}

/* KASAN keeps freed objects for a while. */
static bool has_kasan(void)
{
	return !system("grep -qw kasan_report /proc/kallsyms");
}

TEST_F_TIMEOUT(rounds, B_leaves_nothing_behind_in_1000_rounds, 120)
{
	static const char *const caches[] = { "sock_inode_cache", "filp" };
	const int n = scaled_down(1000), noise = 300;
	int sockets, slab[2], i, now;
	bool slabs = !has_kasan();
	uint32_t call;

	/* The first ones fill caches. */
	ASSERT_EQ(10, agent_call(&self->a, AGENT_ROUNDS, 0, 0, 10, variant->kind));
	sockets = count_sockets();
	for (i = 0; i < 2; i++)
		slab[i] = slab_in_use(caches[i]);
	call = agent_send(&self->a, AGENT_ROUNDS, 0, 0, n, variant->kind, -1);
	EXPECT_EQ(n, agent_wait(&self->a, call, 60000));
	EXPECT_EQ(0, self->a.aux) {
		TH_LOG("rounds in which the peer stayed connected: %lld", (long long)self->a.aux);
	}
	EXPECT_TRUE(WAIT_UNTIL(count_sockets() <= sockets, SOON)) {
		TH_LOG("%d sockets before, %d after", sockets, count_sockets());
	}
	for (i = 0; slabs && i < 2; i++) {
		if (slab[i] < 0)
			continue;
		/* Freed after a grace period. */
		WAIT_UNTIL((now = slab_in_use(caches[i])) <= slab[i] + noise, 3 * SOON);
		EXPECT_GE(slab[i] + noise, now) {
			TH_LOG("%s: %d before, %d after", caches[i], slab[i], now);
		}
	}
	/* And the device is as good as before. */
	EXPECT_EQ(10, agent_call(&self->a, AGENT_ROUNDS, 0, 0, 10, variant->kind));
}

TEST_HARNESS_MAIN
