// SPDX-License-Identifier: GPL-2.0
/*
 * A processor goes and comes back in bounded time, whatever the requests that were made on it wait
 * for: the block layer waits for them with the lock of all processors held, and then every task
 * waits that wants this lock, such as one that brings a new connection. The task that waits for a
 * processor here is a process of its own, so that a driver that hangs fails one test; the end of
 * the session lets it go.
 */
#include <sched.h>
#include <sys/sysinfo.h>

#include "kselftest_harness.h"
#include "nbd_expect.h"
#include "nbd_nlpeer.h"

#define CPU	1
#define ONLINE	"/sys/devices/system/cpu/cpu1/online"
#define ALARM	"/sys/class/rtc/rtc0/wakealarm"
#define COUNT	"/sys/power/wakeup_count"
#define END_MS	2000

/* How long requests wait for a connection: longer than a processor may take. In seconds. */
#define DEAD	8
/* Until a driver that hangs has surely given them up, in milliseconds. */
#define GIVEN_UP_MS	40000

FIXTURE(cpu)
{
	struct nl_session ns;
};

/* The process that waits for the processor. */
static pid_t writer;

FIXTURE_SETUP(cpu)
{
	const char *why;
	int n = get_nprocs_conf();

	if (access(ONLINE, W_OK))
		SKIP(return, "no processor can be taken away: there is no " ONLINE);
	/* A hardware queue for each processor, so that the one of CPU has no other. */
	why = nl_init(&self->ns, n < PEER_MAX ? n : PEER_MAX, PEER_HELD);
	if (why)
		SKIP(return, "%s", why);
}

static pid_t cpu_start(bool online)
{
	pid_t pid = fork_quiet();

	if (!pid)
		_exit(!write_file(ONLINE, online ? "1" : "0"));
	return pid;
}

static bool cpu_is(bool online)
{
	char text[16];

	return read_file(ONLINE, text, sizeof(text)) > 0 && (*text == '1') == online;
}

/*
 * The block layer stops waiting when the system is about to sleep, and is woken up. There are
 * drivers that nothing else gets out of what they are stuck in.
 */
static void give_up(void)
{
	char count[32];

	if (access(ALARM, W_OK) || read_file(COUNT, count, sizeof(count)) <= 0)
		return;
	count[strcspn(count, "\n")] = 0;
	write_file(COUNT, count);
	write_file(ALARM, "0");
	write_file(ALARM, "+1");
}

FIXTURE_TEARDOWN(cpu)
{
	struct nl_session *ns = &self->ns;
	pid_t pid;
	int i;

	if (!ns->s.sh)
		return;
	for (i = 0; i < PEER_MAX; i++)
		ns->s.sh->close[i] = 1;
	/* What is stuck is let go by that, else by the end of the session, or when time is over. */
	if (writer && !exited(writer)) {
		give_up();
		if (!WAIT_UNTIL(exited(writer), BOUNDED))
			nl_disconnect(ns->s.dev.index);
		EXPECT_TRUE(WAIT_UNTIL(exited(writer), GIVEN_UP_MS));
	}
	pid = cpu_start(true);
	WAIT_UNTIL(exited(pid), BOUNDED);
	EXPECT_TRUE(cpu_is(true)) TH_LOG("the processor stays away");
	EXPECT_TRUE(nl_cleanup(ns));
}

/* Run on this processor only, also what is started from now on; -1: on any. */
static void run_on(int cpu)
{
	cpu_set_t set;
	int i;

	CPU_ZERO(&set);
	for (i = 0; i < CPU_SETSIZE; i++)
		if (cpu < 0 || i == cpu)
			CPU_SET(i, &set);
	sched_setaffinity(0, sizeof(set), &set);
}

static int read_on_cpu(struct peer_session *s)
{
	run_on(CPU);
	return read_all(s);
}

/* The holder's requests are made on the processor that goes. */
static int holder_start_on_cpu(struct peer_session *s)
{
	int ret;

	run_on(CPU);
	ret = holder_start(s);
	run_on(-1);
	return ret;
}

/* Begin to take the processor away, or to bring it back; wait until that is at work. */
static void cpu_begin(bool online)
{
	writer = cpu_start(online);
	WAIT_UNTIL(exited(writer) || proc_state(writer) == 'D', SOON);
}

static void cpu_wait(struct __test_metadata *_metadata, bool online)
{
	ASSERT_EQ(0, other_wait(writer, BOUNDED))
		TH_LOG("the processor does not %s", online ? "come back" : "go");
	ASSERT_TRUE(cpu_is(online));
}

