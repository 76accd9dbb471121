/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A session with servers that misbehave: the client (the task in NBD_DO_IT), the servers, and a
 * holder with I/O in flight are processes of their own, so that whatever hangs, hangs there, and
 * the test can say so in bounded time. What they find they leave in shared memory.
 */
#ifndef NBD_PEER_H
#define NBD_PEER_H

#include <linux/tls.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdatomic.h>

#include "nbd_test.h"

#define PEER_SIZE	(16UL << 20)
#define PEER_MAX	4
#define HOLDER_THREADS	8
#define HOLDER_CHUNK	(256UL << 10)
#define HOLDER_END_MS	2000

enum peer_kind {
	PEER_GOOD,		/* answers everything at once */
	PEER_HELD,		/* answers everything, but not before it is told to */
	PEER_LATE,		/* the same, and with other data once the connection has ended */
	PEER_PATIENT,		/* the same, after it was told to disconnect, too; never closes */
	PEER_SHUFFLE,		/* answers a batch of requests in random order */
	PEER_DEAF,		/* reads nothing */
	PEER_AWAY,		/* the same, and does not notice the connection's end, either */
	PEER_MUTE,		/* reads everything, answers nothing */
	PEER_HALF_HEADER,	/* half a reply header, then nothing */
	PEER_HALF_PAYLOAD,	/* a header and half of the payload, then nothing */
	PEER_CLOSE_HEADER,	/* half a reply header, then close */
	PEER_CLOSE_PAYLOAD,	/* a header and half of the payload, then close */
	PEER_BAD_MAGIC,		/* a reply with the wrong magic */
	PEER_BAD_COOKIE,	/* a reply to a request that was never sent */
	PEER_TWICE,		/* two replies to one request, then nothing */
	/*
	 * These say to one request that they shut down, if "go" is 1. What is left they answer, if
	 * it is 2, and keep their end open until they see the driver's.
	 */
	PEER_LEAVES,		/* well; refuses what comes then */
	PEER_LEAVES_EIO,	/* with EIO */
	PEER_LEAVES_ALL,	/* all with the same words, as nbdkit does */
	PEER_LEAVES_MUTE,	/* not at all */
	PEER_LEAVES_HALF,	/* one of the reads with half of its payload */
	PEER_LEAVES_DEAF,	/* not at all, and reads nothing more */
	PEER_LEAVES_CLOSE,	/* closes at once */
	PEER_LEAVES_COOKIE,	/* says so to a request that was never sent */
};

enum client_stop {
	CLIENT_WAIT,
	CLIENT_CLEAR,		/* CLEAR_SOCK, for a driver that left requests behind, and exit */
	CLIENT_EXIT,		/* exit only */
	CLIENT_CLOSE,		/* close the device and wait to be told to exit */
	CLIENT_AGAIN,		/* another session, with a server that does nothing */
};

/*
 * What the processes of one session tell each other. Times are in milliseconds of the monotonic
 * clock.
 */
struct peer_shared {
	_Atomic int kind[PEER_MAX];	/* enum peer_kind; may change while it runs */
	_Atomic int deaf[PEER_MAX];	/* it has stopped reading */
	_Atomic int go[PEER_MAX];	/* the peer may answer, or misbehave */
	_Atomic int close[PEER_MAX];	/* the peer is to close its socket */
	_Atomic int requests[PEER_MAX];	/* whole requests that it has read */
	_Atomic int held[PEER_MAX];	/* of those, not answered yet */
	_Atomic int held_reads[PEER_MAX];	/* and of those, reads */
	_Atomic int unread[PEER_MAX];	/* bytes in its socket, and since when */
	_Atomic long long unread_since[PEER_MAX];
	_Atomic int acted[PEER_MAX];	/* it has misbehaved */
	_Atomic int eof[PEER_MAX];	/* it saw the connection's end */
	_Atomic int disc[PEER_MAX];	/* and before that, so many NBD_CMD_DISC */
	_Atomic int left[PEER_MAX];	/* after that the stream has ended, as it must */
	_Atomic int refused[PEER_MAX];	/* requests that were told that it shuts down */
	_Atomic long long refused_at[PEER_MAX];	/* the first of them, and when DISC came */
	_Atomic long long disc_at[PEER_MAX];

