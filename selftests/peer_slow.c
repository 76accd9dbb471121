// SPDX-License-Identifier: GPL-2.0
/*
 * Links that are slow but move, and sockets with options of their user's: neither is a reason to
 * give a connection up, nor to keep a reply waiting.
 */
#include <pthread.h>

#include "kselftest_harness.h"
#include "nbd_peer.h"

/* Requests in flight, each so long that two of them take the server longer than the timeout. */
#define REQUESTS	6
#define LEN		(1UL << 20)

/* Requests of which the connection has room for several; all take it several times the timeout. */
#define SHORT_REQUESTS	100
#define SHORT_LEN	(64UL << 10)

/* One request, of memory of which the kernel may make as few pieces. */
#define HUGE		(2UL << 20)
#define LONG_LEN	(2 * HUGE)

static struct pump {
	struct peer_session *s;
	bool write;
	size_t len;
	int n, error;
} pumps[SHORT_REQUESTS];

static void *pump_io(void *arg)
{
	struct pump *p = arg;
	off_t at = p->n * p->len;
	unsigned char *buf;
	ssize_t done;
	size_t i;
	int fd;

	fd = open(p->s->dev.path, O_RDWR | O_DIRECT);
	if (fd < 0 || posix_memalign((void **)&buf, p->len < HUGE ? 4096 : HUGE, p->len))
		return NULL;
	madvise(buf, p->len, MADV_HUGEPAGE);
	for (i = 0; i < p->len; i++)
		buf[i] = p->write ? pattern(at + i) : 0;
	done = p->write ? pwrite(fd, buf, p->len, at) : pread(fd, buf, p->len, at);
	p->error = done < 0 ? errno : done != (ssize_t)p->len ? EPROTO : 0;
	for (i = 0; !p->error && i < p->len; i++)
		if (buf[i] != pattern(at + i))
			p->error = EBADMSG;
	close(fd);
	return NULL;
}

/* So many at once; the first error, or 0. */
static int pump(struct peer_session *s, bool write, int count, size_t len)
{
	pthread_t thread[SHORT_REQUESTS];
	int i, error = 0;

	for (i = 0; i < count; i++) {
		pumps[i] = (struct pump) {
			.s = s, .write = write, .len = len, .n = i, .error = 255,
		};
		if (pthread_create(&thread[i], NULL, pump_io, &pumps[i]))
			return 254;
	}
	for (i = 0; i < count; i++) {
		pthread_join(thread[i], NULL);
		error = error ?: pumps[i].error;
	}
	return error;
}

static int pump_writes(struct peer_session *s)
{
	return pump(s, true, REQUESTS, LEN);
}

static int pump_short_writes(struct peer_session *s)
{
	return pump(s, true, SHORT_REQUESTS, SHORT_LEN);
}

static int long_write(struct peer_session *s)
{
	return pump(s, true, 1, LONG_LEN);
}

static int long_read(struct peer_session *s)
{
	return pump(s, false, 1, LONG_LEN);
}

static int short_write(struct peer_session *s)
{
	return pump(s, true, 1, LEN / 2);
}

static int short_read(struct peer_session *s)
{
	return pump(s, false, 1, LEN / 4);
}

static int pump_read(struct peer_session *s)
{
	return pump(s, false, 1, LEN);
}

/* A session with so much room in its sockets, which has served a request; or why there is none. */
static const char *begin(struct __test_metadata *_metadata, struct peer_session *s, int room)
{
	const char *why = peer_init(s, 1, PEER_GOOD);

	if (why)
		return why;
	s->timeout = scaled(2);
	s->room = room;
	ASSERT_EQ(0, peer_start(s)) TH_LOG("%s", strerror(errno));
	ASSERT_EQ(0, other_wait(other_run(s, read_block), BOUNDED));
	return NULL;
}

FIXTURE(slow)
{
	struct peer_session s;
};

FIXTURE_SETUP(slow)
{
	const char *why = begin(_metadata, &self->s, 0);

	if (why)
		SKIP(return, "%s", why);
	/* A request takes 1.28 s, all take nearly four times the timeout. */
	self->s.sh->slow_ms = scaled(80);
}

FIXTURE_TEARDOWN(slow)
{
	EXPECT_TRUE(peer_cleanup(&self->s));
}

/* This I/O comes to its end in so many ms, and the connection stays. */
static void goes_through(struct __test_metadata *_metadata, struct peer_session *s,
			 int (*io)(struct peer_session *s), int ms)
{
	EXPECT_EQ(0, other_wait(other_run(s, io), ms));
	EXPECT_EQ(1, s->sh->client_stage);
	EXPECT_EQ(0, s->sh->eof[0]);
}

/* This I/O fails, and the session ends, when the timeout is over. */
static void times_out(struct __test_metadata *_metadata, struct peer_session *s,
		      int (*io)(struct peer_session *s))
{
	pid_t pid = other_run(s, io);

	EXPECT_TRUE(WAIT_UNTIL(s->sh->client_stage == 2, scaled(8000)));
	EXPECT_EQ(ETIMEDOUT, s->sh->client_errno);
	EXPECT_LT(0, other_wait(pid, BOUNDED));
}

/* The last write waits for its turn for longer than the timeout. */
TEST_F_TIMEOUT(slow, writes_wait_for_their_turn, 120)
{
	goes_through(_metadata, &self->s, pump_writes, scaled(20000));
}

/*
 * Many wait for their turn for longer than the timeout. At any time some of them are sent and not
 * answered yet: the server's time begins when it can know of a request.
 */
TEST_F_TIMEOUT(slow, many_writes_wait_for_their_turn, 120)
{
	goes_through(_metadata, &self->s, pump_short_writes, scaled(30000));
}