static void cpu_goes(struct __test_metadata *_metadata)
{
	cpu_begin(false);
	cpu_wait(_metadata, false);
}

static void cpu_comes(struct __test_metadata *_metadata)
{
	cpu_begin(true);
	cpu_wait(_metadata, true);
}

/* Bring it back, and use it. */
static void cpu_works(struct __test_metadata *_metadata, struct peer_session *s)
{
	cpu_comes(_metadata);
	EXPECT_EQ(0, other_wait(other_run(s, read_on_cpu), 10000));
}

static void servers_become(struct peer_session *s, enum peer_kind kind)
{
	int i;

	for (i = 0; i < s->npeers; i++)
		s->sh->kind[i] = kind;
}

static void park(struct __test_metadata *_metadata, struct nl_session *ns, int dead)
{
	int i;

	ns->dead = scaled(dead);
	/* For a driver that does not notice the death. */
	ns->s.timeout = scaled(2);
	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_EQ(0, holder_start_on_cpu(&ns->s));
	for (i = 0; i < ns->s.npeers; i++)
		ASSERT_TRUE(nl_kill_peer(&ns->s, i));
}

static void reconnect_all(struct __test_metadata *_metadata, struct nl_session *ns)
{
	int i;

	for (i = 0; i < ns->s.npeers; i++) {
		ASSERT_EQ(0, nl_reconnect(ns, i))
			TH_LOG("connection %d", i);
	}
}

TEST_F(cpu, nothing_in_flight)
{
	struct nl_session *ns = &self->ns;

	ASSERT_EQ(0, nl_connect(ns));
	cpu_goes(_metadata);
	EXPECT_EQ(0, other_wait(other_run(&ns->s, read_all), 10000));
	cpu_works(_metadata, &ns->s);
	EXPECT_EQ(0, nl_disconnect(ns->s.dev.index));
}

TEST_F(cpu, session_begun_without_it)
{
	struct nl_session *ns = &self->ns;

	cpu_goes(_metadata);
	ASSERT_EQ(0, nl_connect(ns));
	EXPECT_EQ(0, other_wait(other_run(&ns->s, read_all), 10000));
	cpu_works(_metadata, &ns->s);
	cpu_goes(_metadata);
	EXPECT_EQ(0, nl_disconnect(ns->s.dev.index));
	cpu_comes(_metadata);
}

TEST_F(cpu, under_load)
{
	struct nl_session *ns = &self->ns;
	struct peer_shared *sh = ns->s.sh;
	int round, before;

	ns->s.kind = PEER_SHUFFLE;
	/* Until it is told to end. */
	sh->loop = 1 << 30;
	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_EQ(0, holder_begin(&ns->s));
	for (round = 0; round < 6; round++) {
		before = sh->looped;
		ASSERT_TRUE(WAIT_UNTIL(sh->looped > before + 20, BOUNDED))
			TH_LOG("no I/O before round %d", round);
		if (round % 2)
			cpu_comes(_metadata);
		else
			cpu_goes(_metadata);
	}
	before = sh->looped;
	EXPECT_TRUE(WAIT_UNTIL(sh->looped > before + 20, BOUNDED)) TH_LOG("no I/O at the end");
	sh->loop = 0;
	holder_expect(_metadata, &ns->s, 0);
	EXPECT_EQ(0, sh->loop_errors);
	cpu_works(_metadata, &ns->s);
}

TEST_F(cpu, requests_wait_for_a_connection)
{
	struct nl_session *ns = &self->ns;

	park(_metadata, ns, DEAD);
	cpu_goes(_metadata);
	EXPECT_EQ(0, ns->s.sh->io_done);
	reconnect_all(_metadata, ns);
	holder_expect(_metadata, &ns->s, 0);
	EXPECT_EQ(0, other_wait(other_run(&ns->s, read_all), 10000));
	cpu_works(_metadata, &ns->s);
}

TEST_F(cpu, back_while_requests_wait)
{
	struct nl_session *ns = &self->ns;

	park(_metadata, ns, DEAD);
	cpu_goes(_metadata);
	cpu_comes(_metadata);
	EXPECT_EQ(0, ns->s.sh->io_done);
	reconnect_all(_metadata, ns);
	holder_expect(_metadata, &ns->s, 0);
	cpu_works(_metadata, &ns->s);
}

