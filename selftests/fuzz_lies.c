// SPDX-License-Identifier: GPL-2.0
/*
 * A server that tells lies: all those that there are, one after the other, in sessions of each
 * kind; then, in one test, as many as NBD_LIES says, chosen by NBD_SEED. A lie costs at most its
 * connection: every request ends, with the right data or, where that is right, an error.
 *
 * NBD_SEED=SEED[:SESSION] begins with that session. The seed decides what is told to whom; when
 * it is heard is up to the kernel, so that a rare finding may take several runs to be seen again.
 */
#include "kselftest_harness.h"
#include "lies.h"

#define LIES_DEFAULT	20000
#define WORKERS		2

FIXTURE(lies)
{
	struct nbd_dev dev;
};

FIXTURE_VARIANT(lies)
{
	const char *lie;
};

FIXTURE_VARIANT_ADD(lies, wrong_magic) { .lie = "wrong_magic" };
FIXTURE_VARIANT_ADD(lies, unknown_cookie) { .lie = "unknown_cookie" };
FIXTURE_VARIANT_ADD(lies, wrong_attempt) { .lie = "wrong_attempt" };
FIXTURE_VARIANT_ADD(lies, wrong_tag) { .lie = "wrong_tag" };
FIXTURE_VARIANT_ADD(lies, stale_cookie) { .lie = "stale_cookie" };
FIXTURE_VARIANT_ADD(lies, cookie_before_replay) { .lie = "cookie_before_replay" };
FIXTURE_VARIANT_ADD(lies, other_connection) { .lie = "other_connection" };
FIXTURE_VARIANT_ADD(lies, twice) { .lie = "twice" };
FIXTURE_VARIANT_ADD(lies, odd_error) { .lie = "odd_error" };
FIXTURE_VARIANT_ADD(lies, shuts_down) { .lie = "shuts_down" };
FIXTURE_VARIANT_ADD(lies, error_with_data) { .lie = "error_with_data" };
FIXTURE_VARIANT_ADD(lies, short_data_close) { .lie = "short_data_close" };
FIXTURE_VARIANT_ADD(lies, short_data_stall) { .lie = "short_data_stall" };
FIXTURE_VARIANT_ADD(lies, short_data_deaf) { .lie = "short_data_deaf" };
FIXTURE_VARIANT_ADD(lies, reply_within_data) { .lie = "reply_within_data" };
FIXTURE_VARIANT_ADD(lies, long_data) { .lie = "long_data" };
FIXTURE_VARIANT_ADD(lies, one_byte_more) { .lie = "one_byte_more" };
FIXTURE_VARIANT_ADD(lies, endless_data) { .lie = "endless_data" };
FIXTURE_VARIANT_ADD(lies, garbage) { .lie = "garbage" };
FIXTURE_VARIANT_ADD(lies, echo) { .lie = "echo" };
FIXTURE_VARIANT_ADD(lies, half_header_close) { .lie = "half_header_close" };
FIXTURE_VARIANT_ADD(lies, half_header_stall) { .lie = "half_header_stall" };
FIXTURE_VARIANT_ADD(lies, half_header_deaf) { .lie = "half_header_deaf" };
FIXTURE_VARIANT_ADD(lies, write_with_data) { .lie = "write_with_data" };
FIXTURE_VARIANT_ADD(lies, prediction) { .lie = "prediction" };
FIXTURE_VARIANT_ADD(lies, never_reads) { .lie = "never_reads" };
FIXTURE_VARIANT_ADD(lies, never_answers) { .lie = "never_answers" };
FIXTURE_VARIANT_ADD(lies, closes) { .lie = "closes" };
FIXTURE_VARIANT_ADD(lies, closes_after_reply) { .lie = "closes_after_reply" };
FIXTURE_VARIANT_ADD(lies, resets) { .lie = "resets" };
FIXTURE_VARIANT_ADD(lies, ends_its_stream) { .lie = "ends_its_stream" };
FIXTURE_VARIANT_ADD(lies, ends_our_stream) { .lie = "ends_our_stream" };
FIXTURE_VARIANT_ADD(lies, dribbles) { .lie = "dribbles" };
FIXTURE_VARIANT_ADD(lies, early_reply) { .lie = "early_reply" };
FIXTURE_VARIANT_ADD(lies, early_reply_twice) { .lie = "early_reply_twice" };

