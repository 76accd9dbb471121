// SPDX-License-Identifier: GPL-2.0
/*
 * What ends a session of the ioctl interface is the end of its task, or a signal that kills it or
 * that it handles: never that the task is stopped, frozen or traced, nor a signal that does
 * nothing. While it is held like that the device works for others, and the session can end in
 * every way.
 */
#include "kselftest_harness.h"
#include "hold.h"
#include "nbd_expect.h"
#include "nbd_nlpeer.h"

#define END_MS	2000

static void do_hold(struct __test_metadata *_metadata, pid_t pid, enum how how)
{
	const char *why = hold(pid, how);

	ASSERT_NULL(why) TH_LOG("%s", why);
}

static void do_let_go(struct __test_metadata *_metadata, pid_t pid, enum how how)
{
	const char *why = let_go(pid, how);

	ASSERT_NULL(why) TH_LOG("%s", why);
}

#define HOLD(pid)	do_hold(_metadata, pid, variant->how)
#define LET_GO(pid)	do_let_go(_metadata, pid, variant->how)

/* Whatever the test has left held. */
static bool free_all(struct peer_session *s)
{
	bool ok;

	if (s->client > 0) {
		/* A kill gets it out of everything but a control group that is not empty. */
		if (s->sh && s->sh->client_stage < 2)
			kill(s->client, SIGKILL);
		hold_none(s->client);
	}
	ok = peer_cleanup(s);
	return (s->client <= 0 || WAIT_UNTIL(cgroup_remove(s->client), BOUNDED)) && ok;
}

/* The client is in NBD_DO_IT again, and has never left it. */
static void still_runs(struct __test_metadata *_metadata, struct peer_session *s)
{
	ASSERT_TRUE(WAIT_UNTIL(s->sh->client_stage == 2 || in_ioctl(s->client, NBD_DO_IT),
			       BOUNDED));
	ASSERT_EQ(1, s->sh->client_stage)
		TH_LOG("NBD_DO_IT has returned: %s", strerror(s->sh->client_errno));
	EXPECT_EQ(0, other_wait(other_run(s, nl_read_other), BOUNDED));
}

/* And it ends as always. */
static void ends_well(struct __test_metadata *_metadata, struct peer_session *s)
{
	EXPECT_EQ(0, other_wait(other_ioctl(s, NBD_DISCONNECT), BOUNDED));
	ASSERT_TRUE(WAIT_UNTIL(s->sh->client_stage == 2, END_MS));
	EXPECT_EQ(0, s->sh->client_errno);
}

FIXTURE(goes_on)
{
	struct peer_session s;
};

FIXTURE_VARIANT(goes_on)
{
	enum how how;
};

FIXTURE_VARIANT_ADD(goes_on, stopped) { .how = BY_STOP };
FIXTURE_VARIANT_ADD(goes_on, stopped_by_terminal) { .how = BY_TSTP };
FIXTURE_VARIANT_ADD(goes_on, frozen) { .how = BY_FREEZER };
FIXTURE_VARIANT_ADD(goes_on, attached) { .how = BY_ATTACH };
FIXTURE_VARIANT_ADD(goes_on, seized) { .how = BY_SEIZE };
FIXTURE_VARIANT_ADD(goes_on, straced) { .how = BY_STRACE };
FIXTURE_VARIANT_ADD(goes_on, traced_signals) { .how = BY_TRACED_SIGNALS };
FIXTURE_VARIANT_ADD(goes_on, signals) { .how = BY_NOTHING };

static const char *begin(struct peer_session *s, enum how how)
{
	const char *why = peer_init(s, 1, PEER_HELD);

	if (!why && how == BY_FREEZER && access(CGROUPS "/cgroup.procs", W_OK))
		why = "there are no control groups of version 2";
	return why;
}

FIXTURE_SETUP(goes_on)
{
	const char *why = begin(&self->s, variant->how);

	if (why)
		SKIP(return, "%s", why);
}

FIXTURE_TEARDOWN(goes_on)
{
	EXPECT_TRUE(free_all(&self->s));
}