TEST_F(cpu, new_connections_while_it_goes)
{
	struct nl_session *ns = &self->ns;

	park(_metadata, ns, DEAD);
	cpu_begin(false);
	reconnect_all(_metadata, ns);
	cpu_wait(_metadata, false);
	holder_expect(_metadata, &ns->s, 0);
	cpu_works(_metadata, &ns->s);
}

TEST_F(cpu, no_connection_comes)
{
	struct nl_session *ns = &self->ns;
	int i;

	park(_metadata, ns, DEAD);
	cpu_goes(_metadata);
	ASSERT_TRUE(WAIT_UNTIL(ns->s.sh->io_done, DEAD * 1000 + END_MS));
	for (i = 0; i < HOLDER_THREADS; i++)
		EXPECT_TRUE(WAIT_UNTIL(ns->s.sh->io_errno[i] == EIO, END_MS));
	EXPECT_TRUE(WAIT_UNTIL(ns->s.sh->late_done == HOLDER_THREADS, DEAD * 1000 + END_MS));
	cpu_comes(_metadata);
}

/* Servers that do not answer for as long as they like, and then do. */

TEST_F(cpu, server_does_not_answer)
{
	struct nl_session *ns = &self->ns;

	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_EQ(0, holder_start_on_cpu(&ns->s));
	cpu_goes(_metadata);
	EXPECT_EQ(0, ns->s.sh->io_done);
	servers_become(&ns->s, PEER_GOOD);
	holder_expect(_metadata, &ns->s, 0);
	cpu_works(_metadata, &ns->s);
}

TEST_F(cpu, server_does_not_read)
{
	struct nl_session *ns = &self->ns;

	ns->s.kind = PEER_DEAF;
	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_EQ(0, holder_start_on_cpu(&ns->s));
	cpu_goes(_metadata);
	EXPECT_EQ(0, ns->s.sh->io_done);
	servers_become(&ns->s, PEER_GOOD);
	holder_expect(_metadata, &ns->s, 0);
	cpu_works(_metadata, &ns->s);
}

TEST_F(cpu, back_while_the_server_does_not_answer)
{
	struct nl_session *ns = &self->ns;
	int round;

	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_EQ(0, holder_start_on_cpu(&ns->s));
	for (round = 0; round < 2; round++) {
		cpu_goes(_metadata);
		cpu_comes(_metadata);
	}
	EXPECT_EQ(0, ns->s.sh->io_done);
	servers_become(&ns->s, PEER_GOOD);
	holder_expect(_metadata, &ns->s, 0);
	cpu_works(_metadata, &ns->s);
}

TEST_F(cpu, session_ends_without_it)
{
	struct nl_session *ns = &self->ns;

	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_EQ(0, holder_start_on_cpu(&ns->s));
	cpu_goes(_metadata);
	EXPECT_EQ(0, nl_disconnect(ns->s.dev.index));
	holder_expect(_metadata, &ns->s, EIO);
	cpu_comes(_metadata);
}

TEST_F(cpu, timeout_without_it)
{
	struct nl_session *ns = &self->ns;
	struct peer_shared *sh = ns->s.sh;
	int i;

	ns->s.kind = PEER_MUTE;
	ns->s.timeout = scaled(2);
	ns->dead = scaled(DEAD);
	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_EQ(0, holder_start_on_cpu(&ns->s));
	cpu_goes(_metadata);
	for (i = 0; i < ns->s.npeers; i++) {
		if (!sh->held[i])
			continue;
		ASSERT_TRUE(WAIT_UNTIL(exited(ns->s.peer[i]), 2000 + BOUNDED));
		ASSERT_EQ(0, nl_reconnect(ns, i));
	}
	/* One that has held nothing takes what was replayed before the new one came. */
	servers_become(&ns->s, PEER_GOOD);
	holder_expect(_metadata, &ns->s, 0);
	cpu_works(_metadata, &ns->s);
}

TEST_F(cpu, ioctl_session)
{
	struct peer_session *s = &self->ns.s;
	int i;

	ASSERT_EQ(0, peer_start(s));
	ASSERT_EQ(0, holder_start_on_cpu(s));
	cpu_goes(_metadata);
	EXPECT_EQ(0, s->sh->io_done);
	for (i = 0; i < s->npeers; i++)
		ASSERT_TRUE(nl_kill_peer(s, i));
	holder_expect(_metadata, s, EIO);
	EXPECT_TRUE(WAIT_UNTIL(s->sh->client_stage == 2, END_MS));
	EXPECT_EQ(0, s->sh->client_errno);
	cpu_comes(_metadata);
}

TEST_HARNESS_MAIN
