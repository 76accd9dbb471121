// SPDX-License-Identifier: GPL-2.0
/*
 * Servers die at random and are replaced, the device is resized, and its flags and times are
 * changed, for NBD_CHURN_SECONDS (30), while others write, read and compare: no error, no wrong
 * byte, every death told once, and nothing stuck at the end.
 *
 * NBD_SEED, which is printed, decides the steps.
 */
#include <pthread.h>

#include "kselftest_harness.h"
#include "nbd_fuzz.h"
#include "nbd_nlpeer.h"

#define NCONN	4
#define THREADS	8
#define BLOCK	4096UL
#define AREA	(1UL << 20)	/* of a thread; no size is below the sum */
#define STALL	10000		/* ms; more than a replay takes, less than any timeout */

struct churn {
	_Atomic int stop, errors;
	_Atomic long rounds, written, verified;
	unsigned long seed;
	char text[128];			/* the first error */
	/* What is to be on the device */
	unsigned char want[THREADS * AREA];
};

static struct churn *churn;

/* The load */

static int fd;

static void wrong(int n, const char *what, size_t off, size_t len)
{
	if (!churn->errors++)
		snprintf(churn->text, sizeof(churn->text), "thread %d: %s of %zu at %zu: %s", n,
			 what, len, off, errno ? strerrorname_np(errno) : "not what was written");
}

/* One part of the area: all of it has been written, or was there from the beginning. */
static void compare(int n, unsigned char *buf, size_t off, size_t len)
{
	errno = 0;
	memset(buf, 0x5a, len);
	if (pread(fd, buf, len, off) != (ssize_t)len || memcmp(buf, churn->want + off, len))
		wrong(n, "read", off, len);
	churn->verified += len;
}

static void *load_thread(void *arg)
{
	int n = (long)arg;
	struct fuzz_random rng = { .x = churn->seed * 1000 + n };
	unsigned char *buf;

	if (posix_memalign((void **)&buf, BLOCK, AREA)) {
		wrong(n, "buffer", 0, 0);
		return NULL;
	}
	while (!churn->stop && !churn->errors) {
		size_t len = (fuzz_pick(&rng, 16) + 1) * BLOCK, i;
		size_t off = fuzz_pick(&rng, (AREA - len) / BLOCK + 1) * BLOCK + n * AREA;
		uint64_t x = fuzz_next(&rng);

		for (i = 0; i < len; i += sizeof(x), x += 0x9e3779b97f4a7c15ULL)
			memcpy(churn->want + off + i, &x, sizeof(x));
		errno = 0;
		memcpy(buf, churn->want + off, len);
		if (pwrite(fd, buf, len, off) != (ssize_t)len)
			wrong(n, "write", off, len);
		churn->written += len;
		errno = 0;
		if (!fuzz_pick(&rng, 16) && fdatasync(fd))
			wrong(n, "flush", 0, 0);
		/* What was just written, or what something may have come back to much later. */
		if (fuzz_pick(&rng, 2)) {
			len = (fuzz_pick(&rng, 16) + 1) * BLOCK;
			off = fuzz_pick(&rng, (AREA - len) / BLOCK + 1) * BLOCK + n * AREA;
		}
		compare(n, buf, off, len);
		churn->rounds++;
	}
	if (!churn->errors)
		compare(n, buf, n * AREA, AREA);
	return NULL;
}

static int load(struct peer_session *s)
{
	pthread_t t[THREADS];
	long i;

	fd = open(s->dev.path, O_RDWR | O_DIRECT | O_CLOEXEC);
	if (fd < 0)
		wrong(0, "open", 0, 0);
	for (i = 0; i < THREADS; i++)
		if (pthread_create(&t[i], NULL, load_thread, (void *)i))
			return 1;
	for (i = 0; i < THREADS; i++)
		pthread_join(t[i], NULL);
	return churn->errors != 0;
}

/* The steps */

enum step { KILL, LEAVE, KILL_ALL, REPLACE, REPLACE_ALL, RESIZE, FLAGS, TIMEOUT, DEAD_TIME };

static const char * const names[] = {
	"killed", "left", "killed together", "replaced", "replaced together", "resized",
	"given flags", "given a timeout", "given a time to wait",
};