static const char *take_device(struct nbd_dev *dev)
{
	const char *why = NULL;

	if (!nbd_is_rust())
		return "the C driver does not survive this";
	why = nbd_pick(dev);
	if (!why)
		fuzz_init();
	return why;
}

static bool give_device(struct nbd_dev *dev)
{
	bool ok;

	if (!fuzz)
		return true;
	if (fuzz->failed || !fuzz->done) {
		fuzz_autopsy(dev->index);
		nl_disconnect(dev->index);
	}
	ok = nbd_give_back(dev);
	if (!ok)
		fuzz_autopsy(dev->index);
	munmap(fuzz, sizeof(*fuzz));
	fuzz = NULL;
	return ok;
}

FIXTURE_SETUP(lies)
{
	const char *why = take_device(&self->dev);

	if (why)
		SKIP(return, "%s", why);
}

FIXTURE_TEARDOWN(lies)
{
	EXPECT_TRUE(give_device(&self->dev));
}

/* Sessions with these plans, one after the other. */
static void run_plans(struct __test_metadata *_metadata, struct nbd_dev *dev,
		      const struct lies_plan *plan, size_t n, const struct lie *lie)
{
	unsigned long seed = fuzz_seed();
	const char *wrong;
	pid_t pid;
	size_t i;

	pid = fuzz_fork();
	if (!pid) {
		static struct liar liar;

		if (!lies_init(&liar, dev))
			_exit(1);
		liar.rng.x = seed;
		for (i = 0; i < n && !fuzz->failed; i++) {
			liar.plan = plan[i];
			liar.plan.only = lie;
			if (liar.plan.conns < lie->conns)
				liar.plan.conns = lie->conns;
			lies_session(&liar);
		}
		fuzz->done = 1;
		_exit(0);
	}
	wrong = fuzz_watch(pid, 5000, false);
	ASSERT_NULL(wrong) TH_LOG("%s; NBD_SEED=%lu", wrong, seed);
}

TEST_F_TIMEOUT(lies, in_all_sessions, 60)
{
	static const struct lies_plan plans[] = {
		{ .name = "to one of four", .conns = 4, .dead = 10, .lies = 4, .sndbuf = 8192,
		  .end = END_NETLINK },
		{ .name = "to the only one", .conns = 1, .dead = 10, .lies = 3, .sndbuf = 8192,
		  .end = END_DISCONNECT },
		{ .name = "without time to reconnect", .conns = 1, .lies = 3, .sndbuf = 8192,
		  .end = END_SERVERS },
		{ .name = "over TCP", .conns = 2, .dead = 10, .lies = 3, .sndbuf = 8192,
		  .tcp = true, .end = END_CLEAR },
		{ .name = "to a work item", .conns = 2, .dead = 10, .lies = 3, .sndbuf = 8192,
		  .work = true, .end = END_NETLINK },
		{ .name = "to a work item over TCP", .conns = 2, .dead = 10, .lies = 3,
		  .sndbuf = 8192, .tcp = true, .work = true, .end = END_CLEAR },
		{ .name = "to an ioctl session", .ioctl = true, .conns = 2, .lies = 1,
		  .sndbuf = 8192, .end = END_SERVERS },
		{ .name = "while it is replaced", .conns = 1, .dead = 10, .lies = 4, .sndbuf = 8192,
		  .replace = true, .end = END_NETLINK },
		/* The session is ended while the lie is looked at. */
		{ .name = "and then CLEAR_SOCK", .conns = 2, .dead = 10, .lies = 1,
		  .sndbuf = 8192, .abrupt = true, .end = END_CLEAR },
		{ .name = "and then DISCONNECT", .ioctl = true, .conns = 2, .lies = 1,
		  .sndbuf = 8192, .abrupt = true, .end = END_DISCONNECT },
		{ .name = "and then a signal", .ioctl = true, .conns = 1, .lies = 1,
		  .sndbuf = 8192, .abrupt = true, .end = END_SIGNAL },
		{ .name = "at disconnect", .conns = 2, .dead = 10, .lies = 2, .at_disconnect = true,
		  .end = END_NETLINK },
	};

	run_plans(_metadata, &self->dev, plans, ARRAY_SIZE(plans), lie_named(variant->lie));
}