/* One call of the socket could send it all, and would take longer than the timeout. */
TEST_F_TIMEOUT(slow, one_long_write, 120)
{
	goes_through(_metadata, &self->s, long_write, scaled(20000));
}

TEST_F_TIMEOUT(slow, one_long_read, 120)
{
	goes_through(_metadata, &self->s, long_read, scaled(20000));
}

/* Of so little a second a call of the socket must not wait for much. */
TEST_F_TIMEOUT(slow, trickling_write, 120)
{
	self->s.sh->slow_ms = scaled(1500);
	goes_through(_metadata, &self->s, short_write, scaled(20000));
}

TEST_F_TIMEOUT(slow, trickling_read, 120)
{
	self->s.sh->slow_ms = scaled(1500);
	goes_through(_metadata, &self->s, short_read, scaled(20000));
}

/* The payload of one read takes longer than the timeout to arrive. */
TEST_F_TIMEOUT(slow, payload_takes_its_time, 120)
{
	self->s.sh->slow_ms = scaled(240);
	goes_through(_metadata, &self->s, pump_read, scaled(20000));
}

/* One that stands still in the middle of a payload is given up. */
TEST_F_TIMEOUT(slow, payload_that_stops, 120)
{
	struct peer_session *s = &self->s;

	s->sh->slow_ms = 0;
	s->sh->kind[0] = PEER_HALF_PAYLOAD;
	s->sh->go[0] = 1;
	times_out(_metadata, s, pump_read);
}

/* A socket that has room for all of a write: what the server has not read has not reached it. */
FIXTURE(roomy)
{
	struct peer_session s;
};

FIXTURE_SETUP(roomy)
{
	const char *why = begin(_metadata, &self->s, -1);

	if (why)
		SKIP(return, "%s", why);
}

FIXTURE_TEARDOWN(roomy)
{
	EXPECT_TRUE(peer_cleanup(&self->s));
}

TEST_F_TIMEOUT(roomy, trickling_write, 120)
{
	self->s.sh->slow_ms = scaled(1500);
	goes_through(_metadata, &self->s, short_write, scaled(20000));
}

TEST_F_TIMEOUT(roomy, many_writes_wait_for_their_turn, 120)
{
	self->s.sh->slow_ms = scaled(160);
	goes_through(_metadata, &self->s, pump_short_writes, scaled(40000));
}

/* A server that never reads it is given up. */
TEST_F_TIMEOUT(roomy, write_that_nobody_reads, 120)
{
	struct peer_session *s = &self->s;

	s->sh->kind[0] = PEER_DEAF;
	s->sh->go[0] = 1;
	/* It stops reading with the first request that it gets now. */
	times_out(_metadata, s, pump_short_writes);
}

FIXTURE(options)
{
	struct peer_session s;
};

FIXTURE_VARIANT(options)
{
	bool tcp;
	int lowat;
	bool hasty;
	bool late;			/* hasty once the session runs */
};

FIXTURE_VARIANT_ADD(options, lowat_unix) { .lowat = 4096 };
FIXTURE_VARIANT_ADD(options, lowat_tcp) { .lowat = 4096, .tcp = true };
FIXTURE_VARIANT_ADD(options, hasty_unix) { .hasty = true };
FIXTURE_VARIANT_ADD(options, hasty_tcp) { .hasty = true, .tcp = true };
FIXTURE_VARIANT_ADD(options, hasty_late_unix) { .late = true };
FIXTURE_VARIANT_ADD(options, hasty_late_tcp) { .late = true, .tcp = true };

FIXTURE_SETUP(options)
{
	const char *why = peer_init(&self->s, 1, PEER_GOOD);

	if (why)
		SKIP(return, "%s", why);
	self->s.tcp = variant->tcp;
	self->s.lowat = variant->lowat;
	self->s.hasty = variant->hasty;
	self->s.keep = variant->late;
	ASSERT_EQ(0, peer_start(&self->s)) TH_LOG("%s", strerror(errno));
	if (variant->late)
		peer_hasty(&self->s, 0);
}

FIXTURE_TEARDOWN(options)
{
	if (variant->late)
		close(self->s.fd[0]);
	EXPECT_TRUE(peer_cleanup(&self->s));
}

/* A reply to a write is shorter than the mark below which a receiver would sleep on. */
static int write_one(struct peer_session *s)
{
	static unsigned char buf[4096] __attribute__((aligned(4096)));
	int fd = open(s->dev.path, O_RDWR | O_DIRECT);

	return fd < 0 || pwrite(fd, buf, sizeof(buf), 0) != sizeof(buf);
}

/* Time that the machine's CPUs have spent in the kernel, in ticks. */
static long long system_time(void)
{
	long long user, nice, system;
	FILE *f = fopen("/proc/stat", "r");
	int n = f ? fscanf(f, "cpu %lld %lld %lld", &user, &nice, &system) : 0;

	if (f)
		fclose(f);
	return n == 3 ? system : -1;
}

TEST_F(options, replies_arrive)
{
	struct peer_session *s = &self->s;
	long long before;

	EXPECT_EQ(0, other_wait(other_run(s, write_one), BOUNDED));
	EXPECT_EQ(0, other_wait(other_run(s, read_block), BOUNDED));
	/* Nor does a receiver that has nothing to do keep a CPU busy: a second has 100 ticks. */
	before = system_time();
	ASSERT_LE(0, before);
	usleep(1000000);
	EXPECT_GT(before + 60, system_time());
	EXPECT_EQ(1, s->sh->client_stage);
}

TEST_HARNESS_MAIN