/* How often of a hundred. */
static const int share[] = { 25, 10, 2, 30, 5, 12, 8, 4, 4 };

struct run {
	struct nl_session ns;
	struct genl events;
	struct fuzz_random rng;
	bool dead[NCONN];
	int ndead, deaths, heard;
	int done[ARRAY_SIZE(names)];
};

/* One that lives, or one that does not, chosen by chance. */
static int one(struct run *r, bool dead)
{
	int n;

	do
		n = fuzz_pick(&r->rng, NCONN);
	while (r->dead[n] != dead);
	return n;
}

static void die(struct __test_metadata *_metadata, struct run *r, int n, bool leave)
{
	struct peer_session *s = &r->ns.s;

	if (leave)
		s->sh->close[n] = 1;
	else
		kill(s->peer[n], SIGKILL);
	ASSERT_TRUE(reap(s->peer[n], BOUNDED)) TH_LOG("server %d does not end", n);
	r->dead[n] = true;
	r->ndead++;
	r->deaths++;
}

/* New servers for this many dead ones, given by one message. */
static void replace(struct __test_metadata *_metadata, struct run *r, int count)
{
	struct peer_session *s = &r->ns.s;
	int socks[NCONN], i, n;
	struct nl_msg m;

	for (i = 0; i < count; i++) {
		n = one(r, true);
		ASSERT_EQ(0, nl_peer(s, n));
		s->sh->kind[n] = PEER_SHUFFLE;
		r->dead[n] = false;
		r->ndead--;
		socks[i] = s->fd[n];
	}
	nl_begin(&m, NBD_CMD_RECONFIGURE, s->dev.index);
	nl_socks(&m, socks, count);
	ASSERT_EQ(0, nl_finish(&r->ns, &m));
}

static void change(struct __test_metadata *_metadata, struct run *r, int type,
		   uint64_t v)
{
	ASSERT_EQ(0, nl_change(&r->ns, type, v)) TH_LOG("attribute %d: %lu", type, (long)v);
	if (type == NBD_ATTR_SIZE_BYTES)
		ASSERT_EQ((long long)v / 512, nbd_sys(&r->ns.s.dev, "size"));
}

static enum step take_step(struct __test_metadata *_metadata, struct run *r)
{
	int n, left = fuzz_pick(&r->rng, 100);
	enum step what = KILL;

	while (left >= share[what])
		left -= share[what++];
	if (what <= KILL_ALL && r->ndead == NCONN)
		what = REPLACE;
	if ((what == REPLACE || what == REPLACE_ALL) && !r->ndead)
		what = KILL;
	switch (what) {
	case KILL:
	case LEAVE:
		die(_metadata, r, one(r, false), what == LEAVE);
		break;
	case KILL_ALL:
		for (n = 0; n < NCONN; n++)
			if (!r->dead[n])
				die(_metadata, r, n, false);
		break;
	case REPLACE:
		replace(_metadata, r, 1);
		break;
	case REPLACE_ALL:
		replace(_metadata, r, r->ndead);
		break;
	case RESIZE:
		change(_metadata, r, NBD_ATTR_SIZE_BYTES,
		       THREADS * AREA + fuzz_pick(&r->rng, 4096) * BLOCK);
		break;
	case FLAGS:
		change(_metadata, r, NBD_ATTR_CLIENT_FLAGS, fuzz_pick(&r->rng, 4));
		break;
	case TIMEOUT:
		n = fuzz_pick(&r->rng, 3);
		change(_metadata, r, NBD_ATTR_TIMEOUT, n ? 20 + 10 * n : 0);
		break;
	case DEAD_TIME:
		change(_metadata, r, NBD_ATTR_DEAD_CONN_TIMEOUT,
		       60 + fuzz_pick(&r->rng, 60));
		break;
	}
	r->done[what]++;
	return what;
}

static bool heard_of_all(struct run *r)
{
	r->heard += nl_link_dead(&r->events, r->ns.s.dev.index, 0);
	return r->heard >= r->deaths;
}

