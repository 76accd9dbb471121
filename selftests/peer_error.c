// SPDX-License-Identifier: GPL-2.0
/*
 * A server's error reply is the error that the program sees, as far as a block device can tell;
 * it ends neither the connection nor anything else.
 */
#include "kselftest_harness.h"
#include "nbd_peer.h"

#include <linux/fs.h>

FIXTURE(error)
{
	struct peer_session s;
};

FIXTURE_VARIANT(error)
{
	uint32_t sent;			/* in the reply; the protocol's numbers are Linux's */
	int seen;
};

/* No block status stands for EPERM and EOVERFLOW. */
FIXTURE_VARIANT_ADD(error, eperm) { .sent = 1, .seen = EIO };
FIXTURE_VARIANT_ADD(error, eio) { .sent = 5, .seen = EIO };
FIXTURE_VARIANT_ADD(error, enomem) { .sent = 12, .seen = ENOMEM };
FIXTURE_VARIANT_ADD(error, einval) { .sent = 22, .seen = EINVAL };
FIXTURE_VARIANT_ADD(error, enospc) { .sent = 28, .seen = ENOSPC };
FIXTURE_VARIANT_ADD(error, eoverflow) { .sent = 75, .seen = EIO };
FIXTURE_VARIANT_ADD(error, enotsup) { .sent = 95, .seen = EOPNOTSUPP };
FIXTURE_VARIANT_ADD(error, unknown) { .sent = 12345, .seen = EIO };
FIXTURE_VARIANT_ADD(error, negative) { .sent = -28, .seen = EIO };

FIXTURE_SETUP(error)
{
	const char *why = peer_init(&self->s, 1, PEER_GOOD);

	if (why)
		SKIP(return, "%s", why);
	self->s.flags = NBD_FLAG_SEND_TRIM;
	ASSERT_EQ(0, peer_start(&self->s))
		TH_LOG("%s", strerror(errno));
	/* The first opener reads the partition table. */
	ASSERT_EQ(0, other_wait(other_run(&self->s, read_block), BOUNDED));
	self->s.sh->error = variant->sent;
}

FIXTURE_TEARDOWN(error)
{
	EXPECT_TRUE(peer_cleanup(&self->s));
}

static unsigned char buf[65536] __attribute__((aligned(4096)));

/* Each returns the error that it has seen. */
static int read_direct(struct peer_session *s)
{
	int fd = open(s->dev.path, O_RDWR | O_DIRECT);

	return fd < 0 || pread(fd, buf, sizeof(buf), 0) >= 0 ? 255 : errno;
}

static int write_direct(struct peer_session *s)
{
	int fd = open(s->dev.path, O_RDWR | O_DIRECT);

	return fd < 0 || pwrite(fd, buf, sizeof(buf), 0) >= 0 ? 255 : errno;
}

static int discard(struct peer_session *s)
{
	uint64_t range[2] = { 0, 65536 };
	int fd = open(s->dev.path, O_RDWR);

	return fd < 0 || !ioctl(fd, BLKDISCARD, range) ? 255 : errno;
}

static int flush(struct peer_session *s)
{
	int fd = open(s->dev.path, O_RDWR);

	return fd < 0 || !fsync(fd) ? 255 : errno;
}

TEST_F(error, mapped)
{
	struct peer_session *s = &self->s;
	int seen;

	EXPECT_EQ(variant->seen, other_wait(other_run(s, read_direct), BOUNDED))
		TH_LOG("read");
	EXPECT_EQ(variant->seen, other_wait(other_run(s, write_direct), BOUNDED))
		TH_LOG("write");
	/* fsync() would take a flush that is not supported for success. */
	EXPECT_EQ(variant->seen == EOPNOTSUPP ? EIO : variant->seen,
		  other_wait(other_run(s, flush), BOUNDED))
		TH_LOG("flush");
	/* The block layer takes it for success that a discard is not supported. */
	seen = other_wait(other_run(s, discard), BOUNDED);
	if (variant->seen != EOPNOTSUPP || seen != 255)
		EXPECT_EQ(variant->seen, seen)
			TH_LOG("discard");

	s->sh->error = 0;
	EXPECT_EQ(0, other_wait(other_run(s, read_block), BOUNDED));
	EXPECT_EQ(1, s->sh->client_stage);
	EXPECT_EQ(0, s->sh->eof[0]);
}

TEST_HARNESS_MAIN
