// SPDX-License-Identifier: GPL-2.0
/*
 * Devices of every block size and of the smallest and largest sizes: the last block can be read
 * and written, the one after it cannot.
 */
#include "kselftest_harness.h"
#include "nbd_peer.h"

FIXTURE(size)
{
	struct peer_session s;
};

FIXTURE_VARIANT(size)
{
	unsigned long blksize, blocks;
};

FIXTURE_VARIANT_ADD(size, one_block_of_512) { .blksize = 512, .blocks = 1 };
FIXTURE_VARIANT_ADD(size, odd_number_of_512) { .blksize = 512, .blocks = 2049 };
FIXTURE_VARIANT_ADD(size, blocks_of_1024) { .blksize = 1024, .blocks = 1023 };
FIXTURE_VARIANT_ADD(size, blocks_of_2048) { .blksize = 2048, .blocks = 1023 };
FIXTURE_VARIANT_ADD(size, one_block_of_4096) { .blksize = 4096, .blocks = 1 };
FIXTURE_VARIANT_ADD(size, blocks_of_8192) { .blksize = 8192, .blocks = 127 };
FIXTURE_VARIANT_ADD(size, blocks_of_32768) { .blksize = 32768, .blocks = 127 };
FIXTURE_VARIANT_ADD(size, blocks_of_65536) { .blksize = 65536, .blocks = 127 };
FIXTURE_VARIANT_ADD(size, past_2_tib) { .blksize = 512, .blocks = (1UL << 32) + 1 };
FIXTURE_VARIANT_ADD(size, largest_of_512) { .blksize = 512, .blocks = (1UL << 54) - 1 };
FIXTURE_VARIANT_ADD(size, largest_of_4096) { .blksize = 4096, .blocks = (1UL << 51) - 1 };

FIXTURE_SETUP(size)
{
	const char *why = peer_init(&self->s, 1, PEER_GOOD);

	if (why)
		SKIP(return, "%s", why);
	if ((long)variant->blksize > sysconf(_SC_PAGESIZE) &&
	    access("/sys/kernel/mm/transparent_hugepage", F_OK))
		SKIP(return, "without large folios a block is at most a page");
	self->s.blksize = variant->blksize;
	self->s.blocks = variant->blocks;
	ASSERT_EQ(0, peer_start(&self->s))
		TH_LOG("%s", strerror(errno));
}

FIXTURE_TEARDOWN(size)
{
	EXPECT_TRUE(peer_cleanup(&self->s));
}

static int open_direct(struct peer_session *s, unsigned char **buf)
{
	if (posix_memalign((void **)buf, 65536, 2 * s->blksize))
		return -1;
	memset(*buf, 0, 2 * s->blksize);
	return open(s->dev.path, O_RDWR | O_DIRECT);
}

static off_t last_block(struct peer_session *s)
{
	return s->blksize * (s->blocks - 1);
}

static int read_last(struct peer_session *s)
{
	unsigned char *buf;
	int fd = open_direct(s, &buf);

	if (fd < 0 || pread(fd, buf, s->blksize, last_block(s)) != (ssize_t)s->blksize)
		return 1;
	return memcmp(buf, s->sh->data + last_block(s) % PEER_SIZE, s->blksize) ? 2 : 0;
}

static int write_last(struct peer_session *s)
{
	unsigned char *buf;
	int fd = open_direct(s, &buf);

	memset(buf, 0xa5, s->blksize);
	if (fd < 0 || pwrite(fd, buf, s->blksize, last_block(s)) != (ssize_t)s->blksize)
		return 1;
	return memcmp(buf, s->sh->data + last_block(s) % PEER_SIZE, s->blksize) ? 2 : 0;
}

/* One block is read across the end, and none behind it. */
static int read_past(struct peer_session *s)
{
	unsigned char *buf;
	int fd = open_direct(s, &buf);
	off_t end = s->blksize * s->blocks;

	if (fd < 0 || pread(fd, buf, s->blksize, end) > 0)
		return 1;
	/* Across the end of all offsets there is no reading at all. */
	if (end > INT64_MAX - 65536)
		return 0;
	return pread(fd, buf, 2 * s->blksize, last_block(s)) == (ssize_t)s->blksize ? 0 : 2;
}

static int write_past(struct peer_session *s)
{
	unsigned char *buf;
	int fd = open_direct(s, &buf);
	off_t end = s->blksize * s->blocks;

	return fd < 0 || pwrite(fd, buf, s->blksize, end) > 0;
}

/* Less than a block is refused, if there is less. */
static int read_part(struct peer_session *s)
{
	unsigned char *buf;
	int fd = open_direct(s, &buf);

	if (fd < 0)
		return 1;
	if (s->blksize == 512)
		return 0;
	return pread(fd, buf, 512, 0) == -1 && errno == EINVAL ? 0 : 2;
}

static int read_buffered(struct peer_session *s)
{
	unsigned char *buf = malloc(s->blksize);
	int fd = open(s->dev.path, O_RDONLY);

	if (fd < 0 || pread(fd, buf, s->blksize, last_block(s)) != (ssize_t)s->blksize)
		return 1;
	return memcmp(buf, s->sh->data + last_block(s) % PEER_SIZE, s->blksize) ? 2 : 0;
}

TEST_F(size, ends)
{
	struct peer_session *s = &self->s;

	EXPECT_EQ((long long)(variant->blksize * variant->blocks / 512), nbd_sys(&s->dev, "size"));
	EXPECT_EQ((long long)variant->blksize, nbd_sys(&s->dev, "queue/logical_block_size"));
	EXPECT_EQ((long long)variant->blksize, nbd_sys(&s->dev, "queue/physical_block_size"));
	EXPECT_EQ(0, other_wait(other_run(s, read_last), BOUNDED));
	EXPECT_EQ(0, other_wait(other_run(s, write_last), BOUNDED));
	EXPECT_EQ(0, other_wait(other_run(s, read_past), BOUNDED));
	EXPECT_EQ(0, other_wait(other_run(s, write_past), BOUNDED));
	EXPECT_EQ(0, other_wait(other_run(s, read_part), BOUNDED));
	EXPECT_EQ(0, other_wait(other_run(s, read_buffered), BOUNDED));
}

TEST_HARNESS_MAIN