	_Atomic int client_stage;	/* 1: set up, in DO_IT; 2: DO_IT has returned */
	_Atomic int client_errno;	/* of the setup or of DO_IT */
	_Atomic int client_stop;	/* what to do after DO_IT, enum client_stop */

	_Atomic int holder_open;
	_Atomic int io_go;		/* the holder may begin */
	_Atomic int write_go;		/* its writers may */
	_Atomic int loop;		/* the holder first does this much verified I/O a thread */
	_Atomic int looped, loop_errors;
	_Atomic int io_started;
	_Atomic int io_done;
	_Atomic int io_errno[HOLDER_THREADS];	/* 0: success, -1: short, -2: wrong data */
	_Atomic int late_done;
	_Atomic int late_bytes;		/* bytes that an I/O after the end has moved */
	_Atomic int holder_stop;

	_Atomic uint32_t error;		/* good peers answer with it, if not 0 */
	_Atomic int slow_ms;		/* what 64 KiB of payload take a peer */
	unsigned char data[PEER_SIZE];	/* of larger devices all that is equal modulo this */
};

struct peer_session {
	struct peer_shared *sh;
	struct nbd_dev dev;
	int npeers;
	enum peer_kind kind;		/* once the holder has opened the device */
	bool tcp;
	unsigned int timeout;		/* NBD_SET_TIMEOUT, 0: not called */
	int lowat;			/* SO_RCVLOWAT of the client's sockets, 0: not set */
	bool hasty;			/* its sockets have timeouts, of nothing */
	bool keep;			/* the test has them open, too */
	bool tls;			/* the kernel encrypts what goes over TCP */
	int sa_flags;			/* of the handler that the client has for SIGTERM */
	bool no_handler;		/* it has none */
	int room;			/* in the buffers of the sockets, 0: 64 KiB */
	unsigned long blksize, blocks;	/* 0: PEER_SIZE in blocks of 4096 */
	unsigned long flags;		/* NBD_FLAG_* besides flush and FUA */
	int fd[PEER_MAX];		/* the client's ends */
	int victim;			/* a connection to which a request was sent whole */
	pid_t peer[PEER_MAX], client, holder;
};

/* The peers */

struct peer_request {
	uint32_t type, len;
	uint64_t cookie, from;		/* the cookie as it came; the offset in the data */
};

struct peer_state {
	struct peer_shared *sh;
	int n, fd;
	struct peer_request held[1024];
	int nheld;
};

static bool read_full(int fd, void *buf, size_t len)
{
	while (len) {
		ssize_t n = read(fd, buf, len);

		if (n <= 0)
			return false;
		buf += n;
		len -= n;
	}
	return true;
}

static bool write_full(int fd, const void *buf, size_t len)
{
	while (len) {
		ssize_t n = send(fd, buf, len, MSG_NOSIGNAL);

		if (n <= 0)
			return false;
		buf += n;
		len -= n;
	}
	return true;
}

/* Move the data of a request, in pieces if the peer is slow. */
static bool peer_data(struct peer_state *p, struct peer_request *r, bool in)
{
	unsigned char *data = p->sh->data + r->from;
	size_t left = r->len, n;

	for (; left; left -= n, data += n) {
		n = p->sh->slow_ms && left > 65536 ? 65536 : left;
		if (p->sh->slow_ms)
			usleep(p->sh->slow_ms * 1000);
		if (in ? !read_full(p->fd, data, n) : !write_full(p->fd, data, n))
			return false;
	}
	return true;
}

