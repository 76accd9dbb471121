// SPDX-License-Identifier: GPL-2.0
/*
 * The last connection dies: requests wait for another one for dead_conn_timeout seconds and not
 * longer, no task is stuck meanwhile, and every listener is told.
 */
#include <pthread.h>

#include "kselftest_harness.h"
#include "nbd_expect.h"
#include "nbd_nlpeer.h"

#define END_MS	2000

FIXTURE(dead)
{
	struct nl_session ns;
	struct genl events;
};

FIXTURE_SETUP(dead)
{
	const char *why = nl_init(&self->ns, 1, PEER_HELD);

	if (why)
		SKIP(return, "%s", why);
	ASSERT_EQ(0, genl_listen(&self->events));
}

FIXTURE_TEARDOWN(dead)
{
	EXPECT_TRUE(nl_cleanup(&self->ns));
}

/* The time is 0: an error at once, and the session waits for new sockets. */
TEST_F(dead, no_time_to_wait)
{
	struct nl_session *ns = &self->ns;
	long long start;

	nl_die_with_io(_metadata, ns);
	start = now_ms();
	holder_expect(_metadata, &ns->s, EIO);
	EXPECT_GT(scaled(SOON), now_ms() - start);
	EXPECT_TRUE(nbd_running(&ns->s.dev)) TH_LOG("the session is gone");
	EXPECT_EQ(1, nl_connected(ns->s.dev.index));
	start = now_ms();
	EXPECT_EQ(1, other_wait(other_run(&ns->s, read_block), END_MS));
	EXPECT_GT(scaled(SOON), now_ms() - start) TH_LOG("new I/O does not fail at once");
	EXPECT_EQ(0, nl_reconnect(ns, 0));
	EXPECT_EQ(0, other_wait(other_run(&ns->s, read_all), 10000));
}

/* All servers are dead: the requests wait, and succeed with new ones. */
static void new_sockets(struct __test_metadata *_metadata, struct nl_session *ns)
{
	int i;

	EXPECT_FALSE(WAIT_UNTIL(ns->s.sh->io_done, 500)) TH_LOG("it did not wait");
	for (i = 0; i < ns->s.npeers; i++)
		ASSERT_EQ(0, nl_reconnect(ns, i));
	holder_expect(_metadata, &ns->s, 0);
}

TEST_F(dead, new_socket_in_time)
{
	struct nl_session *ns = &self->ns;

	ns->dead = 10;
	nl_die_with_io(_metadata, ns);
	new_sockets(_metadata, ns);
}

TEST_F(dead, new_socket_in_time_over_tcp)
{
	struct nl_session *ns = &self->ns;

	ns->s.tcp = true;
	ns->dead = 10;
	nl_die_with_io(_metadata, ns);
	new_sockets(_metadata, ns);
}

/* What was sent in half is sent again in whole. */
TEST_F(dead, new_socket_after_a_deaf_server)
{
	struct nl_session *ns = &self->ns;

	ns->s.kind = PEER_DEAF;
	ns->dead = 10;
	nl_die_with_io(_metadata, ns);
	new_sockets(_metadata, ns);
}

/* What was received in half is received again in whole. */
TEST_F(dead, new_socket_after_half_a_reply)
{
	struct nl_session *ns = &self->ns;

	ns->s.kind = PEER_CLOSE_PAYLOAD;
	ns->dead = 10;
	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_EQ(0, holder_start(&ns->s));
	ns->s.sh->go[0] = 1;
	ASSERT_TRUE(WAIT_UNTIL(exited(ns->s.peer[0]), END_MS));
	new_sockets(_metadata, ns);
}

TEST_F(dead, four_new_sockets_in_time)
{
	struct nl_session *ns = &self->ns;

	ns->s.npeers = 4;
	ns->dead = 10;
	nl_die_with_io(_metadata, ns);
	new_sockets(_metadata, ns);
	EXPECT_EQ(0, other_wait(other_run(&ns->s, read_all), 10000));
}

TEST_F(dead, one_new_socket_for_four)
{
	struct nl_session *ns = &self->ns;

	ns->s.npeers = 4;
	ns->dead = 10;
	nl_die_with_io(_metadata, ns);
	ASSERT_EQ(0, nl_reconnect(ns, 2));
	holder_expect(_metadata, &ns->s, 0);
	EXPECT_EQ(0, other_wait(other_run(&ns->s, read_all), 10000));
}

/* The new server dies too; the next one is as good. */
TEST_F(dead, new_servers_that_die)
{
	struct nl_session *ns = &self->ns;
	int i;

	ns->dead = 10;
	nl_die_with_io(_metadata, ns);
	for (i = 0; i < 5; i++) {
		ASSERT_EQ(0, nl_peer(&ns->s, 0));
		ns->s.sh->kind[0] = PEER_MUTE;
		if (i % 2)
			kill(ns->s.peer[0], SIGKILL);
		else
			ns->s.sh->close[0] = 1;
		nl_close_ends(&ns->s);
		reap(ns->s.peer[0], BOUNDED);
		ASSERT_EQ(0, nl_reconnect(ns, 0));
		if (i < 4)
			ASSERT_TRUE(nl_kill_peer(&ns->s, 0));
	}
	holder_expect(_metadata, &ns->s, 0);
}

