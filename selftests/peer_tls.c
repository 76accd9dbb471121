// SPDX-License-Identifier: GPL-2.0
/*
 * Connections that the kernel encrypts: what is sent goes out in records, which the socket may keep
 * for a while, with the pages of requests in them.
 */
#include "kselftest_harness.h"
#include "nbd_peer.h"

#define CHUNK		(1UL << 20)
#define WRITERS		6
#define ROUNDS		10
#define END_MS		2000

FIXTURE(tls)
{
	struct peer_session s;
};

FIXTURE_VARIANT(tls)
{
	int room;		/* in the sockets' buffers, 0: the usual */
};

/* A record has up to 16 KiB. */
FIXTURE_VARIANT_ADD(tls, usual_room) { };

FIXTURE_SETUP(tls)
{
	const char *why = peer_init(&self->s, 1, PEER_GOOD);

	if (why)
		SKIP(return, "%s", why);
	self->s.tcp = true;
	self->s.tls = true;
	self->s.room = variant->room;
	if (peer_start(&self->s)) {
		ASSERT_EQ(ENOENT, errno) TH_LOG("%s", strerror(errno));
		SKIP(return, "this kernel has no TLS");
	}
}

FIXTURE_TEARDOWN(tls)
{
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
 * a page that had none would go to whoever needs memory next, and the next reply would find the
 * request in it overwritten.
 */
TEST_F_TIMEOUT(tls, every_byte_arrives, 300)
{
	struct peer_session *s = &self->s;

	EXPECT_EQ(0, other_wait(other_run(s, write_and_read_all), 100000));
	EXPECT_EQ(1, s->sh->client_stage);
	EXPECT_EQ(0, s->sh->eof[0]);
}

/*
 * A graceful disconnect, while the server takes its time: what is sent so far, or is still in a
 * record, the driver has said to the socket, and the server is to hear it. If it reads on within
 * a second, it gets every request, whole, and the message that is the last.
 */
static void slow_disconnect(struct __test_metadata *_metadata, struct peer_session *s, pid_t io)
{
	struct peer_shared *sh = s->sh;
	long long left = scaled(300);
	pid_t pid = other_ioctl(s, NBD_DISCONNECT);

	/* The server does nothing for a third of its second: there is nothing to wait for. */
	poll_while(NULL, 0, &left);
	EXPECT_FALSE(sh->eof[0]);
	EXPECT_FALSE(exited(pid)) TH_LOG("it has not waited");
	sh->kind[0] = PEER_GOOD;
	if (io > 0)
		EXPECT_EQ(0, other_wait(io, BOUNDED)) TH_LOG("a write fails");
	EXPECT_EQ(0, other_wait(pid, BOUNDED));
	EXPECT_TRUE(WAIT_UNTIL(sh->eof[0], SOON)) TH_LOG("the server sees no end");
	EXPECT_EQ(1, sh->disc[0]) TH_LOG("the stream is cut");
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

static int write_some(struct peer_session *s, size_t len)
{
	unsigned char *buf;
	int fd = open(s->dev.path, O_RDWR | O_DIRECT | O_CLOEXEC);

	if (fd < 0 || posix_memalign((void **)&buf, 4096, len))
		return 255;
	memset(buf, 'w', len);
	return pwrite(fd, buf, len, 0) == (ssize_t)len ? 0 : errno;
}

/* One request fits into the buffers, for the most part, and is counted as sent. */
static int write_little(struct peer_session *s)
{
	return write_some(s, 16384);
}

static int write_more(struct peer_session *s)
{
	return write_some(s, 65536);
}

static int write_much(struct peer_session *s)
{
	return write_some(s, 256 << 10);
}

static void one_request(struct __test_metadata *_metadata, struct peer_session *s,
			int (*write)(struct peer_session *s), size_t len)
{
	pid_t io;
	size_t i;

	ASSERT_TRUE(turn_deaf(s));
	io = other_run(s, write);
	ASSERT_TRUE(WAIT_UNTIL(s->sh->unread[0] && deaf_and_full(s), BOUNDED));
	slow_disconnect(_metadata, s, io);
	for (i = 0; i < len && s->sh->data[i] == 'w'; i++)
		;
	EXPECT_EQ(len, i) TH_LOG("a part of what was written is not there");
}

TEST_F(tls, disconnect_with_one_record)
{
	one_request(_metadata, &self->s, write_little, 16384);
}

TEST_F(tls, disconnect_with_some_records)
{
	one_request(_metadata, &self->s, write_more, 65536);
}

TEST_F(tls, disconnect_with_many_records)
{
	one_request(_metadata, &self->s, write_much, 256 << 10);
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

TEST_HARNESS_MAIN