static bool peer_reply(struct peer_state *p, struct peer_request *r)
{
	struct nbd_reply reply = { .magic = htobe32(NBD_REPLY_MAGIC), .cookie = r->cookie };

	reply.error = htobe32(p->sh->error);
	return write_full(p->fd, &reply, sizeof(reply)) &&
	       (reply.error || r->type != NBD_CMD_READ || peer_data(p, r, false));
}

/* Read one request and, at once, the payload of a write; false at the end of the connection. */
static bool peer_read(struct peer_state *p)
{
	struct peer_request *r = &p->held[p->nheld];
	struct nbd_request h;

	if (!read_full(p->fd, &h, sizeof(h)) || be32toh(h.magic) != NBD_REQUEST_MAGIC)
		return false;
	r->type = be32toh(h.type);
	r->len = be32toh(h.len);
	r->from = be64toh(h.from) % PEER_SIZE;
	r->cookie = h.cookie;
	if ((r->type & 0xffff) == NBD_CMD_DISC) {
		p->sh->disc_at[p->n] = now_ms();
		p->sh->disc[p->n]++;
		return false;
	}
	if ((r->type & 0xffff) < NBD_CMD_DISC && r->len > PEER_SIZE - r->from)
		return false;
	if ((r->type & 0xffff) == NBD_CMD_WRITE && !peer_data(p, r, true))
		return false;
	p->nheld++;
	p->sh->requests[p->n]++;
	p->sh->held_reads[p->n] += r->type == NBD_CMD_READ;
	p->sh->held[p->n] = p->nheld;
	return true;
}

static bool peer_flush(struct peer_state *p)
{
	bool ok = true;

	while (ok && p->nheld) {
		if (p->sh->kind[p->n] == PEER_SHUFFLE) {
			int i = random() % p->nheld;
			struct peer_request r = p->held[i];

			p->held[i] = p->held[p->nheld - 1];
			p->held[p->nheld - 1] = r;
		}
		ok = peer_reply(p, &p->held[--p->nheld]);
		p->sh->held_reads[p->n] -= p->held[p->nheld].type == NBD_CMD_READ;
		p->sh->held[p->n] = p->nheld;
	}
	return ok;
}

/*
 * The driver has given the connection up. Once it is told to, answer what is left, with other data,
 * so that it can be seen if anybody takes it.
 */
static void peer_answer_late(struct peer_state *p)
{
	int i;

	while (!p->sh->go[p->n] && !p->sh->close[p->n])
		usleep(2000);
	for (i = 0; i < p->nheld; i++)
		p->held[i].from ^= HOLDER_CHUNK;
	peer_flush(p);
	p->sh->acted[p->n] = 1;
}

/* Answer a request with an error. What is refused is not written, either. */
static void peer_refuse(struct peer_state *p, int i, uint32_t error)
{
	struct nbd_reply reply = { .magic = htobe32(NBD_REPLY_MAGIC), .error = htobe32(error) };
	struct peer_request r = p->held[i];

	reply.cookie = r.cookie;
	if (p->sh->kind[p->n] == PEER_LEAVES_COOKIE)
		reply.cookie ^= htobe64(0x5a5a5a5a00000000ULL);
	else
		p->held[i] = p->held[--p->nheld];
	if (error == ESHUTDOWN && r.type == NBD_CMD_WRITE)
		memset(p->sh->data + r.from, 0xee, r.len);
	p->sh->held_reads[p->n] -= r.type == NBD_CMD_READ;
	p->sh->held[p->n] = p->nheld;
	if (error == ESHUTDOWN) {
		if (!p->sh->refused_at[p->n])
			p->sh->refused_at[p->n] = now_ms();
		p->sh->refused[p->n]++;
	}
	write_full(p->fd, &reply, sizeof(reply));
}

/* It has read nothing yet, and reads a single request, to have one that it can refuse. */
static void peer_refuse_deaf(struct peer_state *p)
{
	struct nbd_request h;

	if (p->sh->acted[p->n] || !read_full(p->fd, &h, sizeof(h)))
		return;
	p->held[p->nheld++] = (struct peer_request) { .cookie = h.cookie };
	peer_refuse(p, 0, ESHUTDOWN);
	p->sh->acted[p->n] = 1;
}