/* No socket in time: an error when the time is over, at once from then on, until there is one. */
TEST_F(dead, time_is_over)
{
	struct nl_session *ns = &self->ns;
	long long start;

	ns->dead = 2;
	nl_die_with_io(_metadata, ns);
	start = now_ms();
	ASSERT_TRUE(WAIT_UNTIL(ns->s.sh->io_done == HOLDER_THREADS, 3000))
		TH_LOG("%d of %d requests are finished", ns->s.sh->io_done, HOLDER_THREADS);
	EXPECT_LT(1500, now_ms() - start);
	holder_expect(_metadata, &ns->s, EIO);
	start = now_ms();
	EXPECT_EQ(1, other_wait(other_run(&ns->s, read_block), END_MS));
	EXPECT_GT(scaled(SOON), now_ms() - start) TH_LOG("new I/O does not fail at once");
	EXPECT_TRUE(nbd_running(&ns->s.dev)) TH_LOG("the session is gone");
	EXPECT_EQ(0, nl_reconnect(ns, 0));
	EXPECT_EQ(0, other_wait(other_run(&ns->s, read_all), 10000));
	/* And the next time the clock starts anew. */
	ASSERT_TRUE(nl_kill_peer(&ns->s, 0));
	start = now_ms();
	EXPECT_EQ(2, other_wait(other_run(&ns->s, read_all), 3500));
	EXPECT_LT(1000, now_ms() - start);
}

/* I/O that comes while requests wait, waits with them. */
TEST_F(dead, new_io_waits_too)
{
	struct nl_session *ns = &self->ns;
	pid_t pid;

	ns->dead = 10;
	nl_die_with_io(_metadata, ns);
	pid = other_run(&ns->s, nl_read_other);
	EXPECT_FALSE(WAIT_UNTIL(exited(pid), 500)) TH_LOG("it did not wait");
	ASSERT_EQ(0, nl_reconnect(ns, 0));
	EXPECT_EQ(0, other_wait(pid, END_MS));
	holder_expect(_metadata, &ns->s, 0);
}

/* The same without any request in flight when the link dies. */
TEST_F(dead, idle_link)
{
	struct nl_session *ns = &self->ns;
	pid_t pid;

	ns->dead = 10;
	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_TRUE(nl_kill_peer(&ns->s, 0));
	EXPECT_EQ(1, nl_link_dead(&self->events, ns->s.dev.index, scaled(500)));
	EXPECT_TRUE(nbd_running(&ns->s.dev));
	pid = other_run(&ns->s, nl_read_other);
	EXPECT_FALSE(WAIT_UNTIL(exited(pid), 500)) TH_LOG("it did not wait");
	ASSERT_EQ(0, nl_reconnect(ns, 0));
	EXPECT_EQ(0, other_wait(pid, END_MS));
}

/* The time begins with the first request that waits, not when the link fails. */
TEST_F(dead, idle_for_longer_than_the_time)
{
	struct nl_session *ns = &self->ns;
	pid_t pid;

	ns->dead = scaled(2000) / 1000;
	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_TRUE(nl_kill_peer(&ns->s, 0));
	EXPECT_EQ(1, nl_link_dead(&self->events, ns->s.dev.index, scaled(3000)));
	pid = other_run(&ns->s, nl_read_other);
	EXPECT_FALSE(WAIT_UNTIL(exited(pid), 500)) TH_LOG("it did not wait");
	ASSERT_EQ(0, nl_reconnect(ns, 0));
	EXPECT_EQ(0, other_wait(pid, END_MS));
}

/* More than there are tags. */
static void *one_read(void *arg)
{
	struct peer_session *s = arg;

	if (nl_read_other(s))
		s->sh->loop_errors++;
	s->sh->looped++;
	return NULL;
}

static int many_reads(struct peer_session *s)
{
	pthread_t t[200];
	int i;

	for (i = 0; i < 200; i++)
		if (pthread_create(&t[i], NULL, one_read, s))
			return 1;
	for (i = 0; i < 200; i++)
		pthread_join(t[i], NULL);
	return s->sh->loop_errors != 0;
}

TEST_F(dead, two_hundred_requests_wait)
{
	struct nl_session *ns = &self->ns;
	pid_t pid;

	ns->dead = 20;
	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_TRUE(nl_kill_peer(&ns->s, 0));
	pid = other_run(&ns->s, many_reads);
	EXPECT_FALSE(WAIT_UNTIL(exited(pid), 1000)) TH_LOG("it did not wait");
	EXPECT_EQ(0, ns->s.sh->looped);
	ASSERT_EQ(0, nl_reconnect(ns, 0));
	EXPECT_EQ(0, other_wait(pid, 8000)) TH_LOG("%d have ended", ns->s.sh->looped);
}

/* Other devices work, and can be configured, while one waits. */
TEST_F(dead, others_go_on)
{
	struct nl_session *ns = &self->ns;
	struct nl_session other;
	long long start;

	ns->dead = 10;
	nl_die_with_io(_metadata, ns);
	ASSERT_EQ(NULL, nl_init(&other, 1, PEER_GOOD));
	start = now_ms();
	EXPECT_EQ(0, nl_connect(&other));
	EXPECT_EQ(0, other_wait(other_run(&other.s, read_block), BOUNDED));
	EXPECT_EQ(0, nl_disconnect(other.s.dev.index));
	EXPECT_GT(scaled(END_MS), now_ms() - start);
	EXPECT_TRUE(WAIT_UNTIL(exited(other.s.peer[0]), SOON));
	EXPECT_EQ(0, ns->s.sh->io_done);
	ASSERT_EQ(0, nl_reconnect(ns, 0));
	holder_expect(_metadata, &ns->s, 0);
	EXPECT_TRUE(peer_end(&other.s));
}

TEST_HARNESS_MAIN