TEST_F(goes_on, idle)
{
	struct peer_session *s = &self->s;
	int round;

	ASSERT_EQ(0, peer_start(s));
	ASSERT_TRUE(WAIT_UNTIL(in_ioctl(s->client, NBD_DO_IT), BOUNDED));
	for (round = 0; round < 3; round++) {
		HOLD(s->client);
		EXPECT_EQ(0, other_wait(other_run(s, nl_read_other), BOUNDED));
		LET_GO(s->client);
		still_runs(_metadata, s);
	}
	ends_well(_metadata, s);
}

TEST_F(goes_on, requests_in_flight)
{
	struct peer_session *s = &self->s;

	ASSERT_EQ(0, peer_start(s));
	ASSERT_EQ(0, holder_start(s));
	HOLD(s->client);
	LET_GO(s->client);
	ASSERT_TRUE(WAIT_UNTIL(s->sh->client_stage == 2 || in_ioctl(s->client, NBD_DO_IT),
			       BOUNDED));
	EXPECT_EQ(0, s->sh->io_done) TH_LOG("requests have ended");
	HOLD(s->client);
	s->sh->go[0] = 1;
	holder_expect(_metadata, s, 0);
	LET_GO(s->client);
	still_runs(_metadata, s);
	EXPECT_EQ(0, other_wait(other_run(s, read_all), 10000));
	ends_well(_metadata, s);
}

TEST_F(goes_on, under_load)
{
	struct peer_session *s = &self->s;
	int round, before;

	s->kind = PEER_SHUFFLE;
	/* Until it is told to end. */
	s->sh->loop = 1 << 30;
	ASSERT_EQ(0, peer_start(s));
	ASSERT_EQ(0, holder_begin(s));
	for (round = 0; round < 20 && s->sh->client_stage == 1; round++) {
		HOLD(s->client);
		before = s->sh->looped;
		EXPECT_TRUE(WAIT_UNTIL(s->sh->looped > before + 8, BOUNDED))
			TH_LOG("no I/O in round %d", round);
		LET_GO(s->client);
	}
	s->sh->loop = 0;
	holder_expect(_metadata, s, 0);
	EXPECT_EQ(0, s->sh->loop_errors);
	still_runs(_metadata, s);
	ends_well(_metadata, s);
}

/* What does end it */

/* All requests have ended with EIO, and the server has seen the end. */
static bool over(struct peer_session *s)
{
	return s->sh->io_done == HOLDER_THREADS && s->sh->late_done == HOLDER_THREADS &&
	       (s->sh->eof[0] || exited(s->peer[0]));
}

static void expect_over(struct __test_metadata *_metadata, struct peer_session *s, int ms)
{
	int i;

	ASSERT_TRUE(WAIT_UNTIL(over(s), ms))
		TH_LOG("%d of %d requests are finished, and the server has %s its end",
		       s->sh->io_done, HOLDER_THREADS,
		       s->sh->eof[0] || exited(s->peer[0]) ? "seen" : "not seen");
	for (i = 0; i < HOLDER_THREADS; i++)
		EXPECT_EQ(EIO, s->sh->io_errno[i]);
	EXPECT_EQ(0, s->sh->late_bytes);
	EXPECT_TRUE(WAIT_UNTIL(!nbd_sys_exists(&s->dev, "pid"), SOON));
}

static void expect_result(struct __test_metadata *_metadata, struct peer_session *s, int error)
{
	ASSERT_TRUE(WAIT_UNTIL(s->sh->client_stage == 2, END_MS))
		TH_LOG("NBD_DO_IT does not return");
	EXPECT_EQ(error, s->sh->client_errno);
}

static void expect_works_again(struct __test_metadata *_metadata, struct peer_session *s)
{
	const char *why = peer_works_again(s);

	ASSERT_NULL(why) TH_LOG("the device cannot be used again: %s", why);
}

/* A client that is held, with requests in flight. */
FIXTURE(held)
{
	struct peer_session s;
};

FIXTURE_VARIANT(held)
{
	enum how how;
};

FIXTURE_VARIANT_ADD(held, stopped) { .how = BY_STOP };
FIXTURE_VARIANT_ADD(held, frozen) { .how = BY_FREEZER };
FIXTURE_VARIANT_ADD(held, attached) { .how = BY_ATTACH };

FIXTURE_SETUP(held)
{
	const char *why = begin(&self->s, variant->how);

	if (why)
		SKIP(return, "%s", why);
}