/* Half of an answer to a read. */
static void peer_half(struct peer_state *p)
{
	struct nbd_reply reply = { .magic = htobe32(NBD_REPLY_MAGIC) };
	int i;

	for (i = 0; i < p->nheld && p->held[i].type != NBD_CMD_READ; i++)
		;
	if (i == p->nheld)
		return;
	reply.cookie = p->held[i].cookie;
	write_full(p->fd, &reply, sizeof(reply));
	write_full(p->fd, p->sh->data + p->held[i].from, p->held[i].len / 2);
}

/* The server goes away; false: it has. */
static bool peer_leave(struct peer_state *p, int go)
{
	enum peer_kind kind = p->sh->kind[p->n];
	int i, acted = p->sh->acted[p->n];
	bool ok = true;

	if (!acted && p->nheld) {
		/* What will never be answered has not been written. */
		for (i = 0; kind != PEER_LEAVES && i < p->nheld; i++)
			if (p->held[i].type == NBD_CMD_WRITE)
				memset(p->sh->data + p->held[i].from, 0xee, p->held[i].len);
		peer_refuse(p, 0, ESHUTDOWN);
		p->sh->acted[p->n] = 1;
		acted = 1;
	}
	if (!acted || kind == PEER_LEAVES_CLOSE)
		return !acted;
	if (go < 2 && kind != PEER_LEAVES_ALL)
		return true;
	if (acted == 1) {
		if (kind == PEER_LEAVES)
			ok = peer_flush(p);
		else if (kind == PEER_LEAVES_EIO)
			while (p->nheld)
				peer_refuse(p, 0, EIO);
		else if (kind == PEER_LEAVES_HALF)
			peer_half(p);
		p->sh->acted[p->n] = 2;
	}
	while (p->nheld && kind <= PEER_LEAVES_ALL)
		peer_refuse(p, 0, ESHUTDOWN);
	return ok;
}

/* It was told to disconnect. The stream has to end then, with nothing else in it. */
static void peer_goodbye(struct peer_state *p)
{
	char c;

	p->sh->left[p->n] = recv(p->fd, &c, 1, 0) > 0 ? -1 : 1;
}

/* It was told to disconnect, and takes its time for that. */
static void peer_stay(struct peer_state *p)
{
	while (!p->sh->go[p->n] && !p->sh->close[p->n])
		usleep(2000);
	peer_flush(p);
	p->sh->acted[p->n] = 1;
	while (!p->sh->close[p->n])
		usleep(2000);
}

/* Do to one request what this kind of peer does; false: close. */
static bool peer_misbehave(struct peer_state *p)
{
	struct nbd_reply reply = { .magic = htobe32(NBD_REPLY_MAGIC) };
	struct peer_request *r = &p->held[0];
	enum peer_kind kind = p->sh->kind[p->n];
	int i;

	for (i = 0; i < p->nheld; i++)
		if (p->held[i].type == NBD_CMD_READ)
			r = &p->held[i];
	reply.cookie = r->cookie;
	switch (kind) {
	case PEER_HALF_HEADER:
	case PEER_CLOSE_HEADER:
		write_full(p->fd, &reply, sizeof(reply) / 2);
		return kind == PEER_HALF_HEADER;
	case PEER_HALF_PAYLOAD:
	case PEER_CLOSE_PAYLOAD:
		write_full(p->fd, &reply, sizeof(reply));
		write_full(p->fd, p->sh->data + r->from, r->len / 2);
		return kind == PEER_HALF_PAYLOAD;
	case PEER_BAD_MAGIC:
		reply.magic = htobe32(0x12560953);
		break;
	case PEER_BAD_COOKIE:
		reply.cookie ^= htobe64(0x5a5a5a5a00000000ULL);
		break;
	case PEER_TWICE:
		write_full(p->fd, &reply, sizeof(reply));
		write_full(p->fd, p->sh->data + r->from, r->type == NBD_CMD_READ ? r->len : 0);
		break;
	default:
		return true;
	}
	write_full(p->fd, &reply, sizeof(reply));
	return true;
}