/* What stalls is ended by the timeout. */
FIXTURE(slow)
{
	struct nbd_dev dev;
};

FIXTURE_VARIANT(slow)
{
	const char *lie;
};

FIXTURE_VARIANT_ADD(slow, short_data_stall) { .lie = "short_data_stall" };
FIXTURE_VARIANT_ADD(slow, short_data_deaf) { .lie = "short_data_deaf" };
FIXTURE_VARIANT_ADD(slow, half_header_stall) { .lie = "half_header_stall" };
FIXTURE_VARIANT_ADD(slow, half_header_deaf) { .lie = "half_header_deaf" };
FIXTURE_VARIANT_ADD(slow, never_reads) { .lie = "never_reads" };
FIXTURE_VARIANT_ADD(slow, never_answers) { .lie = "never_answers" };

FIXTURE_SETUP(slow)
{
	const char *why = take_device(&self->dev);

	if (why)
		SKIP(return, "%s", why);
}

FIXTURE_TEARDOWN(slow)
{
	EXPECT_TRUE(give_device(&self->dev));
}

TEST_F_TIMEOUT(slow, times_out, 60)
{
	static const struct lies_plan plans[] = {
		{ .name = "with netlink", .conns = 2, .dead = 10, .lies = 1, .timeout = 1,
		  .sndbuf = 8192, .end = END_NETLINK },
		{ .name = "while it is replaced", .conns = 1, .dead = 10, .lies = 1, .timeout = 1,
		  .sndbuf = 8192, .replace = true, .end = END_NETLINK },
		{ .name = "with ioctls", .ioctl = true, .conns = 1, .lies = 1, .timeout = 1,
		  .sndbuf = 8192, .end = END_DISCONNECT },
	};

	run_plans(_metadata, &self->dev, plans, ARRAY_SIZE(plans), lie_named(variant->lie));
}

/* Random lies */

FIXTURE(many)
{
	struct nbd_dev dev, more[WORKERS];
};

FIXTURE_SETUP(many)
{
	const char *why = take_device(&self->dev);

	if (why)
		SKIP(return, "%s", why);
}

FIXTURE_TEARDOWN(many)
{
	EXPECT_TRUE(give_device(&self->dev));
}

TEST_F_TIMEOUT(many, closes_at_each_byte, 60)
{
	static const struct lies_plan plan = {
		.name = "of a reply", .conns = 2, .dead = 10,
		.lies = sizeof(struct nbd_reply) + 513, .end = END_NETLINK,
	};

	run_plans(_metadata, &self->dev, &plan, 1, &closes_at_each_byte);
}

static struct lies_plan random_plan(struct liar *l)
{
	static const int sndbuf[] = { 0, 0, 4096, 16384, 65536 };
	struct lies_plan plan = {
		.ioctl = !pick(l, 4), .tcp = !pick(l, 6), .conns = 1 + pick(l, CONN_MAX),
		.dead = pick(l, 4) ? 10 : 0, .timeout = pick(l, 12) ? 0 : 1,
		.sndbuf = sndbuf[pick(l, ARRAY_SIZE(sndbuf))], .fine = !pick(l, 4),
		.work = !pick(l, 4), .replace = !pick(l, 3),
		.abrupt = pick(l, 2), .at_disconnect = !pick(l, 16), .end = pick(l, ENDINGS),
	};

