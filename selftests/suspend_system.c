// SPDX-License-Identifier: GPL-2.0
/*
 * The system goes to sleep and wakes up: no session ends, no request fails, no byte is wrong. Only
 * as deep as /sys/power/pm_test says, and beyond "freezer" only with NBD_SUSPEND=1, for that takes
 * the devices away on which the programs and the results may be: see scripts/vm-suspend. From the
 * first suspend on nothing is needed that is not in memory already.
 *
 * The servers are frozen, too. So a process with requests in flight must not sleep for them in a
 * way that cannot be frozen: the I/O is asynchronous.
 */
#include <linux/aio_abi.h>
#include <sched.h>

#include "kselftest_harness.h"
#include "nbd_expect.h"
#include "nbd_nlpeer.h"

#define POWER	"/sys/power/"
#define DELAY	"/sys/module/suspend/parameters/pm_test_delay"
#define ALARM	"/sys/class/rtc/rtc0/wakealarm"
#define CPU	1

/* Within which time a suspend that waits for requests is to be ended by the alarm, in seconds. */
#define RESCUE	"10"
/* How long requests wait for a connection: longer than that. */
#define DEAD	60

enum what { NETLINK, IOCTL };

FIXTURE(sleeps)
{
	struct nl_session ns;
};

FIXTURE_VARIANT(sleeps)
{
	const char *level;
	enum what what;
};

FIXTURE_VARIANT_ADD(sleeps, freezer_netlink) { .level = "freezer", .what = NETLINK };
FIXTURE_VARIANT_ADD(sleeps, freezer_ioctl) { .level = "freezer", .what = IOCTL };
FIXTURE_VARIANT_ADD(sleeps, devices_netlink) { .level = "devices", .what = NETLINK };
FIXTURE_VARIANT_ADD(sleeps, devices_ioctl) { .level = "devices", .what = IOCTL };
FIXTURE_VARIANT_ADD(sleeps, core_netlink) { .level = "core", .what = NETLINK };
FIXTURE_VARIANT_ADD(sleeps, core_ioctl) { .level = "core", .what = IOCTL };

static bool has_word(const char *path, const char *word)
{
	char text[256];

	return read_file(path, text, sizeof(text)) > 0 && strstr(text, word);
}

/* NULL, or why the system cannot go to sleep like this. */
static const char *cannot_sleep(const char *level)
{
	if (!has_word(POWER "state", "mem") || !has_word(POWER "pm_test", level))
		return "the kernel has no test of suspending";
	if (strcmp(level, "freezer") && !getenv("NBD_SUSPEND"))
		return "it would take away what this system is on: see scripts/vm-suspend";
	if (strcmp(level, "core"))
		return NULL;
	if (!has_word(POWER "mem_sleep", "deep"))
		return "the machine has no deep sleep";
	return access(ALARM, W_OK) ? "there is no alarm to wake it up" : NULL;
}

FIXTURE_SETUP(sleeps)
{
	int n = sysconf(_SC_NPROCESSORS_ONLN) > 1 ? 2 : 1;
	const char *why = cannot_sleep(variant->level);

	if (!why)
		why = nl_init(&self->ns, n, PEER_HELD);
	if (why)
		SKIP(return, "%s", why);
}

FIXTURE_TEARDOWN(sleeps)
{
	write_file(POWER "pm_test", "none");
	EXPECT_TRUE(nl_cleanup(&self->ns));
}

static void go_to_sleep(struct __test_metadata *_metadata, const char *level)
{
	bool core = !strcmp(level, "core");
	bool ok;

	write_file(DELAY, "0");
	if (core) {
		ASSERT_TRUE(write_file(POWER "mem_sleep", "deep"));
		/* A driver that has the suspend wait for requests is to fail, not to hang. */
		write_file(ALARM, "0");
		ASSERT_TRUE(write_file(ALARM, "+" RESCUE));
	}
	ASSERT_TRUE(write_file(POWER "pm_test", level));
	ok = write_file(POWER "state", "mem");
	EXPECT_TRUE(ok) TH_LOG("the system does not sleep: %s", strerror(errno));
	write_file(POWER "pm_test", "none");
	if (core)
		write_file(ALARM, "0");
}

/* The holder, with asynchronous I/O. */

struct aio {
	aio_context_t ctx;
	struct iocb cb[HOLDER_THREADS];
	unsigned char *buf[HOLDER_THREADS];
};