static void peer_main(struct peer_shared *sh, int n, int fd)
{
	static struct peer_state state;
	struct peer_state *p = &state;
	struct pollfd pfd = { .fd = fd };
	bool more = true;

	*p = (struct peer_state) { .sh = sh, .n = n, .fd = fd };
	srandom(n + 1);
	while (more && !sh->close[n]) {
		bool away = sh->kind[n] == PEER_AWAY;
		bool deaf = away || sh->kind[n] == PEER_DEAF || sh->kind[n] == PEER_LEAVES_DEAF;
		int unread = 0, go;
		enum peer_kind kind;

		sh->deaf[n] = deaf;
		pfd.events = away ? 0 : POLLRDHUP | (deaf ? 0 : POLLIN);
		if (poll(&pfd, 1, 2) < 0)
			break;
		if (!ioctl(fd, FIONREAD, &unread) && unread != sh->unread[n]) {
			sh->unread_since[n] = now_ms();
			sh->unread[n] = unread;
		}
		if (deaf) {
			if (sh->go[n] && sh->kind[n] == PEER_LEAVES_DEAF)
				peer_refuse_deaf(p);
			more = sh->kind[n] == PEER_AWAY ||
			       !(pfd.revents & (POLLRDHUP | POLLHUP | POLLERR));
			if (!more)
				sh->eof[n] = 1;
			continue;
		}
		if (pfd.revents & (POLLIN | POLLRDHUP | POLLHUP | POLLERR)) {
			more = peer_read(p);
			if (!more) {
				if (sh->kind[n] >= PEER_LEAVES && sh->disc[n])
					peer_goodbye(p);
				sh->eof[n] = 1;
				if (sh->kind[n] == PEER_LATE)
					peer_answer_late(p);
				if (sh->kind[n] == PEER_PATIENT && sh->disc[n])
					peer_stay(p);
				break;
			}
		}
		/* In this order: whoever lets it go has said before as what. */
		go = sh->go[n];
		kind = sh->kind[n];
		switch (kind) {
		case PEER_GOOD:
			more = peer_flush(p);
			break;
		case PEER_HELD:
		case PEER_LATE:
		case PEER_PATIENT:
			if (go)
				more = peer_flush(p);
			break;
		case PEER_SHUFFLE:
			/*
			 * Answer when nothing more comes, or when enough has come to be shuffled.
			 */
			if (!(pfd.revents & POLLIN) || p->nheld >= 64)
				more = peer_flush(p);
			break;
		case PEER_LEAVES:
		case PEER_LEAVES_EIO:
		case PEER_LEAVES_ALL:
		case PEER_LEAVES_MUTE:
		case PEER_LEAVES_HALF:
		case PEER_LEAVES_CLOSE:
		case PEER_LEAVES_COOKIE:
			if (go)
				more = peer_leave(p, go);
			break;
		default:
			if (go && !sh->acted[n] && p->nheld) {
				more = peer_misbehave(p);
				sh->acted[n] = 1;
			}
			break;
		}
		/* Whoever never answers still takes in all that comes. */
		if (p->nheld == 1024)
			p->nheld = 1;
	}
	close(fd);
	_exit(0);
}

/* The client */

static void client_signal(int sig __maybe_unused)
{
}

