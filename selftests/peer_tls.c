// SPDX-License-Identifier: GPL-2.0
/*
 * Connections that the kernel encrypts: what is sent goes out in records, which the socket may keep
 * for a while, with the pages of requests in them.
 */
#include "kselftest_harness.h"
#include <linux/sockios.h>
#include <pthread.h>

#include "nbd_expect.h"
#include "nbd_peer.h"

#define CHUNK		(1UL << 20)
#define WRITERS		6
#define ROUNDS		10
#define END_MS		2000
#define AWAY_MS		300

/* Writes of which each is one record, with its header and what TLS adds. */
#define RECORD_WRITES	48
#define RECORD_LEN	8192
#define RECORD_WIRE	((long)(RECORD_LEN + sizeof(struct nbd_request)) + 22)

/* The driver's second is no longer there. */
#define TOO_SLOW	(scaled(1) > 1)

FIXTURE(tls)
{
	struct peer_session s;
};

/* A session over TLS; NULL or why there is none, "" if the reason is in errno. */
static const char *tls_start(struct peer_session *s, int room)
{
	const char *why = peer_init(s, 1, PEER_GOOD);

	if (why)
		return why;
	s->tcp = true;
	s->tls = true;
	s->keep = true;
	s->room = room;
	if (!peer_start(s))
		return NULL;
	return errno == ENOENT ? "this kernel has no TLS" : "";
}

FIXTURE_SETUP(tls)
{
	const char *why = tls_start(&self->s, 0);

	if (why) {
		ASSERT_NE(0, *why) TH_LOG("%s", strerror(errno));
		SKIP(return, "%s", why);
	}
}

FIXTURE_TEARDOWN(tls)
{
	if (self->s.fd[0] > 0)
		close(self->s.fd[0]);
	EXPECT_TRUE(peer_cleanup(&self->s));
}

struct writer {
	struct peer_session *s;
	int n, round, error;
};

/* Write a part of the device, and read it back. */
static void *write_and_read(void *arg)
{
	struct writer *w = arg;
	off_t at = w->n * CHUNK;
	unsigned char *buf;
	size_t i;
	int fd = open(w->s->dev.path, O_RDWR | O_DIRECT | O_CLOEXEC);

	w->error = EBADF;
	if (fd < 0 || posix_memalign((void **)&buf, 4096, CHUNK))
		return NULL;
	for (i = 0; i < CHUNK; i++)
		buf[i] = pattern(at + i) + w->round;
	w->error = pwrite(fd, buf, CHUNK, at) == (ssize_t)CHUNK ? 0 : EIO;
	memset(buf, 0, CHUNK);
	if (!w->error && pread(fd, buf, CHUNK, at) != (ssize_t)CHUNK)
		w->error = EIO;
	for (i = 0; !w->error && i < CHUNK; i++)
		if (buf[i] != (unsigned char)(pattern(at + i) + w->round))
			w->error = EBADMSG;
	close(fd);
	free(buf);
	return NULL;
}

static int write_and_read_all(struct peer_session *s)
{
	struct writer writers[WRITERS];
	pthread_t thread[WRITERS];
	int i, round, error = 0;

	for (round = 0; round < scaled_down(ROUNDS) && !error; round++) {
		for (i = 0; i < WRITERS; i++) {
			writers[i] = (struct writer) { .s = s, .n = i, .round = round };
			if (pthread_create(&thread[i], NULL, write_and_read, &writers[i]))
				return 254;
		}
		for (i = 0; i < WRITERS; i++) {
			pthread_join(thread[i], NULL);
			error = error ?: writers[i].error;
		}
	}
	return error;
}

/*
 * A socket that encrypts takes references to the pages that it is to send, and gives them back:
 * a page that had none would go to the next task that needs memory, and the next reply would find
 * the request in it overwritten.
 */
TEST_F_TIMEOUT(tls, every_byte_arrives, 300)
{
	struct peer_session *s = &self->s;

	EXPECT_EQ(0, other_wait(other_run(s, write_and_read_all), 100000));
	EXPECT_EQ(1, s->sh->client_stage);
	EXPECT_EQ(0, s->sh->eof[0]);
}