FIXTURE_TEARDOWN(held)
{
	EXPECT_TRUE(free_all(&self->s));
}

#define HELD_BEGIN() ({							\
	ASSERT_EQ(0, peer_start(&self->s));				\
	ASSERT_EQ(0, holder_start(&self->s));				\
	HOLD(self->s.client);						\
	ASSERT_EQ(0, self->s.sh->io_done) TH_LOG("it is over already");	\
})

TEST_F(held, killed)
{
	struct peer_session *s = &self->s;

	HELD_BEGIN();
	kill(s->client, SIGKILL);
	EXPECT_TRUE(WAIT_UNTIL(exited(s->client), END_MS));
	expect_over(_metadata, s, END_MS);
	expect_works_again(_metadata, s);
}

TEST_F(held, server_dies)
{
	struct peer_session *s = &self->s;

	HELD_BEGIN();
	ASSERT_TRUE(nl_kill_peer(s, 0));
	expect_over(_metadata, s, END_MS);
	EXPECT_EQ(1, s->sh->client_stage);
	LET_GO(s->client);
	expect_result(_metadata, s, 0);
	expect_works_again(_metadata, s);
}

TEST_F(held, timeout)
{
	struct peer_session *s = &self->s;

	s->kind = PEER_MUTE;
	s->timeout = 1;
	HELD_BEGIN();
	/* The C driver takes two to four seconds, as it happens: that is not what is compared. */
	expect_over(_metadata, s, 1000 + END_MS + (nbd_is_rust() ? 0 : 6000));
	EXPECT_EQ(1, s->sh->client_stage);
	LET_GO(s->client);
	expect_result(_metadata, s, ETIMEDOUT);
	expect_works_again(_metadata, s);
}

TEST_F(held, disconnect)
{
	struct peer_session *s = &self->s;

	HELD_BEGIN();
	EXPECT_EQ(0, other_wait(other_ioctl(s, NBD_DISCONNECT), END_MS));
	expect_over(_metadata, s, END_MS);
	EXPECT_EQ(1, s->sh->client_stage);
	LET_GO(s->client);
	expect_result(_metadata, s, 0);
	expect_works_again(_metadata, s);
}

TEST_F(held, clear_sock)
{
	struct peer_session *s = &self->s;

	HELD_BEGIN();
	EXPECT_EQ(0, other_wait(other_ioctl(s, NBD_CLEAR_SOCK), END_MS));
	expect_over(_metadata, s, END_MS);
	EXPECT_EQ(1, s->sh->client_stage);
	LET_GO(s->client);
	expect_result(_metadata, s, 0);
	expect_works_again(_metadata, s);
}

static int do_it(struct peer_session *s)
{
	int fd = open(s->dev.path, O_RDWR | O_CLOEXEC);

	return fd < 0 ? 255 : ioctl(fd, NBD_DO_IT) ? errno : 0;
}

TEST_F(held, do_it_by_another)
{
	struct peer_session *s = &self->s;

	HELD_BEGIN();
	EXPECT_EQ(EBUSY, other_wait(other_run(s, do_it), BOUNDED));
	EXPECT_EQ(0, s->sh->io_done);
	LET_GO(s->client);
	s->sh->go[0] = 1;
	holder_expect(_metadata, s, 0);
	still_runs(_metadata, s);
	ends_well(_metadata, s);
}

/*
 * A signal that it handles comes meanwhile, and is handled when it runs again. NBD_DO_IT returns
 * then, and whatever else the driver can know of it, the session does not outlive its program.
 */
#define HANDLED_MEANWHILE(what) ({					\
	HELD_BEGIN();							\
	kill(self->s.client, SIGTERM);					\
	LET_GO(self->s.client);						\
	expect_result(_metadata, &self->s, EINTR);			\
	self->s.sh->client_stop = (what);				\
	expect_over(_metadata, &self->s, END_MS);			\
	expect_works_again(_metadata, &self->s);			\
})

TEST_F(held, handled_signal_then_exit)
{
	HANDLED_MEANWHILE(CLIENT_EXIT);
}

TEST_F(held, handled_signal_then_close)
{
	HANDLED_MEANWHILE(CLIENT_CLOSE);
}

TEST_F(held, handled_signal_then_clear_sock)
{
	HANDLED_MEANWHILE(CLIENT_CLEAR);
}