static void client_main(struct peer_session *s)
{
	struct sigaction sa = { .sa_handler = client_signal, .sa_flags = s->sa_flags };
	unsigned long flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA;
	struct peer_shared *sh = s->sh;
	sigset_t blocked;
	int fd, i;

	if (!s->no_handler)
		sigaction(SIGTERM, &sa, NULL);
	sigaction(SIGINT, &sa, NULL);
	/* One that is ignored, and one that is blocked. */
	signal(SIGUSR1, SIG_IGN);
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGUSR2);
	sigprocmask(SIG_BLOCK, &blocked, NULL);
	if (s->npeers > 1)
		flags |= NBD_FLAG_CAN_MULTI_CONN;
	fd = open(s->dev.path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		goto failed;
	for (i = 0; i < s->npeers; i++)
		if (ioctl(fd, NBD_SET_SOCK, s->fd[i]))
			goto failed;
	flags |= s->flags;
	if (ioctl(fd, NBD_SET_BLKSIZE, s->blksize ?: 4096) ||
	    ioctl(fd, NBD_SET_SIZE_BLOCKS, s->blocks ?: PEER_SIZE / 4096) ||
	    ioctl(fd, NBD_SET_FLAGS, flags) ||
	    (s->timeout && ioctl(fd, NBD_SET_TIMEOUT, (unsigned long)s->timeout)))
		goto failed;
	sh->client_stage = 1;
	sh->client_errno = ioctl(fd, NBD_DO_IT) ? errno : 0;
	sh->client_stage = 2;
	while (!sh->client_stop)
		usleep(2000);
	if (sh->client_stop == CLIENT_CLOSE)
		close(fd);
	while (sh->client_stop == CLIENT_CLOSE)
		usleep(2000);
	if (sh->client_stop == CLIENT_AGAIN && !make_pair(KIND_UNIX, s->fd) &&
	    !ioctl(fd, NBD_SET_SOCK, s->fd[0]))
		ioctl(fd, NBD_DO_IT);
	if (sh->client_stop == CLIENT_CLEAR)
		ioctl(fd, NBD_CLEAR_SOCK);
	_exit(0);
failed:
	sh->client_errno = errno;
	sh->client_stage = 2;
	_exit(1);
}

/*
 * The holder: each thread does one I/O that must be finished by the session's end, and one after
 * it.
 */

static inline unsigned char pattern(size_t i)
{
	return (i >> 12) * 31 + i;
}

struct holder_thread {
	struct peer_shared *sh;
	int fd, n;
};

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

static void holder_main(struct peer_session *s)
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

/* The test's side */

static inline int sum(_Atomic int *n)
{
	return n[0] + n[1] + n[2] + n[3];
}

static inline int in_flight(struct peer_session *s)
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

/* Prepare a session with npeers servers that become of one kind. */
static inline int peer_prepare(struct peer_session *s, int npeers, enum peer_kind kind)
{
	/* The pattern's: byte by byte all of it would take its time. */
	size_t period = 1 << 20, i;

	s->npeers = npeers;
	s->kind = kind;
	s->sh = shared_memory(sizeof(*s->sh));
	if (!s->sh)
		return -1;
	for (i = 0; i < period; i++)
		s->sh->data[i] = pattern(i);
	for (i = period; i < PEER_SIZE; i += period)
		memcpy(s->sh->data + i, s->sh->data, period);
	return 0;
}

static inline const char *peer_init(struct peer_session *s, int npeers, enum peer_kind kind)
{
	const char *why;

	memset(s, 0, sizeof(*s));
	why = nbd_pick(&s->dev);
	if (why)
		return why;
	return peer_prepare(s, npeers, kind) ? "no memory" : NULL;
}

/* TLS without a handshake: both ends know the key. */
static inline int peer_tls(int fd)
{
	struct tls12_crypto_info_aes_gcm_128 key = {
		.info = {
			.version = TLS_1_3_VERSION,
			.cipher_type = TLS_CIPHER_AES_GCM_128,
		},
		.key = "selftest of nbd",
	};

	if (setsockopt(fd, IPPROTO_TCP, TCP_ULP, "tls", sizeof("tls")) ||
	    setsockopt(fd, SOL_TLS, TLS_TX, &key, sizeof(key)) ||
	    setsockopt(fd, SOL_TLS, TLS_RX, &key, sizeof(key)))
		return -1;
	return 0;
}