/*
 * A graceful disconnect, while the server takes its time: what the driver has given to the socket,
 * or was about to, the server is to get. If it reads on within a second, it gets every request,
 * whole, and the message that is the last.
 */
static void slow_disconnect(struct __test_metadata *_metadata, struct peer_session *s)
{
	struct peer_shared *sh = s->sh;
	long long left = AWAY_MS, start;
	pid_t pid;

	/*
	 * It does not see anything now, neither what comes, nor that nothing more will: if it saw
	 * that, it would close, and what it has not read yet would be lost for that reason.
	 */
	sh->kind[0] = PEER_AWAY;
	pid = other_ioctl(s, NBD_DISCONNECT);
	/* A third of its second: there is nothing to wait for. */
	poll_while(NULL, 0, &left);
	EXPECT_FALSE(exited(pid)) TH_LOG("it has not waited");
	start = now_ms();
	sh->kind[0] = PEER_GOOD;
	EXPECT_TRUE(WAIT_UNTIL(sh->eof[0], BOUNDED)) TH_LOG("the server sees no end");
	EXPECT_EQ(1, sh->disc[0])
		TH_LOG("the stream is cut, %lld ms after it has come back", now_ms() - start);
	EXPECT_EQ(0, other_wait(pid, BOUNDED));
	EXPECT_TRUE(WAIT_UNTIL(sh->client_stage == 2, SOON));
	EXPECT_EQ(0, sh->client_errno);
}

static bool turn_deaf(struct peer_session *s)
{
	/* The first opener reads the partition table. */
	if (other_wait(other_run(s, read_block), BOUNDED))
		return false;
	s->sh->kind[0] = PEER_DEAF;
	return WAIT_UNTIL(s->sh->deaf[0], BOUNDED);
}

/* One write, by a process of its own. */
static pid_t start_write(struct peer_session *s, int n, size_t len)
{
	pid_t pid = fork_quiet();
	unsigned char *buf;
	int fd;

	if (pid)
		return pid;
	fd = open(s->dev.path, O_RDWR | O_DIRECT | O_CLOEXEC);
	if (fd < 0 || posix_memalign((void **)&buf, 4096, len))
		_exit(255);
	memset(buf, 'w', len);
	_exit(pwrite(fd, buf, len, n * len) == (ssize_t)len ? 0 : errno);
}

/* All of these writes have ended well, and are where they should be. */
static void expect_written(struct __test_metadata *_metadata, struct peer_session *s, pid_t *pid,
			   int n, size_t len)
{
	size_t i;

	for (i = 0; i < (size_t)n; i++)
		EXPECT_EQ(0, other_wait(pid[i], SOON)) TH_LOG("write %zu", i);
	for (i = 0; i < n * len && s->sh->data[i] == 'w'; i++)
		;
	EXPECT_EQ(n * len, i) TH_LOG("a part of what was written is not there");
}

static void some_writes(struct __test_metadata *_metadata, struct peer_session *s, int n,
			size_t len)
{
	pid_t pid[8];
	int i;

	ASSERT_TRUE(turn_deaf(s));
	for (i = 0; i < n; i++)
		pid[i] = start_write(s, i, len);
	ASSERT_TRUE(WAIT_UNTIL(in_flight(s) == n && s->sh->unread[0] && deaf_and_full(s), BOUNDED));
	slow_disconnect(_metadata, s);
	expect_written(_metadata, s, pid, n, len);
}

TEST_F(tls, disconnect_with_one_record)
{
	if (TOO_SLOW)
		SKIP(return, "the server's second is too short on a slow kernel");
	some_writes(_metadata, &self->s, 1, 4096);
}

TEST_F(tls, disconnect_with_some_records)
{
	if (TOO_SLOW)
		SKIP(return, "the server's second is too short on a slow kernel");
	some_writes(_metadata, &self->s, 1, 65536);
}