TEST_F(held, handled_signal_that_is_to_restart_calls)
{
	self->s.sa_flags = SA_RESTART;
	HANDLED_MEANWHILE(CLIENT_EXIT);
}

/* How its session has ended the task has never asked: that is not what another one says. */
TEST_F(held, handled_signal_after_the_end_then_another_session)
{
	struct peer_session *s = &self->s;

	HELD_BEGIN();
	ASSERT_TRUE(nl_kill_peer(s, 0));
	expect_over(_metadata, s, END_MS);
	kill(s->client, SIGTERM);
	LET_GO(s->client);
	expect_result(_metadata, s, EINTR);
	/* Others must not find themselves on another disk. */
	s->sh->holder_stop = 1;
	ASSERT_TRUE(reap(s->holder, END_MS));
	s->holder = 0;
	s->sh->client_stop = CLIENT_AGAIN;
	EXPECT_TRUE(WAIT_UNTIL(nbd_sys_exists(&s->dev, "pid"), BOUNDED))
		TH_LOG("there is no session, exited: %d", exited(s->client));
	EXPECT_FALSE(WAIT_UNTIL(exited(s->client), 300));
	/* An open of the device would now wait for the partition table. */
	kill(s->client, SIGKILL);
	EXPECT_TRUE(WAIT_UNTIL(exited(s->client), END_MS));
	expect_works_again(_metadata, s);
}

TEST_F(held, deadly_signal)
{
	struct peer_session *s = &self->s;

	s->no_handler = true;
	HELD_BEGIN();
	kill(s->client, SIGTERM);
	LET_GO(s->client);
	EXPECT_TRUE(WAIT_UNTIL(exited(s->client), END_MS));
	expect_over(_metadata, s, END_MS);
	expect_works_again(_metadata, s);
}

/* Signals to a client that is not held. */
FIXTURE(sigterm)
{
	struct peer_session s;
};

FIXTURE_SETUP(sigterm)
{
	const char *why = begin(&self->s, BY_NOTHING);

	if (why)
		SKIP(return, "%s", why);
}

FIXTURE_TEARDOWN(sigterm)
{
	EXPECT_TRUE(free_all(&self->s));
}

static void sigterm(struct __test_metadata *_metadata, struct peer_session *s)
{
	ASSERT_EQ(0, peer_start(s));
	ASSERT_EQ(0, holder_start(s));
	kill(s->client, SIGTERM);
	expect_over(_metadata, s, END_MS);
}

TEST_F(sigterm, handled)
{
	sigterm(_metadata, &self->s);
	expect_result(_metadata, &self->s, EINTR);
	expect_works_again(_metadata, &self->s);
}

TEST_F(sigterm, handled_and_calls_are_to_restart)
{
	self->s.sa_flags = SA_RESTART;
	sigterm(_metadata, &self->s);
	expect_result(_metadata, &self->s, EINTR);
	expect_works_again(_metadata, &self->s);
}

TEST_F(sigterm, not_handled)
{
	int status = 0;

	self->s.no_handler = true;
	sigterm(_metadata, &self->s);
	ASSERT_TRUE(WAIT_UNTIL(exited(self->s.client), END_MS));
	ASSERT_EQ(self->s.client, waitpid(self->s.client, &status, 0));
	EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM);
	nbd_child_gone(self->s.client);
	self->s.client = 0;
	expect_works_again(_metadata, &self->s);
}

TEST_F(sigterm, handled_with_nothing_in_flight)
{
	struct peer_session *s = &self->s;

	s->sa_flags = SA_RESTART;
	ASSERT_EQ(0, peer_start(s));
	ASSERT_TRUE(WAIT_UNTIL(in_ioctl(s->client, NBD_DO_IT), BOUNDED));
	kill(s->client, SIGTERM);
	expect_result(_metadata, s, EINTR);
	EXPECT_TRUE(WAIT_UNTIL(s->sh->eof[0], END_MS));
	expect_works_again(_metadata, s);
}

/* Calls that wait for a while: a task that is held in between does not notice. */
FIXTURE(waits)
{
	struct nl_session ns;
};

FIXTURE_VARIANT(waits)
{
	enum how how;
};

