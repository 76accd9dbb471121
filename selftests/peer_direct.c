// SPDX-License-Identifier: GPL-2.0
/*
 * Replies that are received where they arrive: in the thread of a server that is itself the reader
 * of the device, cut into any pieces, short and long ones in turn; and sockets that others attach
 * something to meanwhile.
 */
#include "kselftest_harness.h"
#include <linux/aio_abi.h>
#include <netinet/tcp.h>
#include <sys/resource.h>

#include "nbd_peer.h"

#define DEPTH		12
#define MOST		(160UL << 10)
#define ROUNDS		100
#define SINGLE		50

/* What the server does, and what it finds. */
struct own {
	_Atomic int go;			/* another process has opened the device */
	_Atomic int rounds;		/* that were right */
	_Atomic int at_once[2];		/* of one request, which ended while its reply was sent */
	_Atomic int line;		/* where something was wrong, and with which error */
	_Atomic int error;
	bool cut;			/* it sends its replies in small pieces */
	int told[2];			/* a pipe: the rounds are over, or something was wrong */
};

static struct own *own;
static unsigned char out[DEPTH * (MOST + sizeof(struct nbd_reply))];
static size_t filled;
static unsigned int seed = 1;

/* The test sleeps meanwhile: it must not take the CPU from the server. */
static void tell(void)
{
	if (write(own->told[1], "", 1) != 1)
		_exit(2);
}

#define CHECK(good) do {						\
	if (!(good)) {							\
		own->error = errno;					\
		own->line = __LINE__;					\
		tell();							\
		_exit(1);						\
	}								\
} while (0)

static unsigned int pick(unsigned int n)
{
	return rand_r(&seed) % n;
}

/* Read a request, and add its reply to those that are to be sent. */
static void take_request(int fd)
{
	static unsigned char data[MOST];
	struct nbd_reply *reply = (void *)(out + filled);
	struct nbd_request h;
	uint32_t len, i;
	uint64_t from;

	CHECK(recv(fd, &h, sizeof(h), MSG_WAITALL) == sizeof(h));
	len = be32toh(h.len);
	from = be64toh(h.from);
	if ((be32toh(h.type) & 0xffff) == NBD_CMD_DISC)
		_exit(0);
	CHECK(len <= MOST && filled + sizeof(*reply) + len <= sizeof(out));
	reply->magic = htobe32(NBD_REPLY_MAGIC);
	reply->error = 0;
	reply->cookie = h.cookie;
	filled += sizeof(*reply);
	if ((be32toh(h.type) & 0xffff) == NBD_CMD_READ)
		for (i = 0; i < len; i++)
			out[filled++] = pattern(from + i);
	if ((be32toh(h.type) & 0xffff) != NBD_CMD_WRITE)
		return;
	CHECK(recv(fd, data, len, MSG_WAITALL) == (ssize_t)len);
	for (i = 0; i < len; i++)
		CHECK(data[i] == pattern(from + i));
}

/* Send the replies in pieces: whole, or some cut small, across headers and payloads. */
static void send_replies(int fd, bool cut)
{
	size_t at = 0, piece;

	while (at < filled) {
		piece = cut ? 1 + pick(pick(4) ? 40 : 40000) : filled;
		if (piece > filled - at)
			piece = filled - at;
		CHECK(send(fd, out + at, piece, MSG_NOSIGNAL) == (ssize_t)piece);
		at += piece;
	}
	filled = 0;
}

static void serve(int fd, int ms)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };

	while (filled < sizeof(out) / 2 && poll(&p, 1, filled ? 0 : ms) == 1)
		take_request(fd);
}

struct io {
	struct iocb cb;
	unsigned char *buf;
	size_t len, off;
};

static void prepare(struct io *io, int dev, size_t len, bool write)
{
	size_t i;

	io->len = len;
	io->off = pick((PEER_SIZE - len) / 4096) * 4096;
	for (i = 0; i < len; i++)
		io->buf[i] = write ? pattern(io->off + i) : 0;
	io->cb = (struct iocb) {
		.aio_lio_opcode = write ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD,
		.aio_fildes = dev,
		.aio_buf = (uintptr_t)io->buf,
		.aio_nbytes = len,
		.aio_offset = io->off,
		.aio_data = (uintptr_t)io,
	};
}

static int finished(aio_context_t ctx)
{
	struct io_event events[DEPTH];
	struct timespec now = {};
	int n = syscall(SYS_io_getevents, ctx, 0, DEPTH, events, &now), i;
	size_t k;

	CHECK(n >= 0);
	for (i = 0; i < n; i++) {
		struct io *io = (struct io *)(uintptr_t)events[i].data;

		CHECK(events[i].res == (long long)io->len);
		for (k = 0; k < io->len; k++)
			CHECK(io->buf[k] == pattern(io->off + k));
	}
	return n;
}