TEST_F(tls, disconnect_with_many_records)
{
	if (TOO_SLOW)
		SKIP(return, "the server's second is too short on a slow kernel");
	some_writes(_metadata, &self->s, 1, 256 << 10);
}

TEST_F(tls, disconnect_with_requests)
{
	if (TOO_SLOW)
		SKIP(return, "the server's second is too short on a slow kernel");
	some_writes(_metadata, &self->s, 8, 32 << 10);
}

/* Nothing is in flight: the message is all there is, and a server that never reads gets none. */
TEST_F(tls, disconnect_while_idle)
{
	struct peer_session *s = &self->s;

	ASSERT_EQ(0, other_wait(other_run(s, read_block), BOUNDED));
	EXPECT_EQ(0, other_wait(other_ioctl(s, NBD_DISCONNECT), END_MS));
	EXPECT_TRUE(WAIT_UNTIL(s->sh->eof[0], SOON));
	EXPECT_EQ(1, s->sh->disc[0]);
	EXPECT_TRUE(WAIT_UNTIL(s->sh->client_stage == 2, SOON));
	EXPECT_EQ(0, s->sh->client_errno);
}

/* One that never reads is waited for no longer than others. */
TEST_F(tls, disconnect_of_a_deaf_server)
{
	struct peer_session *s = &self->s;

	s->kind = PEER_DEAF;
	ASSERT_EQ(0, holder_start(s));
	EXPECT_EQ(0, other_wait(other_ioctl(s, NBD_DISCONNECT), END_MS));
	holder_expect(_metadata, s, EIO);
	EXPECT_TRUE(WAIT_UNTIL(s->sh->client_stage == 2, SOON));
}

/* Sockets with less room than a record needs, so that TLS can pass on a part of it only. */
FIXTURE(narrow)
{
	struct peer_session s;
};

FIXTURE_SETUP(narrow)
{
	const char *why = tls_start(&self->s, 4096);

	if (why) {
		ASSERT_NE(0, *why) TH_LOG("%s", strerror(errno));
		SKIP(return, "%s", why);
	}
}

FIXTURE_TEARDOWN(narrow)
{
	if (self->s.fd[0] > 0)
		close(self->s.fd[0]);
	EXPECT_TRUE(peer_cleanup(&self->s));
}

/* The bytes that TLS has passed on: the server has them, or they wait for room there. */
static long passed_on(struct peer_session *s)
{
	int unsent = 0;

	if (ioctl(s->fd[0], SIOCOUTQNSD, &unsent))
		return -1;
	return s->sh->unread[0] + unsent;
}

/*
 * What was sent, for the driver, and is not on its way yet: TLS keeps the last record, which does
 * not fit into the socket, until there is room. An end of the stream that comes before that is in
 * the middle of a record, or of a request.
 */
TEST_F(narrow, disconnect_with_a_record_that_is_held_back)
{
	struct peer_session *s = &self->s;
	pid_t pid[RECORD_WRITES];
	long before, passed = RECORD_WIRE;
	int n;

	if (TOO_SLOW)
		SKIP(return, "the server's second is too short on a slow kernel");
	ASSERT_TRUE(turn_deaf(s));
	for (n = 0; n < RECORD_WRITES && passed >= RECORD_WIRE; n++) {
		before = passed_on(s);
		ASSERT_LE(0, before);
		pid[n] = start_write(s, n, RECORD_LEN);
		WAIT_UNTIL(passed_on(s) - before >= RECORD_WIRE, 300);
		passed = passed_on(s) - before;
	}
	ASSERT_GT(RECORD_WIRE, passed) TH_LOG("the socket takes all of %d writes", n);
	printf("# of write %d TLS has passed on %ld of %ld bytes\n", n, passed, RECORD_WIRE);
	ASSERT_TRUE(WAIT_UNTIL(in_flight(s) == n, SOON));
	slow_disconnect(_metadata, s);
	expect_written(_metadata, s, pid, n, RECORD_LEN);
}

TEST_HARNESS_MAIN