static void aio_prepare(struct aio *a, int i, int fd, bool write, off_t off, size_t len)
{
	a->cb[i] = (struct iocb) {
		.aio_data = i,
		.aio_lio_opcode = write ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD,
		.aio_fildes = fd,
		.aio_buf = (uintptr_t)a->buf[i],
		.aio_nbytes = len,
		.aio_offset = off,
	};
}

static void aio_submit(struct aio *a)
{
	struct iocb *list[HOLDER_THREADS];
	int i;

	for (i = 0; i < HOLDER_THREADS; i++)
		list[i] = &a->cb[i];
	if (syscall(SYS_io_submit, a->ctx, (long)HOLDER_THREADS, list) != HOLDER_THREADS)
		_exit(1);
}

/* Wait for all of them, also if that is interrupted; what they returned. */
static void aio_wait(struct aio *a, long *res)
{
	struct io_event ev[HOLDER_THREADS];
	int n = 0, got, i;

	while (n < HOLDER_THREADS) {
		got = syscall(SYS_io_getevents, a->ctx, 1L, (long)(HOLDER_THREADS - n), ev, NULL);
		for (i = 0; i < got; i++)
			res[ev[i].data] = (long)ev[i].res;
		n += got > 0 ? got : 0;
	}
}

/* Write a part of the second half of the device, read it back and compare. */
static void aio_round(struct peer_shared *sh, struct aio *a, int fd, unsigned int round)
{
	size_t len = (rand_r(&round) % 16 + 1) * 4096, j;
	long res[HOLDER_THREADS];
	int pass, i;
	off_t off;

	for (pass = 0; pass < 2; pass++) {
		for (i = 0; i < HOLDER_THREADS; i++) {
			off = PEER_SIZE / 2 + i * HOLDER_CHUNK;
			memset(a->buf[i], pass ? 0 : round + i, len);
			aio_prepare(a, i, fd, !pass, off, len);
		}
		aio_submit(a);
		aio_wait(a, res);
		for (i = 0; i < HOLDER_THREADS; i++) {
			bool ok = res[i] == (long)len;

			for (j = 0; ok && pass && j < len; j++)
				ok = a->buf[i][j] == (unsigned char)(round + i);
			sh->loop_errors += !ok;
		}
	}
	sh->looped++;
}

static void __noreturn aio_main(struct peer_session *s)
{
	struct peer_shared *sh = s->sh;
	long res[HOLDER_THREADS];
	struct aio a = {};
	unsigned int round;
	cpu_set_t set;
	int fd, i, j;

	fd = open(s->dev.path, O_RDWR | O_DIRECT | O_CLOEXEC);
	if (fd < 0 || syscall(SYS_io_setup, HOLDER_THREADS, &a.ctx))
		_exit(1);
	/* The requests are made on the processor that goes. */
	CPU_ZERO(&set);
	CPU_SET(CPU, &set);
	sched_setaffinity(0, sizeof(set), &set);
	for (i = 0; i < HOLDER_THREADS; i++)
		if (posix_memalign((void **)&a.buf[i], 4096, HOLDER_CHUNK))
			_exit(1);
	sh->holder_open = 1;
	while (!sh->io_go && !sh->holder_stop)
		usleep(1000);
	for (round = 1; sh->loop; round++)
		aio_round(sh, &a, fd, round);

	for (i = 0; i < HOLDER_THREADS; i++) {
		memset(a.buf[i], 'a' + i, HOLDER_CHUNK);
		aio_prepare(&a, i, fd, i % 2 == 0, i * HOLDER_CHUNK, HOLDER_CHUNK);
	}
	aio_submit(&a);
	sh->io_started = HOLDER_THREADS;
	aio_wait(&a, res);
	for (i = 0; i < HOLDER_THREADS; i++) {
		sh->io_errno[i] = res[i] < 0 ? -res[i] : res[i] == HOLDER_CHUNK ? 0 : -1;
		for (j = 0; i % 2 && j < res[i]; j++)
			if (a.buf[i][j] != pattern(i * HOLDER_CHUNK + j))
				sh->io_errno[i] = -2;
	}
	sh->io_done = HOLDER_THREADS;
	for (i = 0; i < HOLDER_THREADS; i++)
		if (pread(fd, a.buf[i], 4096, i * HOLDER_CHUNK) == 4096)
			sh->late_bytes += 4096;
	sh->late_done = HOLDER_THREADS;
	while (!sh->holder_stop)
		usleep(2000);
	_exit(0);
}

static int connect_as(struct nl_session *ns, enum what what)
{
	return what == NETLINK ? nl_connect(ns) : peer_start(&ns->s);
}