static void show(struct __test_metadata *_metadata, struct run *r, long steps,
		 long long ms)
{
	char text[256];
	size_t i;
	int n = 0;

	for (i = 0; i < ARRAY_SIZE(names); i++)
		n += snprintf(text + n, sizeof(text) - n, ", %d %s", r->done[i], names[i]);
	TH_LOG("%ld steps in %lld s: %s", steps, ms / 1000, text + 2);
	TH_LOG("%d deaths; %ld rounds, %ld MiB written, %ld MiB verified", r->deaths,
	       churn->rounds, churn->written >> 20, churn->verified >> 20);
}

FIXTURE(churn)
{
	struct run run;
};

FIXTURE_SETUP(churn)
{
	const char *why = nl_init(&self->run.ns, NCONN, PEER_SHUFFLE);

	if (why)
		SKIP(return, "%s", why);
	churn = shared_memory(sizeof(*churn));
	ASSERT_NE(NULL, churn);
	memcpy(churn->want, self->run.ns.s.sh->data, sizeof(churn->want));
	self->run.ns.s.timeout = 30;
	self->run.ns.dead = 60;
	ASSERT_EQ(0, genl_listen(&self->run.events));
}

FIXTURE_TEARDOWN(churn)
{
	EXPECT_TRUE(nl_cleanup(&self->run.ns));
}

/* As long as it is told to: the deadlines within find what hangs. */
TEST_F_TIMEOUT(churn, under_verified_load, 100000)
{
	long long start = now_ms(), end = start + fuzz_env("NBD_CHURN_SECONDS", 30) * 1000;
	struct run *r = &self->run;
	struct peer_session *s = &r->ns.s;
	int before[64], nbefore = nl_sleepers(before, 64), served[NCONN], n;
	long steps = 0;
	pid_t pid;

	churn->seed = fuzz_seed();
	r->rng.x = churn->seed;
	TH_LOG("NBD_SEED=%lu", churn->seed);
	ASSERT_EQ(0, nl_connect(&r->ns));
	for (n = 0; n < NCONN; n++)
		s->sh->kind[n] = PEER_SHUFFLE;
	pid = other_run(s, load);
	while (now_ms() < end) {
		long enough = churn->rounds + fuzz_pick(&r->rng, 16);
		enum step what;

		what = take_step(_metadata, r);
		steps++;
		ASSERT_TRUE(WAIT_UNTIL(heard_of_all(r), BOUNDED))
			TH_LOG("step %ld: heard of %d of %d deaths", steps, r->heard,
			       r->deaths);
		ASSERT_TRUE(WAIT_UNTIL(r->ndead == NCONN || churn->errors ||
				       churn->rounds > enough, STALL))
			TH_LOG("step %ld, %s: I/O stalls", steps, names[what]);
		ASSERT_EQ(0, churn->errors) TH_LOG("step %ld, %s: %s", steps, names[what],
						   churn->text);
	}
	if (r->ndead)
		replace(_metadata, r, r->ndead);
	/* All of them work. */
	for (n = 0; n < NCONN; n++)
		served[n] = s->sh->requests[n];
	for (n = 0; n < NCONN; n++)
		EXPECT_TRUE(WAIT_UNTIL(s->sh->requests[n] > served[n], STALL))
			TH_LOG("connection %d is not used", n);
	change(_metadata, r, NBD_ATTR_CLIENT_FLAGS, 0);
	churn->stop = 1;
	EXPECT_EQ(0, other_wait(pid, STALL)) TH_LOG("%s", churn->text);
	show(_metadata, r, steps, now_ms() - start);
	EXPECT_EQ(0, memcmp(churn->want, s->sh->data, sizeof(churn->want)))
		TH_LOG("the servers have something else");
	EXPECT_EQ(0, in_flight(s));
	EXPECT_EQ(0, nl_stuck(before, nbefore, 1000));
	EXPECT_EQ(r->deaths, r->heard + nl_link_dead(&r->events, s->dev.index, 300));
	for (n = 0; n < NCONN; n++)
		EXPECT_FALSE(exited(s->peer[n])) TH_LOG("connection %d was not open", n);
	EXPECT_EQ(0, nl_disconnect(s->dev.index));
	for (n = 0; n < NCONN; n++)
		EXPECT_TRUE(WAIT_UNTIL(exited(s->peer[n]), SOON)) TH_LOG("connection %d", n);
}

TEST_HARNESS_MAIN