/* How often another task has had the CPU. */
static long switches(void)
{
	struct rusage used;

	CHECK(!getrusage(RUSAGE_THREAD, &used));
	return used.ru_nvcsw + used.ru_nivcsw;
}

/* The server, which has one thread. */
static void own_main(int fd, const char *path, bool cut)
{
	static const size_t lens[] = { 4096, 4096, 8192, 16384, 32768, 36864, 65536, MOST };
	static struct io ios[DEPTH];
	struct iocb *cbs[DEPTH];
	aio_context_t ctx = 0;
	int dev, round, n, i, sent, done;
	long long end;

	while (!own->go) {
		serve(fd, 10);
		send_replies(fd, cut);
	}
	dev = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
	CHECK(dev >= 0 && !syscall(SYS_io_setup, DEPTH, &ctx));
	for (i = 0; i < DEPTH; i++)
		CHECK(!posix_memalign((void **)&ios[i].buf, 4096, MOST));
	for (round = 0; round < scaled_down(ROUNDS) + 2 * SINGLE; round++) {
		bool single = round < 2 * SINGLE, is_long = round >= SINGLE;

		n = single ? 1 : 1 + pick(DEPTH);
		for (i = 0; i < n; i++) {
			prepare(&ios[i], dev, !single ? lens[pick(ARRAY_SIZE(lens))] :
				is_long ? MOST : 4096, !single && pick(3) == 0);
			cbs[i] = &ios[i].cb;
		}
		for (i = 0; i < n; i += sent) {
			sent = syscall(SYS_io_submit, ctx, n - i, cbs + i);
			CHECK(sent > 0);
		}
		end = now_ms() + scaled(BOUNDED);
		for (done = 0; done < n; done += i) {
			long before, after;

			errno = ETIMEDOUT;
			CHECK(now_ms() < end);
			serve(fd, 10);
			before = switches();
			send_replies(fd, cut && !single);
			after = switches();
			i = finished(ctx);
			own->at_once[is_long] += single && i && after == before;
		}
		own->rounds++;
	}
	tell();
	for (;;) {
		serve(fd, 1000);
		send_replies(fd, cut);
	}
}

FIXTURE(own)
{
	struct peer_session s;
};

FIXTURE_VARIANT(own)
{
	bool tcp, cut;
};

FIXTURE_VARIANT_ADD(own, unix_whole) { };
FIXTURE_VARIANT_ADD(own, unix_cut) { .cut = true };
FIXTURE_VARIANT_ADD(own, tcp_whole) { .tcp = true };
FIXTURE_VARIANT_ADD(own, tcp_cut) { .tcp = true, .cut = true };

FIXTURE_SETUP(own)
{
	const char *why = peer_init(&self->s, 1, PEER_GOOD);

	if (why)
		SKIP(return, "%s", why);
	own = shared_memory(sizeof(*own));
	ASSERT_NE(NULL, own);
	ASSERT_EQ(0, pipe(own->told));
	self->s.tcp = variant->tcp;
	/* Room for all that a round sends. */
	self->s.room = 4 << 20;
}

FIXTURE_TEARDOWN(own)
{
	EXPECT_TRUE(peer_cleanup(&self->s));
	close(own->told[0]);
	close(own->told[1]);
}

static void own_peer(struct peer_session *s, int fd)
{
	own_main(fd, s->dev.path, own->cut);
}

TEST_F(own, reads_what_it_serves)
{
	struct peer_session *s = &self->s;
	struct pollfd told = { .fd = own->told[0], .events = POLLIN };

	own->cut = variant->cut;
	s->serve = own_peer;
	ASSERT_EQ(0, peer_start(s)) TH_LOG("%s", strerror(errno));
	/* The partitions are looked for before the server opens the device, or it would wait. */
	ASSERT_EQ(0, other_wait(other_run(s, read_block), BOUNDED));
	own->go = 1;
	EXPECT_EQ(1, poll(&told, 1, scaled(10 * BOUNDED)))
		TH_LOG("%d rounds are over", own->rounds);
	EXPECT_EQ(0, own->line) TH_LOG("line %d: %s", own->line, strerror(own->error));
	/* The thread has finished its own request before it returns from its own send. */
	EXPECT_LT(SINGLE / 2, own->at_once[false]);
	/* So it has with a long reply on a single CPU, where no worker can run meanwhile. */
	if (!variant->tcp && sysconf(_SC_NPROCESSORS_CONF) == 1)
		EXPECT_LT(SINGLE / 2, own->at_once[true]);
	EXPECT_EQ(0, other_wait(other_ioctl(s, NBD_DISCONNECT), BOUNDED));
}

/* Something is attached to a socket that the driver has. */
FIXTURE(later)
{
	struct peer_session s;
};

