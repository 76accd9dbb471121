// SPDX-License-Identifier: GPL-2.0
/*
 * What waits in the queue of a server that stands still: when such a server is given up, the
 * writer goes on with its memory, and the server may come to read what it was sent once. It finds
 * what the memory held then, and nothing of what the memory was used for since.
 */
#include <pthread.h>
#include <stdatomic.h>

#include "kselftest_harness.h"
#include "nbd_nlpeer.h"

#define LEN		(256UL << 10)
#define OLD		0xa5
#define NEW		0x5a
#define TIMEOUT		2	/* seconds */

struct writer {
	int fd;
	unsigned char *data;
	pthread_t thread;
	atomic_int done;
	atomic_int error;
};

static void *writer_main(void *arg)
{
	struct writer *w = arg;
	ssize_t n = pwrite(w->fd, w->data, LEN, 0);

	w->error = n == (ssize_t)LEN ? 0 : n < 0 ? errno : EIO;
	w->done = 1;
	return NULL;
}

FIXTURE(queue)
{
	struct nl_session ns;
	struct genl events;
	struct writer w;
	int end;		/* of the server that stands still */
};

FIXTURE_VARIANT(queue)
{
	enum sock_kind kind;
	bool fails;		/* no other server comes, and the write fails */
};

FIXTURE_VARIANT_ADD(queue, replayed) { .kind = KIND_UNIX };
FIXTURE_VARIANT_ADD(queue, replayed_tcp) { .kind = KIND_TCP };
FIXTURE_VARIANT_ADD(queue, failed) { .kind = KIND_UNIX, .fails = true };
FIXTURE_VARIANT_ADD(queue, failed_tcp) { .kind = KIND_TCP, .fails = true };

/* A good server lets the device be opened, and one that stands still takes its place. */
FIXTURE_SETUP(queue)
{
	struct nl_session *ns = &self->ns;
	const char *why = nl_init(ns, 1, PEER_GOOD);
	struct nl_msg m;
	int pair[2];

	self->w.fd = -1;
	self->end = -1;
	if (why)
		SKIP(return, "%s", why);
	ns->s.timeout = scaled(TIMEOUT);
	ns->dead = variant->fails ? 0 : 60;
	ASSERT_EQ(0, genl_listen(&self->events));
	ASSERT_EQ(0, nl_connect(ns)) TH_LOG("%s", ns->answer.text);
	self->w.fd = open(ns->s.dev.path, O_RDWR | O_DIRECT | O_CLOEXEC);
	ASSERT_LE(0, self->w.fd);
	self->w.data = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, self->w.data);
	memset(self->w.data, OLD, LEN);

	ASSERT_TRUE(nl_kill_peer(&ns->s, 0));
	ASSERT_TRUE(WAIT_UNTIL(nl_link_dead(&self->events, ns->s.dev.index, 0), SOON));
	ASSERT_EQ(0, make_pair(variant->kind, pair));
	self->end = pair[1];
	nl_begin(&m, NBD_CMD_RECONFIGURE, ns->s.dev.index);
	nl_socks(&m, pair, 1);
	ASSERT_EQ(0, nl_finish(ns, &m)) TH_LOG("%s", ns->answer.text);
	close(pair[0]);
}

FIXTURE_TEARDOWN(queue)
{
	if (self->end >= 0)
		close(self->end);
	if (self->w.fd >= 0)
		close(self->w.fd);
	EXPECT_TRUE(nl_cleanup(&self->ns));
}

/* Read requests to the end of the stream: how many bytes of writes there were that are not OLD. */
static long drain(int fd, long *writes)
{
	static unsigned char buf[LEN];
	struct nbd_request rq;
	long wrong = 0;
	ssize_t n;

	while (read_full(fd, &rq, sizeof(rq))) {
		size_t left = (ntohl(rq.type) & 0xffff) == NBD_CMD_WRITE ? ntohl(rq.len) : 0;

		*writes += left > 0;
		while (left > 0) {
			n = read(fd, buf, left < LEN ? left : LEN);
			if (n <= 0)
				return wrong;
			left -= n;
			while (n > 0)
				wrong += buf[--n] != OLD;
		}
	}
	return wrong;
}

TEST_F_TIMEOUT(queue, holds_what_was_sent, 120)
{
	struct nl_session *ns = &self->ns;
	struct writer *w = &self->w;
	long writes = 0;

	ASSERT_EQ(0, pthread_create(&w->thread, NULL, writer_main, w));
	ASSERT_TRUE(WAIT_UNTIL(nl_link_dead(&self->events, ns->s.dev.index, 0), 10000));
	if (!variant->fails) {
		EXPECT_EQ(0, w->done);
		ASSERT_EQ(0, nl_reconnect(ns, 0)) TH_LOG("%s", ns->answer.text);
	}
	ASSERT_TRUE(WAIT_UNTIL(w->done, 10000)) TH_LOG("the write does not finish");
	pthread_join(w->thread, NULL);
	EXPECT_EQ(variant->fails ? EIO : 0, w->error);
	memset(w->data, NEW, LEN);
	EXPECT_EQ(0, drain(self->end, &writes)) TH_LOG("bytes that were never in this write");
	EXPECT_EQ(1, writes);
}

TEST_HARNESS_MAIN