/* A connection with buffers that a few requests fill: [0] is for the driver. */
static inline int peer_pair(struct peer_session *s, int pair[2])
{
	int size = s->room ?: 65536, one = 1;

	if (make_pair(s->tcp ? KIND_TCP : KIND_UNIX, pair))
		return -1;
	setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
	setsockopt(pair[1], SOL_SOCKET, SO_RCVBUF, &size, sizeof(size));
	if (s->tcp)
		setsockopt(pair[1], IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	if (s->tls && (peer_tls(pair[0]) || peer_tls(pair[1])))
		return -1;
	return 0;
}

/* Have a socket of the client not wait for anything. */
static inline void peer_hasty(struct peer_session *s, int i)
{
	struct timeval never = { .tv_sec = -1 };

	setsockopt(s->fd[i], SOL_SOCKET, SO_RCVTIMEO, &never, sizeof(never));
	setsockopt(s->fd[i], SOL_SOCKET, SO_SNDTIMEO, &never, sizeof(never));
}

/* Start the servers and the client, and wait until the device is there. */
static inline int peer_start(struct peer_session *s)
{
	int pair[PEER_MAX][2];
	int i, j;

	for (i = 0; i < s->npeers; i++) {
		if (peer_pair(s, pair[i]))
			return -1;
		s->fd[i] = pair[i][0];
		if (s->lowat)
			setsockopt(pair[i][0], SOL_SOCKET, SO_RCVLOWAT, &s->lowat, sizeof(int));
		if (s->hasty)
			peer_hasty(s, i);
	}
	for (i = 0; i < s->npeers; i++) {
		s->peer[i] = fork_quiet();
		if (!s->peer[i]) {
			for (j = 0; j < s->npeers; j++) {
				close(pair[j][0]);
				if (j != i)
					close(pair[j][1]);
			}
			peer_main(s->sh, i, pair[i][1]);
		}
	}
	for (i = 0; i < s->npeers; i++)
		close(pair[i][1]);
	s->client = fork_quiet();
	if (!s->client)
		client_main(s);
	for (i = 0; i < s->npeers && !s->keep; i++)
		close(s->fd[i]);
	if (!WAIT_UNTIL(s->sh->client_stage == 2 || nbd_running(&s->dev), BOUNDED))
		errno = ETIMEDOUT;
	else if (s->sh->client_stage == 2)
		errno = s->sh->client_errno;
	else
		return 0;
	return -1;
}

/*
 * Let a holder open the device. The servers are good until it has, because the first opener reads
 * the partition table. Then they become what they are to be, and the I/O begins.
 */
static inline int holder_begin(struct peer_session *s)
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
static inline bool deaf_and_full(struct peer_session *s)
{
	int i;

	for (i = 0; i < s->npeers; i++)
		if (s->sh->unread[i] && now_ms() - s->sh->unread_since[i] < scaled(100))
			return false;
	return true;
}

/* The same, and wait until its I/O is as far as it can get with this kind of server. */
static inline int holder_start(struct peer_session *s)
{
	struct peer_shared *sh = s->sh;
	bool deaf = s->kind == PEER_DEAF;
	_Atomic int *got = deaf ? sh->unread : sh->held;
	bool ok;

	if (holder_begin(s))
		return -1;
	/*
	 * Whoever reads nothing first gets the reads, which are sent whole, and then writes,
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

/* Open the device in another process and do one ioctl there, as nbd-client -d does. */
static inline pid_t other_ioctl(struct peer_session *s, unsigned long cmd)
{
	pid_t pid = fork_quiet();

	if (!pid) {
		int fd = open(s->dev.path, O_RDWR);

		_exit(fd < 0 || ioctl(fd, cmd, 0) ? 1 : 0);
	}
	return pid;
}

/* Let another process do this; its result becomes its exit status. */
static inline pid_t other_run(struct peer_session *s, int (*fn)(struct peer_session *s))
{
	pid_t pid = fork_quiet();

	if (!pid)
		_exit(fn(s));
	return pid;
}

/*
 * The exit status, or -1 if it is killed or does not come in time (the process is left behind).
 */
static inline int other_wait(pid_t pid, int ms)
{
	int status;

	if (!WAIT_UNTIL(exited(pid), ms) || waitpid(pid, &status, 0) != pid || !WIFEXITED(status))
		return -1;
	return WEXITSTATUS(status);
}

/* Read a block and compare it. */
static inline int read_block(struct peer_session *s)
{
	unsigned char buf[4096];
	int fd = open(s->dev.path, O_RDONLY);

	return fd < 0 || pread(fd, buf, 4096, 8192) != 4096 ||
	       memcmp(buf, s->sh->data + 8192, 4096);
}

/* End all processes of the session; false if one does not end. */
static inline bool peer_end(struct peer_session *s)
{
	pid_t all[PEER_MAX + 2];
	bool ok = true;
	int i, n = 0;

	if (!s->sh)
		return true;
	s->sh->holder_stop = 1;
	s->sh->client_stop = CLIENT_CLEAR;
	for (i = 0; i < s->npeers; i++) {
		s->sh->close[i] = 1;
		all[n++] = s->peer[i];
	}
	all[n++] = s->client;
	all[n++] = s->holder;
	for (i = 0; i < n; i++) {
		if (all[i] <= 0)
			continue;
		/* The client is given the chance to clear what is left. */
		if (i < s->npeers || !WAIT_UNTIL(exited(all[i]), 500))
			kill(all[i], SIGKILL);
		ok = reap(all[i], 2000) && ok;
	}
	munmap(s->sh, sizeof(*s->sh));
	s->sh = NULL;
	return ok;
}

static inline bool peer_cleanup(struct peer_session *s)
{
	bool ok = peer_end(s);

	return nbd_give_back(&s->dev) && ok;
}

/*
 * The same device again, with a server that works: connect, read, disconnect. NULL or what is
 * wrong.
 */
static inline const char *peer_works_again(struct peer_session *s)
{
	const char *wrong = NULL;

	if (!peer_end(s))
		return "the old session's processes do not end";
	if (peer_prepare(s, 1, PEER_GOOD))
		return "no memory";
	s->holder = 0;
	s->timeout = 0;
	s->flags = 0;
	if (peer_start(s))
		return strerror(errno);
	if (other_wait(other_run(s, read_block), 2000))
		wrong = "reading";
	else if (other_wait(other_ioctl(s, NBD_DISCONNECT), 2000))
		wrong = "DISCONNECT";
	else if (!WAIT_UNTIL(s->sh->client_stage == 2, 2000))
		wrong = "DO_IT does not return";
	return wrong;
}

#ifdef TH_LOG

/* Every request of the holder's has ended like this. */
static inline void holder_expect(struct __test_metadata *_metadata, struct peer_session *s,
				 int error)
{
	struct peer_shared *sh = s->sh;
	int i, j;

	ASSERT_TRUE(WAIT_UNTIL(sh->io_done == HOLDER_THREADS, HOLDER_END_MS))
		TH_LOG("%d of %d requests are finished", sh->io_done, HOLDER_THREADS);
	for (i = 0; i < HOLDER_THREADS; i++) {
		EXPECT_EQ(error, sh->io_errno[i]);
		for (j = 0; !error && i % 2 == 0 && j < (int)HOLDER_CHUNK; j++)
			if (sh->data[i * HOLDER_CHUNK + j] != 'a' + i)
				break;
		if (!error && i % 2 == 0)
			EXPECT_EQ((int)HOLDER_CHUNK, j) TH_LOG("what was written is not there");
	}
	EXPECT_TRUE(WAIT_UNTIL(sh->late_done == HOLDER_THREADS, HOLDER_END_MS));
	EXPECT_EQ(error ? 0 : HOLDER_THREADS * 4096, sh->late_bytes);
}

#endif /* TH_LOG */

#endif /* NBD_PEER_H */
