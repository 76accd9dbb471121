// SPDX-License-Identifier: GPL-2.0
/*
 * The holder: each of its threads does one I/O that must be finished by the end of the session,
 * and one after it.
 */
#include <pthread.h>

#include "nbd_peer.h"

struct holder_thread {
	struct peer_shared *sh;
	int fd, n;
};

unsigned char pattern(size_t i)
{
	return (i >> 12) * 31 + i;
}

/* Write a random part of the thread's second half of the device, read it back and compare. */
static void holder_round(struct holder_thread *t, unsigned char *buf, int round)
{
	unsigned int seed = t->n * 1000 + round;
	size_t len = (rand_r(&seed) % 16 + 1) * 4096, i;
	off_t off = PEER_SIZE / 2 + t->n * HOLDER_CHUNK + (rand_r(&seed) % 48) * 4096;
	bool ok;

	memset(buf, round, len);
	ok = pwrite(t->fd, buf, len, off) == (ssize_t)len;
	memset(buf, round + 1, len);
	ok = ok && pread(t->fd, buf, len, off) == (ssize_t)len;
	for (i = 0; ok && i < len; i++)
		ok = buf[i] == (unsigned char)round;
	if (!ok)
		t->sh->loop_errors++;
	t->sh->looped++;
}

static void *holder_io(void *arg)
{
	struct holder_thread *t = arg;
	struct peer_shared *sh = t->sh;
	off_t off = t->n * HOLDER_CHUNK;
	unsigned char *buf;
	ssize_t n;
	int i;

	if (posix_memalign((void **)&buf, 4096, HOLDER_CHUNK))
		_exit(1);
	for (i = 0; i < sh->loop; i++)
		holder_round(t, buf, i);
	memset(buf, 'a' + t->n, HOLDER_CHUNK);
	while (t->n % 2 == 0 && !sh->write_go && !sh->holder_stop)
		usleep(1000);
	sh->io_started++;
	if (t->n % 2)
		n = pread(t->fd, buf, HOLDER_CHUNK, off);
	else
		n = pwrite(t->fd, buf, HOLDER_CHUNK, off);
	sh->io_errno[t->n] = n < 0 ? errno : n == HOLDER_CHUNK ? 0 : -1;
	for (i = 0; t->n % 2 && n > 0 && i < n; i++)
		if (buf[i] != pattern(off + i))
			sh->io_errno[t->n] = -2;
	sh->io_done++;

	while (sh->io_done < HOLDER_THREADS && !sh->holder_stop)
		usleep(1000);
	n = pread(t->fd, buf, 4096, off);
	if (n > 0)
		sh->late_bytes += n;
	sh->late_done++;
	return NULL;
}

void holder_main(struct peer_session *s)
{
	struct holder_thread t[HOLDER_THREADS];
	pthread_t id[HOLDER_THREADS];
	int i, fd;

	fd = open(s->dev.path, O_RDWR | O_DIRECT | O_CLOEXEC);
	if (fd < 0)
		_exit(1);
	s->sh->holder_open = 1;
	while (!s->sh->io_go && !s->sh->holder_stop)
		usleep(1000);
	for (i = 0; i < HOLDER_THREADS; i++) {
		t[i] = (struct holder_thread) { .sh = s->sh, .fd = fd, .n = i };
		if (pthread_create(&id[i], NULL, holder_io, &t[i]))
			_exit(1);
	}
	while (!s->sh->holder_stop)
		usleep(2000);
	if (s->sh->io_done < HOLDER_THREADS)
		ioctl(fd, NBD_CLEAR_SOCK);
	_exit(0);
}

int sum(_Atomic int *n)
{
	return n[0] + n[1] + n[2] + n[3];
}

int in_flight(struct peer_session *s)
{
	char path[64];
	int r = 0, w = 0;
	FILE *f;

	snprintf(path, sizeof(path), "/sys/block/nbd%d/inflight", s->dev.index);
	f = fopen(path, "re");
	if (!f)
		return -1;
	if (fscanf(f, "%d %d", &r, &w) != 2)
		r = -1;
	fclose(f);
	return r < 0 ? -1 : r + w;
}

/*
 * Let a holder open the device. The servers are good until it has, because the first opener reads
 * the partition table. Then they become what they are to be, and the I/O begins.
 */
int holder_begin(struct peer_session *s)
{
	int i;

	s->holder = fork_quiet();
	if (!s->holder)
		holder_main(s);
	if (!WAIT_UNTIL(s->sh->holder_open && !in_flight(s), BOUNDED))
		return -1;
	for (i = 0; i < s->npeers; i++)
		s->sh->kind[i] = s->kind;
	if (s->kind == PEER_DEAF && !WAIT_UNTIL(sum(s->sh->deaf) == s->npeers, BOUNDED))
		return -1;
	s->sh->write_go = s->kind != PEER_DEAF;
	s->sh->io_go = 1;
	return 0;
}

/* No server has got more for a while, because no more fits. */
bool deaf_and_full(struct peer_session *s)
{
	int i;

	for (i = 0; i < s->npeers; i++)
		if (s->sh->unread[i] && now_ms() - s->sh->unread_since[i] < scaled(100))
			return false;
	return true;
}

/* The same, and wait until its I/O is as far as it can get with this kind of server. */
int holder_start(struct peer_session *s)
{
	_Atomic int *got = s->kind == PEER_DEAF ? s->sh->unread : s->sh->held;
	bool deaf = s->kind == PEER_DEAF, ok;
	struct peer_shared *sh = s->sh;

	if (holder_begin(s))
		return -1;
	/*
	 * A server that reads nothing first gets the reads, which are sent whole, and then writes,
	 * which stop half way.
	 */
	ok = !deaf || WAIT_UNTIL(sum(got) >= HOLDER_THREADS / 2 * (int)sizeof(struct nbd_request),
				 BOUNDED);
	for (s->victim = 0; deaf && s->victim < s->npeers - 1; s->victim++)
		if (got[s->victim])
			break;
	sh->write_go = 1;
	ok = ok && WAIT_UNTIL(sh->io_started == HOLDER_THREADS && in_flight(s) > 0, BOUNDED);
	if (deaf)
		return ok && WAIT_UNTIL(deaf_and_full(s), BOUNDED) ? 0 : -1;
	ok = ok && WAIT_UNTIL(sum(got) >= HOLDER_THREADS, BOUNDED);
	while (ok && !got[s->victim])
		s->victim++;
	return ok ? 0 : -1;
}