FIXTURE_VARIANT_ADD(waits, stopped) { .how = BY_STOP };
FIXTURE_VARIANT_ADD(waits, frozen) { .how = BY_FREEZER };
FIXTURE_VARIANT_ADD(waits, attached) { .how = BY_ATTACH };
FIXTURE_VARIANT_ADD(waits, seized) { .how = BY_SEIZE };

FIXTURE_SETUP(waits)
{
	const char *why = nl_init(&self->ns, 1, PEER_DEAF);

	if (!why && variant->how == BY_FREEZER && access(CGROUPS "/cgroup.procs", W_OK))
		why = "there are no control groups of version 2";
	if (why)
		SKIP(return, "%s", why);
}

FIXTURE_TEARDOWN(waits)
{
	EXPECT_TRUE(nl_cleanup(&self->ns));
}

/* Another session, of which nothing is read. */
static int waits_begin(struct nl_session *ns, bool netlink)
{
	struct peer_session *s = &ns->s;

	if (!s->sh && peer_prepare(s, 1, PEER_DEAF))
		return -1;
	s->client = 0;
	s->holder = 0;
	return (netlink ? nl_connect(ns) : peer_start(s)) || holder_start(s);
}

static bool waits_end(struct nl_session *ns)
{
	return peer_end(&ns->s) && WAIT_UNTIL(nbd_idle(&ns->s.dev), END_MS);
}

/* Hold the process that waits in a call, for a moment; how long the session then takes to end. */
static long long call_waits(struct __test_metadata *_metadata, struct peer_session *s, pid_t pid,
			    enum how how, long long start)
{
	WAIT_UNTIL(exited(pid) || in_ioctl(pid, NBD_DISCONNECT) || in_send(pid), SOON);
	if (!exited(pid)) {
		do_hold(_metadata, pid, how);
		do_let_go(_metadata, pid, how);
	}
	ASSERT_TRUE(WAIT_UNTIL(over(s), END_MS));
	return now_ms() - start;
}

TEST_F(waits, disconnect)
{
	struct nl_session *ns = &self->ns;
	long long start, whole, held;
	pid_t pid;

	ASSERT_EQ(0, waits_begin(ns, false));
	start = now_ms();
	pid = other_ioctl(&ns->s, NBD_DISCONNECT);
	ASSERT_TRUE(WAIT_UNTIL(over(&ns->s), END_MS));
	whole = now_ms() - start;
	EXPECT_EQ(0, other_wait(pid, SOON));
	ASSERT_TRUE(waits_end(ns));

	ASSERT_EQ(0, waits_begin(ns, false));
	start = now_ms();
	pid = other_ioctl(&ns->s, NBD_DISCONNECT);
	held = call_waits(_metadata, &ns->s, pid, variant->how, start);
	EXPECT_LT(whole * 2 / 3, held) TH_LOG("the wait was cut short");
	EXPECT_EQ(0, other_wait(pid, END_MS));
	EXPECT_TRUE(WAIT_UNTIL(ns->s.sh->client_stage == 2, SOON));
	EXPECT_EQ(0, ns->s.sh->client_errno);
	EXPECT_TRUE(waits_end(ns));
}

TEST_F(waits, disconnect_by_netlink)
{
	struct nl_session *ns = &self->ns;
	long long start, whole, held;
	struct nl_call call;
	struct nl_msg m;

	ASSERT_EQ(0, waits_begin(ns, true));
	nl_begin(&m, NBD_CMD_DISCONNECT, ns->s.dev.index);
	start = now_ms();
	call = nl_start(&m);
	ASSERT_TRUE(WAIT_UNTIL(over(&ns->s), END_MS));
	whole = now_ms() - start;
	EXPECT_EQ(0, nl_wait(call, SOON)->ret);
	ASSERT_TRUE(waits_end(ns));

	ASSERT_EQ(0, waits_begin(ns, true));
	start = now_ms();
	call = nl_start(&m);
	held = call_waits(_metadata, &ns->s, call.pid, variant->how, start);
	EXPECT_LT(whole * 2 / 3, held) TH_LOG("the wait was cut short");
	EXPECT_EQ(0, nl_wait(call, END_MS)->ret);
	EXPECT_TRUE(waits_end(ns));
}

TEST_HARNESS_MAIN