static int aio_begin(struct peer_session *s)
{
	int i;

	s->holder = fork_quiet();
	if (!s->holder)
		aio_main(s);
	if (!WAIT_UNTIL(s->sh->holder_open && !in_flight(s), BOUNDED))
		return -1;
	for (i = 0; i < s->npeers; i++)
		s->sh->kind[i] = s->kind;
	s->sh->io_go = 1;
	return 0;
}

/* All requests have come to servers that do not answer. */
static int aio_hold(struct peer_session *s)
{
	if (aio_begin(s) || !WAIT_UNTIL(sum(s->sh->held) >= HOLDER_THREADS, BOUNDED))
		return -1;
	return 0;
}

static void still_works(struct __test_metadata *_metadata, struct nl_session *ns, enum what what)
{
	struct peer_session *s = &ns->s;
	int i;

	EXPECT_TRUE(nbd_running(&s->dev));
	for (i = 0; i < s->npeers; i++)
		EXPECT_FALSE(s->sh->eof[i]);
	EXPECT_EQ(0, other_wait(other_run(s, read_all), 10000));
	if (what == NETLINK) {
		EXPECT_EQ(0, nl_disconnect(s->dev.index));
		return;
	}
	EXPECT_EQ(1, s->sh->client_stage)
		TH_LOG("NBD_DO_IT has returned: %s", strerror(s->sh->client_errno));
	EXPECT_EQ(0, other_wait(other_ioctl(s, NBD_DISCONNECT), BOUNDED));
	EXPECT_TRUE(WAIT_UNTIL(s->sh->client_stage == 2, BOUNDED));
	EXPECT_EQ(0, s->sh->client_errno);
}

TEST_F(sleeps, idle)
{
	struct nl_session *ns = &self->ns;

	ASSERT_EQ(0, connect_as(ns, variant->what));
	go_to_sleep(_metadata, variant->level);
	still_works(_metadata, ns, variant->what);
}

TEST_F(sleeps, twice_under_load)
{
	struct nl_session *ns = &self->ns;
	struct peer_shared *sh = ns->s.sh;
	int round, before;

	ns->s.kind = PEER_SHUFFLE;
	sh->loop = 1;
	ASSERT_EQ(0, connect_as(ns, variant->what));
	ASSERT_EQ(0, aio_begin(&ns->s));
	for (round = 0; round < 2; round++) {
		before = sh->looped;
		ASSERT_TRUE(WAIT_UNTIL(sh->looped > before + 2, BOUNDED)) TH_LOG("no I/O");
		go_to_sleep(_metadata, variant->level);
	}
	before = sh->looped;
	EXPECT_TRUE(WAIT_UNTIL(sh->looped > before + 2, BOUNDED)) TH_LOG("no I/O at the end");
	sh->loop = 0;
	holder_expect(_metadata, &ns->s, 0);
	EXPECT_EQ(0, sh->loop_errors);
	still_works(_metadata, ns, variant->what);
}

TEST_F(sleeps, requests_in_flight)
{
	struct nl_session *ns = &self->ns;
	int i;

	ASSERT_EQ(0, connect_as(ns, variant->what));
	ASSERT_EQ(0, aio_hold(&ns->s));
	go_to_sleep(_metadata, variant->level);
	EXPECT_EQ(0, ns->s.sh->io_done);
	for (i = 0; i < ns->s.npeers; i++)
		ns->s.sh->go[i] = 1;
	holder_expect(_metadata, &ns->s, 0);
	still_works(_metadata, ns, variant->what);
}

TEST_F(sleeps, requests_wait_for_a_connection)
{
	struct nl_session *ns = &self->ns;
	int i;

	if (variant->what == IOCTL)
		SKIP(return, "requests of the ioctl interface do not wait");
	ns->dead = scaled(DEAD);
	ASSERT_EQ(0, nl_connect(ns));
	ASSERT_EQ(0, aio_hold(&ns->s));
	for (i = 0; i < ns->s.npeers; i++)
		ASSERT_TRUE(nl_kill_peer(&ns->s, i));
	go_to_sleep(_metadata, variant->level);
	EXPECT_EQ(0, ns->s.sh->io_done);
	for (i = 0; i < ns->s.npeers; i++)
		ASSERT_EQ(0, nl_reconnect(ns, i));
	holder_expect(_metadata, &ns->s, 0);
	still_works(_metadata, ns, NETLINK);
}

TEST_HARNESS_MAIN