FIXTURE_VARIANT(later)
{
	bool tcp;
};

FIXTURE_VARIANT_ADD(later, unix) { };
FIXTURE_VARIANT_ADD(later, tcp) { .tcp = true };

FIXTURE_SETUP(later)
{
	const char *why = peer_init(&self->s, 1, PEER_GOOD);

	if (why)
		SKIP(return, "%s", why);
	self->s.tcp = variant->tcp;
	self->s.keep = true;
	self->s.keep_peers = true;
	ASSERT_EQ(0, peer_start(&self->s)) TH_LOG("%s", strerror(errno));
	ASSERT_EQ(0, other_wait(other_run(&self->s, read_block), BOUNDED));
}

FIXTURE_TEARDOWN(later)
{
	if (self->s.fd[0] > 0) {
		close(self->s.fd[0]);
		close(self->s.peer_fd[0]);
	}
	EXPECT_TRUE(peer_cleanup(&self->s));
}

static int read_much(struct peer_session *s)
{
	static unsigned char buf[256 << 10] __aligned(4096);
	int fd = open(s->dev.path, O_RDONLY | O_DIRECT), i;

	for (i = 0; i < 32; i++) {
		size_t len = i % 4 ? 4096 : sizeof(buf), off = (i * 20480UL) % (PEER_SIZE / 2);

		if (fd < 0 || pread(fd, buf, len, off) != (ssize_t)len ||
		    memcmp(buf, s->sh->data + off, len))
			return 1;
	}
	return 0;
}

static void expect_good(struct __test_metadata *_metadata, struct peer_session *s)
{
	EXPECT_EQ(0, other_wait(other_run(s, read_much), 3 * BOUNDED));
}

static void expect_end(struct __test_metadata *_metadata, struct peer_session *s)
{
	shutdown(s->peer_fd[0], SHUT_WR);
	EXPECT_TRUE(WAIT_UNTIL(s->sh->client_stage == 2, BOUNDED));
	EXPECT_EQ(0, s->sh->client_errno);
}

/* It may refuse the socket, but neither then nor otherwise a reply is lost. */
TEST_F(later, sockmap)
{
	struct peer_session *s = &self->s;
	int map = sockmap_new(1), added;

	if (map < 0)
		SKIP(return, "this kernel has no sockmap: %s", strerror(errno));
	added = sockmap_add(map, 0, s->fd[0]);
	EXPECT_TRUE(added == 0 || added == EBUSY) TH_LOG("%s", strerror(added));
	expect_good(_metadata, s);
	expect_end(_metadata, s);
	close(map);
}

/* The socket is in one before the driver has it, which leaves it so. */
TEST_F(later, sockmap_before)
{
	struct peer_session *s = &self->s;
	int map = sockmap_new(1), pair[2];

	if (map < 0)
		SKIP(return, "this kernel has no sockmap: %s", strerror(errno));
	expect_end(_metadata, s);
	ASSERT_TRUE(peer_end(s));
	close(s->fd[0]);
	close(s->peer_fd[0]);
	ASSERT_EQ(0, peer_prepare(s, 1, PEER_GOOD));
	s->holder = 0;
	ASSERT_EQ(0, peer_pair(s, pair));
	ASSERT_EQ(0, sockmap_add(map, 0, pair[0]));
	s->made = pair;
	ASSERT_EQ(0, peer_start(s)) TH_LOG("%s", strerror(errno));
	expect_good(_metadata, s);
	/* It can be taken out and put in again. */
	close(map);
	map = sockmap_new(1);
	expect_good(_metadata, s);
	expect_end(_metadata, s);
	close(map);
}

/* TLS, with its own callback and keys, in the middle of the session. */
TEST_F(later, tls)
{
	struct peer_session *s = &self->s;

	if (!variant->tcp)
		SKIP(return, "there is no TLS on AF_UNIX");
	if (setsockopt(s->fd[0], IPPROTO_TCP, TCP_ULP, "tls", sizeof("tls"))) {
		ASSERT_EQ(ENOENT, errno) TH_LOG("%s", strerror(errno));
		SKIP(return, "this kernel has no TLS");
	}
	/* Without keys it changes nothing but who reads. */
	expect_good(_metadata, s);
	/* Keys that come now would not concern a receive that waits in the socket. */
	ASSERT_TRUE(WAIT_UNTIL(!somebody_in("tcp_recvmsg", "worker_thread"), BOUNDED));
	ASSERT_EQ(0, peer_encrypt(s->peer_fd[0])) TH_LOG("%s", strerror(errno));
	ASSERT_EQ(0, peer_encrypt(s->fd[0])) TH_LOG("%s", strerror(errno));
	expect_good(_metadata, s);
	expect_end(_metadata, s);
}

TEST_HARNESS_MAIN