	plan.lies = pick(l, 4) ? 1 + pick(l, 400) : 1 + pick(l, 8);
	if (plan.ioctl)
		plan.replace = false;
	if (!plan.ioctl && plan.end == END_SIGNAL)
		plan.end = END_CLEAR;
	if (plan.ioctl && plan.end == END_NETLINK)
		plan.end = END_DISCONNECT;
	return plan;
}

/* Every so many sessions from the first on. */
static void random_lies(struct nbd_dev *dev, unsigned long seed, unsigned long first, int step,
			long count)
{
	static struct liar liar;
	struct liar *l = &liar;
	unsigned long i;
	long lies = 0;

	if (!lies_init(l, dev))
		_exit(1);
	for (i = first; lies < count && !fuzz->failed; i += step) {
		/* Each session has a seed of its own. */
		l->rng.x = seed * 1000003UL + i;
		l->plan = random_plan(l);
		l->lies = 0;
		l->ios = 0;
		l->replaced = 0;
		l->drained = 0;
		lies_session(l);
		lies += l->lies;
		fuzz->count[0] += l->lies;
		fuzz->count[1]++;
		fuzz->count[2] += l->ios;
		fuzz->count[3] += l->replaced;
		fuzz->count[4] += l->drained;
		if (fuzz->failed)
			fuzz_say("again: NBD_SEED=%lu:%lu", seed, i);
	}
	fuzz->done = 1;
	_exit(0);
}

TEST_F_TIMEOUT(many, random, 1500)
{
	unsigned long seed = fuzz_seed();
	unsigned long count = fuzz_env("NBD_LIES", scaled_down(LIES_DEFAULT));
	unsigned long session = 0;
	const char *s = getenv("NBD_SEED"), *wrong;
	struct fuzz_shared *of[WORKERS];
	long long start = now_ms();
	pid_t pid[WORKERS];
	bool alone = s && strchr(s, ':');
	int i, j, n = alone ? 1 : WORKERS;

	if (alone)
		session = strtoul(strchr(s, ':') + 1, NULL, 0);
	TH_LOG("NBD_SEED=%lu NBD_LIES=%lu", seed, count);
	for (i = 0; i < n; i++) {
		if (i) {
			ASSERT_NULL(nbd_pick(&self->more[i]));
			fuzz_init();
		}
		of[i] = fuzz;
		pid[i] = fuzz_fork();
		if (!pid[i])
			random_lies(i ? &self->more[i] : &self->dev, seed, session + i, n,
				    count / n);
	}
	for (i = 0; i < n; i++) {
		fuzz = of[i];
		wrong = fuzz_watch(pid[i], 5000, false);
		EXPECT_NULL(wrong) TH_LOG("%s; seed %lu", wrong, seed);
		if (i) {
			for (j = 0; j < 5; j++)
				of[0]->count[j] += fuzz->count[j];
			EXPECT_TRUE(give_device(&self->more[i]));
		}
	}
	fuzz = of[0];
	TH_LOG("%ld lies in %ld sessions with %ld I/Os, %lld ms", fuzz->count[0], fuzz->count[1],
	       fuzz->count[2], now_ms() - start);
	TH_LOG("%ld links were replaced, and %ld lies came from one that surely was",
	       fuzz->count[3], fuzz->count[4]);
	report_count(fuzz->count[0], "lies");
	/* A few sessions may have none. */
	if (count >= LIES_DEFAULT / 2) {
		EXPECT_LE(fuzz->count[0] / 100, fuzz->count[3]);
		EXPECT_LE(fuzz->count[0] / 1000, fuzz->count[4]);
	}
	EXPECT_LE((long)count / n * n, fuzz->count[0]);
}

TEST_HARNESS_MAIN
