/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A session with a server that lies. One thread is the server of all connections and keeps
 * asynchronous I/O in flight, so that what it does next is decided by the seed; what may block
 * (opening, disconnecting, NBD_DO_IT) is done by others. Every sector's content is a function of
 * its offset, for reads and writes alike: data in the wrong request is seen.
 */
#ifndef NBD_LIES_H
#define NBD_LIES_H

#include <linux/aio_abi.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/eventfd.h>
#include <sys/uio.h>

#include "nbd_fuzz.h"

#define SLOTS		16
#define SLOT_SIZE	(256UL << 10)
#define SLOT_BASE	(1UL << 20)	/* what is before is read by whoever opens the device */
#define LIES_SIZE	(SLOT_BASE + SLOTS * SLOT_SIZE)
#define CONNS		12
#define CONN_MAX	4		/* of one session */
#define HELD		256
#define OLD		64

/* What comes of a lie. */
enum outcome {
	NOT_NOW,	/* it needs something that is not there */
	HARMLESS,	/* the connection stays */
	DOOM,		/* the driver must close the connection at once */
	LEAVE,		/* the same, after a second at most */
	PERHAPS,	/* the driver may close it */
	STALL,		/* nothing more comes, until the server closes it */
	DEAF,		/* the same, and the server reads nothing more */
	CLOSE,		/* the server closes it now */
};

enum ending { END_NETLINK, END_DISCONNECT, END_CLEAR, END_SIGNAL, END_SERVERS, ENDINGS };

struct held {
	uint64_t cookie, from;		/* the cookie as it came */
	uint32_t type, len;
};

enum conn_state { CONN_NONE, CONN_OPEN, CONN_DOOMED, CONN_STALLED };

struct conn {
	int fd;
	enum conn_state state;
	long long until;		/* the driver (doomed) or the server (stalled) closes it */
	const char *told;		/* the last lie */
	bool deaf, excused, served, disc;
	int early;			/* the write being read was answered */
	struct nbd_request h;
	size_t have, left, pos;		/* of the header, of the payload, and where it belongs */
	struct held held[HELD];
	int nheld;
	uint64_t done[8];		/* cookies that were answered */
	int ndone;
};

struct slot {
	struct iocb cb;
	unsigned char *buf;
	bool busy, error_ok, tainted;
	long long since;
};

struct liar;

struct lie {
	const char *name;
	int conns;			/* the least number of connections */

	enum outcome (*tell)(struct liar *l, struct conn *c, struct held *h);
};

/* What a session is like. */
struct lies_plan {
	const char *name;
	bool ioctl, tcp;
	int conns;
	int dead, timeout;		/* in seconds */
	int sndbuf;			/* of the driver's sockets, or 0 */
	bool fine;			/* requests are read header by header */
	const struct lie *only;		/* no other */
	long lies;			/* to be told; then nothing but the truth */
	bool at_goodbye;		/* only once the driver says goodbye */
	bool abrupt;			/* ends as soon as the lies are told */
	enum ending end;
};

struct liar {
	struct lies_plan plan;
	struct nbd_dev *dev;
	struct fuzz_random rng;
	struct genl genl, genl2;
	int log, wake;			/* an event for whatever the server thread waits for */
	unsigned char *image, *junk;
	struct conn conn[CONNS];
	struct held old[OLD];		/* of connections that are gone */
	unsigned int nold;
	struct slot slot[SLOTS];
	aio_context_t aio;
	int io, config;			/* descriptors of the device */
	bool running, ending, may_fail, over;
	bool eio;			/* DO_IT may say so */
	int busy, told;
	long long lenient;		/* until then any I/O may fail */
	long long crowd;		/* since when there are too many open connections */
	long lies, ios, good_ios;
	long long told_at;
	int ios_after;
	const char *last;
	pthread_t do_it;
	atomic_int do_it_ret, open_ret, end_ret;	/* 1: not yet, 0 or -errno */
	atomic_int do_it_tid;
};

static inline unsigned int pick(struct liar *l, unsigned int n)
{
	return fuzz_pick(&l->rng, n);
}

/* A fixed function of the offset, never like a header of the protocol. */
static inline void lies_fill(unsigned char *image, size_t size)
{
	uint64_t *word = (uint64_t *)image;
	size_t i;

	for (i = 0; i < size / 8; i++)
		word[i] = (i * 0x9e3779b97f4a7c15ULL) | 0x8080808080808080ULL;
}

static inline struct slot *slot_of(struct liar *l, uint64_t from)
{
	return from < SLOT_BASE || from >= LIES_SIZE ? NULL :
						       &l->slot[(from - SLOT_BASE) / SLOT_SIZE];
}

static inline void all_may_fail(struct liar *l)
{
	int i;

	for (i = 0; i < SLOTS; i++)
		l->slot[i].error_ok = true;
}

/* Sending; false if the driver has closed the connection */

static inline bool put(struct liar *l, struct conn *c, const void *buf, size_t len)
{
	while (len) {
		ssize_t n = send(c->fd, buf, len, MSG_NOSIGNAL);

		if (n < 0 && errno == EAGAIN)
			fuzz_fail("the driver has not read a reply for 3 s (last lie: %s)",
				  l->last);
		if (n <= 0)
			return false;
		buf += n;
		len -= n;
	}
	return true;
}

static inline bool put_header(struct liar *l, struct conn *c, uint32_t magic, uint64_t cookie,
			      uint32_t error)
{
	struct nbd_reply r = { .magic = htobe32(magic), .error = htobe32(error), .cookie = cookie };

	return put(l, c, &r, sizeof(r));
}

static inline bool put_reply(struct liar *l, struct conn *c, uint64_t cookie, uint32_t error)
{
	return put_header(l, c, NBD_REPLY_MAGIC, cookie, error);
}

static inline size_t payload(const struct held *h)
{
	return h->type == NBD_CMD_READ ? h->len : 0;
}

/* The truth. */
static inline bool put_answer(struct liar *l, struct conn *c, const struct held *h)
{
	c->done[c->ndone++ % ARRAY_SIZE(c->done)] = h->cookie;
	return put_reply(l, c, h->cookie, 0) && put(l, c, l->image + h->from, payload(h));
}

static inline void conn_forget(struct conn *c, struct held *h)
{
	*h = c->held[--c->nheld];
}

static inline void conn_close(struct liar *l, struct conn *c)
{
	int i;

	for (i = 0; i < c->nheld; i++)
		l->old[l->nold++ % OLD] = c->held[i];
	close(c->fd);
	c->state = CONN_NONE;
}

/* Connections that the driver has no reason to close. */
static inline int conns_good(struct liar *l)
{
	int i, n = 0;

	for (i = 0; i < CONNS; i++)
		n += l->conn[i].state == CONN_OPEN && !l->conn[i].excused;
	return n;
}

static inline int conns_in(struct liar *l, enum conn_state state)
{
	int i, n = 0;

	for (i = 0; i < CONNS; i++)
		n += l->conn[i].state == state;
	return n;
}

/* A new pair: returns the driver's end, which the caller closes, or -1. */
static inline int conn_new(struct liar *l)
{
	struct timeval patience = { .tv_sec = scaled(3) };
	struct conn *c;
	int pair[2], i;

	for (i = 0; i < CONNS && l->conn[i].state != CONN_NONE; i++)
		;
	if (i == CONNS)
		return -1;
	if (make_pair(l->plan.tcp ? KIND_TCP : KIND_UNIX, pair)) {
		fuzz_fail("no socket pair: %s", strerror(errno));
		return -1;
	}
	c = &l->conn[i];
	memset(c, 0, offsetof(struct conn, held));
	c->ndone = 0;
	c->nheld = 0;
	c->fd = pair[1];
	c->state = CONN_OPEN;
	if (l->plan.sndbuf)
		setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &l->plan.sndbuf,
			   sizeof(l->plan.sndbuf));
	setsockopt(pair[1], SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	return pair[0];
}

/* Lies */

static inline bool lies_strict(struct liar *l)
{
	return !l->may_fail && !l->ending && !l->plan.timeout &&
	       (l->plan.ioctl || l->plan.dead) && now_ms() > l->lenient;
}

/* After a lie, in what state is the connection? */
static inline void lie_told(struct liar *l, struct conn *c, const struct lie *lie,
			    enum outcome what)
{
	if (what == NOT_NOW || c->state != CONN_OPEN)
		return;
	c->told = lie->name;
	l->last = lie->name;
	l->told++;
	l->lies++;
	l->told_at = now_ms();
	l->ios_after = 0;
	fuzz_doing("served on after the lie %s, the session's %d.", lie->name, l->told);
	switch (what) {
	case DOOM:
	case LEAVE:
		c->state = CONN_DOOMED;
		c->until = now_ms() + scaled(1000) + (what == LEAVE ? 1000 : 0);
		break;
	case PERHAPS:
		c->excused = true;
		break;
	case STALL:
	case DEAF:
		c->deaf = what == DEAF;
		c->until = now_ms() + pick(l, 8);
		c->state = CONN_STALLED;
		/* At times until the driver loses its patience. */
		if (l->plan.timeout && c->nheld && (l->plan.only || !pick(l, 8))) {
			c->state = CONN_DOOMED;
			c->until = now_ms() + scaled(l->plan.timeout * 2000 + 1500);
		}
		break;
	case CLOSE:
		conn_close(l, c);
		break;
	default:
		break;
	}
	if (l->plan.ioctl && !conns_good(l)) {
		l->may_fail = true;
		all_may_fail(l);
	}
}

/* Tells a lie that goes now, if there is one; see fuzz_lies.c. */
static void lies_tell(struct liar *l, struct conn *c);
/* After the header of a write was read. */
static void lies_early(struct liar *l, struct conn *c);

/* Receiving */

static inline bool lies_wants(struct liar *l, struct conn *c)
{
	if (l->plan.at_goodbye && !c->disc)
		return false;
	return l->told < l->plan.lies;
}

static inline void conn_request(struct liar *l, struct conn *c)
{
	uint32_t type = be32toh(c->h.type) & 0xffff, len = be32toh(c->h.len);
	uint64_t from = be64toh(c->h.from);

	struct slot *s = slot_of(l, from);

	c->served = true;
	c->have = 0;
	if (s)
		s->since = now_ms();
	if (be32toh(c->h.magic) != NBD_REQUEST_MAGIC || type > NBD_CMD_FLUSH ||
	    from > LIES_SIZE || len > LIES_SIZE - from || c->nheld == HELD) {
		fuzz_fail("no request: magic %#x type %u from %#llx len %#x; last lie: %s",
			  be32toh(c->h.magic), type, (unsigned long long)from, len, l->last);
		return;
	}
	if (type == NBD_CMD_DISC) {
		c->disc = true;
		return;
	}
	c->held[c->nheld++] = (struct held) { .cookie = c->h.cookie, .from = from, .type = type,
					      .len = len };
	c->early = 0;
	if (type != NBD_CMD_WRITE)
		return;
	c->left = len;
	c->pos = from;
	lies_early(l, c);
}

/* Take in what came; false at the end of the stream. */
static inline bool conn_read(struct liar *l, struct conn *c)
{
	static unsigned char buf[64 << 10];
	unsigned char *p = buf;
	size_t want, k;
	ssize_t n;

	want = !l->plan.fine ? sizeof(buf) : c->left ? c->left : sizeof(c->h) - c->have;
	n = recv(c->fd, buf, want < sizeof(buf) ? want : sizeof(buf), MSG_DONTWAIT);
	if (n < 0 && errno == EAGAIN)
		return true;
	if (n <= 0)
		return false;
	while (n && c->state == CONN_OPEN && !fuzz->failed) {
		if (c->left) {
			k = (size_t)n < c->left ? (size_t)n : c->left;
			if (memcmp(p, l->image + c->pos, k)) {
				fuzz_fail("wrong data were sent at %#zx, after the lie %s", c->pos,
					  l->last);
				return false;
			}
			c->left -= k;
			c->pos += k;
			if (!c->left && c->early == 1)
				c->nheld--;
		} else {
			k = sizeof(c->h) - c->have;
			k = (size_t)n < k ? (size_t)n : k;
			memcpy((char *)&c->h + c->have, p, k);
			c->have += k;
			if (c->have == sizeof(c->h))
				conn_request(l, c);
		}
		p += k;
		n -= k;
	}
	return true;
}

/* The driver has closed it. Was that right? */
static inline void conn_ended(struct liar *l, struct conn *c)
{
	bool right = c->state == CONN_DOOMED || c->excused || c->disc || !c->served || l->ending ||
		     l->plan.timeout || l->over;

	if (!right && c->state == CONN_OPEN)
		fuzz_fail("a connection was closed for no reason; last lie of all: %s, of it: %s",
			  l->last, c->told ?: "none");
	conn_close(l, c);
}

static inline void conn_serve(struct liar *l, struct conn *c, bool idle)
{
	if (l->plan.at_goodbye && l->ending && !c->disc)
		return;
	if (c->disc) {
		/* Obedient, lying or disobedient. */
		if (!l->plan.only && !pick(l, 16)) {
			c->state = CONN_DOOMED;
			c->until = now_ms() + scaled(3000);
		} else if (c->nheld && lies_wants(l, c) && (l->plan.only || pick(l, 2))) {
			lies_tell(l, c);
		}
		if (c->state == CONN_OPEN && !pick(l, 2))
			conn_close(l, c);
		return;
	}
	/* Not in the middle of a request: it may be answered already. */
	if (!c->nheld || c->left || (!idle && pick(l, 3)))
		return;
	if (lies_wants(l, c) && pick(l, 4)) {
		lies_tell(l, c);
		return;
	}
	do {
		struct held *h = &c->held[pick(l, c->nheld)];

		if (!put_answer(l, c, h))
			return;
		conn_forget(c, h);
	} while (c->nheld && pick(l, 4));
}

/* Input and output */

static inline void slot_submit(struct liar *l, int i)
{
	static const size_t sizes[] = { 512, 512, 512, 4096, 4096, 4096, 8192, 16384 };
	struct slot *s = &l->slot[i];
	struct iocb *cb = &s->cb;
	size_t len = pick(l, 32) ? sizes[pick(l, ARRAY_SIZE(sizes))] : 65536UL << pick(l, 3);
	uint64_t off = SLOT_BASE + i * SLOT_SIZE;

	off += pick(l, (SLOT_SIZE - len) / 512 + 1) * 512;
	memset(cb, 0, sizeof(*cb));
	cb->aio_data = i;
	cb->aio_fildes = l->io;
	cb->aio_buf = (uintptr_t)s->buf;
	cb->aio_nbytes = len;
	cb->aio_offset = off;
	cb->aio_flags = IOCB_FLAG_RESFD;
	cb->aio_resfd = l->wake;
	cb->aio_lio_opcode = IOCB_CMD_PREAD;
	if (!pick(l, 3)) {
		cb->aio_lio_opcode = IOCB_CMD_PWRITE;
		memcpy(s->buf, l->image + off, len);
	} else {
		memset(s->buf, 0x55, len);
	}
	s->error_ok = !lies_strict(l);
	s->tainted = false;
	s->since = now_ms();
	fuzz->beat++;
	if (syscall(SYS_io_submit, l->aio, 1L, &cb) != 1) {
		fuzz_fail("io_submit: %s", strerror(errno));
		return;
	}
	s->busy = true;
	l->busy++;
}

static inline void slots_fill(struct liar *l)
{
	int i;

	for (i = 0; !l->open_ret && i < SLOTS && !l->over && !fuzz->failed; i++)
		if (!l->slot[i].busy)
			slot_submit(l, i);
}

static inline void slot_done(struct liar *l, struct slot *s, long ret)
{
	size_t len = s->cb.aio_nbytes, i;
	bool is_read = s->cb.aio_lio_opcode == IOCB_CMD_PREAD;
	unsigned char *want = l->image + s->cb.aio_offset;

	s->busy = false;
	l->busy--;
	l->ios++;
	if (ret == (long)len) {
		l->good_ios++;
		l->ios_after++;
		for (i = 0; is_read && !s->tainted && i < len && s->buf[i] == want[i]; i++)
			;
		if (is_read && !s->tainted && i < len)
			fuzz_fail("wrong data at %#llx + %#zx of %#zx: %02x not %02x; last lie: %s",
				  (unsigned long long)s->cb.aio_offset, i, len, s->buf[i],
				  want[i], l->last);
	} else if (!s->error_ok && lies_strict(l)) {
		fuzz_fail("an I/O at %#llx has ended with %ld, for no reason; last lie: %s",
			  (unsigned long long)s->cb.aio_offset, ret, l->last);
	}
	/* What is sent from a finished write can be told. */
	memset(s->buf, 0xdd, len);
}

static inline void slots_reap(struct liar *l)
{
	struct io_event ev[SLOTS];
	struct timespec none = {};
	int n, i;

	n = syscall(SYS_io_getevents, l->aio, 0L, (long)SLOTS, ev, &none);
	for (i = 0; i < n; i++)
		slot_done(l, &l->slot[ev[i].data], ev[i].res);
}

/* What may block */

static inline void lies_thread(void *(*fn)(void *), struct liar *l, pthread_t *id)
{
	if (pthread_create(id, NULL, fn, l))
		fuzz_fail("no thread");
}

static inline void lies_wake(struct liar *l)
{
	uint64_t one = 1;

	if (write(l->wake, &one, sizeof(one)) < 0)
		fuzz_fail("no eventfd");
}

static inline void *lies_open(void *arg)
{
	struct liar *l = arg;

	l->io = open(l->dev->path, O_RDWR | O_DIRECT | O_CLOEXEC);
	l->open_ret = l->io < 0 ? -errno : 0;
	lies_wake(l);
	return NULL;
}

static inline void *lies_do_it(void *arg)
{
	struct liar *l = arg;

	l->do_it_tid = syscall(SYS_gettid);
	l->do_it_ret = ioctl(l->config, NBD_DO_IT) ? -errno : 0;
	lies_wake(l);
	return NULL;
}

static inline void *lies_end(void *arg)
{
	struct nl_answer answer;
	unsigned long cmd;
	struct liar *l = arg;
	struct nl_msg m;
	int ret;

	switch (l->plan.end) {
	case END_NETLINK:
	case END_SERVERS:
		nl_begin(&m, NBD_CMD_DISCONNECT, l->dev->index);
		ret = fuzz_ask(&l->genl2, &m, &answer);
		break;
	case END_SIGNAL:
		ret = pthread_kill(l->do_it, SIGUSR1);
		break;
	default:
		cmd = l->plan.end == END_CLEAR ? NBD_CLEAR_SOCK : NBD_DISCONNECT;
		ret = ioctl(l->plan.ioctl ? l->config : l->io, cmd, 0) ? -errno : 0;
		break;
	}
	l->end_ret = ret;
	lies_wake(l);
	return NULL;
}

static inline int lies_connected(struct liar *l)
{
	struct nl_answer answer;
	struct nl_msg m;

	nl_begin(&m, NBD_CMD_STATUS, l->dev->index);
	if (fuzz_ask(&l->genl, &m, &answer) || answer.ndevs != 1)
		return -1;
	return answer.dev[0].connected;
}

/* Give the driver n new sockets; how it takes them. */
static inline int lies_sockets(struct liar *l, int cmd, int n)
{
	unsigned long flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH;
	struct nl_answer answer;
	int fd[CONNS], i, ret;
	struct nl_msg m;

	for (i = 0; i < n; i++) {
		fd[i] = conn_new(l);
		if (fd[i] < 0)
			break;
	}
	n = i;
	if (l->plan.conns > 1)
		flags |= NBD_FLAG_CAN_MULTI_CONN;
	fuzz_doing("giving %d sockets, after the lie %s", n, l->last);
	if (l->plan.ioctl) {
		ret = 0;
		for (i = 0; i < n && !ret; i++)
			ret = ioctl(l->config, NBD_SET_SOCK, fd[i]) ? -errno : 0;
		if (ret || ioctl(l->config, NBD_SET_BLKSIZE, 512) ||
		    ioctl(l->config, NBD_SET_SIZE, LIES_SIZE) ||
		    ioctl(l->config, NBD_SET_FLAGS, flags) ||
		    ioctl(l->config, NBD_SET_TIMEOUT, (unsigned long)l->plan.timeout))
			ret = ret ?: -errno;
	} else {
		nl_begin(&m, cmd, l->dev->index);
		if (cmd == NBD_CMD_CONNECT) {
			nl_u64(&m, NBD_ATTR_SIZE_BYTES, LIES_SIZE);
			nl_u64(&m, NBD_ATTR_BLOCK_SIZE_BYTES, 512);
			nl_u64(&m, NBD_ATTR_SERVER_FLAGS, flags);
			nl_u64(&m, NBD_ATTR_TIMEOUT, l->plan.timeout);
			nl_u64(&m, NBD_ATTR_DEAD_CONN_TIMEOUT, l->plan.dead);
		}
		nl_socks(&m, fd, n);
		ret = fuzz_ask(&l->genl, &m, &answer);
	}
	for (i = 0; i < n; i++)
		close(fd[i]);
	return ret;
}

/* The loop */

static inline void lies_reconnect(struct liar *l)
{
	int n = l->plan.conns - conns_in(l, CONN_OPEN), ret;
	bool none = n == l->plan.conns;

	if (none && !l->plan.dead && !l->plan.ioctl)
		all_may_fail(l);
	if (l->plan.ioctl || n <= 0 || (!none && pick(l, 8)))
		return;
	/* Some only, or one too many. */
	if (!pick(l, 4))
		n = 1 + pick(l, n + 1);
	ret = lies_sockets(l, NBD_CMD_RECONFIGURE, n);
	if (ret && !l->ending)
		fuzz_fail("RECONFIGURE: %s, after the lie %s", strerror(-ret), l->last);
}

static inline void lies_deadlines(struct liar *l)
{
	long long now = now_ms();
	int i, serving = 0;

	for (i = 0; i < CONNS; i++) {
		struct conn *c = &l->conn[i];

		serving += c->state == CONN_OPEN && !c->nheld && !c->left;
		if (c->state == CONN_STALLED && now >= c->until) {
			conn_close(l, c);
		} else if (c->state == CONN_DOOMED && now > c->until && !l->ending) {
			/*
			 * The end of a stream comes after all that was sent before, and the
			 * machine may have stood still.
			 */
			if (!fuzz_eof(c->fd, 500))
				fuzz_fail("a connection is still open after the lie %s", c->told);
			conn_close(l, c);
		}
	}
	/* What the driver does not need it closes. */
	if (conns_in(l, CONN_OPEN) <= l->plan.conns)
		l->crowd = now;
	else if (now - l->crowd > scaled(2000))
		fuzz_fail("more sockets are held than there are connections");
	if (!lies_strict(l) || conns_in(l, CONN_STALLED) || conns_in(l, CONN_DOOMED) ||
	    conns_in(l, CONN_OPEN) != serving || !serving)
		return;
	for (i = 0; i < SLOTS; i++)
		if (l->slot[i].busy && now - l->slot[i].since > scaled(4000))
			fuzz_fail("an I/O at %#llx is neither sent nor finished; last lie: %s",
				  (unsigned long long)l->slot[i].cb.aio_offset, l->last);
}

/* One round of everything. */
static inline void lies_round(struct liar *l)
{
	struct pollfd p[CONNS + 1];
	uint64_t events;
	int i, n;

	fuzz->beat++;
	if (!l->ending)
		slots_fill(l);
	for (i = 0; i < CONNS; i++) {
		struct conn *c = &l->conn[i];

		p[i] = (struct pollfd) { .fd = -1 };
		if (c->state == CONN_NONE)
			continue;
		p[i].fd = c->fd;
		p[i].events = POLLRDHUP;
		if (c->state == CONN_OPEN || (c->state == CONN_DOOMED && !c->deaf))
			p[i].events |= POLLIN;
		if (c->state == CONN_OPEN && c->disc)
			p[i].events = 0;
	}
	p[CONNS] = (struct pollfd) { .fd = l->wake, .events = POLLIN };
	n = poll(p, CONNS + 1, 0);
	if (!n)
		n = poll(p, CONNS + 1, 1);
	if (p[CONNS].revents && read(l->wake, &events, sizeof(events)) < 0)
		fuzz_fail("no eventfd");
	slots_reap(l);
	for (i = 0; i < CONNS && !fuzz->failed; i++) {
		struct conn *c = &l->conn[i];
		bool gone = p[i].revents & (POLLHUP | POLLERR);

		if (c->state == CONN_NONE || c->fd != p[i].fd)
			continue;
		if (c->state == CONN_OPEN && p[i].revents & POLLIN) {
			gone = !conn_read(l, c) && !c->disc;
		} else if (c->state == CONN_DOOMED && !gone && p[i].revents & POLLIN) {
			/* What it sends is read and not looked at. */
			static char sink[64 << 10];

			gone = recv(c->fd, sink, sizeof(sink), MSG_DONTWAIT) == 0;
		} else if (p[i].revents & POLLRDHUP) {
			gone = true;
		}
		if (gone && c->state != CONN_NONE)
			conn_ended(l, c);
		else if (c->state == CONN_OPEN)
			conn_serve(l, c, !(p[i].revents & POLLIN));
	}
	if (l->plan.ioctl && l->do_it_ret <= 0)
		l->over = true;
	if (l->running && (!l->ending || !pick(l, 32)))
		lies_reconnect(l);
	lies_deadlines(l);
}

/* Go on as long as this is true, and so long at most; true if it is not true any more. */
#define LIES_LOOP(l, cond, ms) ({						\
	long long __end = now_ms() + scaled(ms);				\
	bool __more;								\
										\
	while ((__more = (cond)) && !fuzz->failed && now_ms() < __end)		\
		lies_round(l);							\
	!__more;								\
})

/* So many lies are told, or none can be told any more. */
static inline bool lies_enough(struct liar *l)
{
	if (l->over)
		return true;
	if (l->plan.at_goodbye)
		return l->good_ios >= 4;
	if (l->told < l->plan.lies)
		return false;
	return l->plan.abrupt || (l->ios_after >= 2 * SLOTS && !conns_in(l, CONN_DOOMED));
}

static inline bool lies_start(struct liar *l)
{
	pthread_t opener;
	int ret;

	l->do_it_ret = 1;
	l->open_ret = 1;
	l->end_ret = 1;
	l->io = -1;
	l->config = -1;
	l->running = false;
	l->ending = false;
	l->over = false;
	l->may_fail = false;
	l->eio = false;
	l->lenient = 0;
	l->told = 0;
	l->ios_after = 0;
	l->good_ios = 0;
	l->last = "(none)";
	l->crowd = now_ms();
	l->told_at = now_ms();
	fuzz_doing("setting up");
	if (l->plan.ioctl) {
		l->config = open(l->dev->path, O_RDWR | O_CLOEXEC);
		if (l->config < 0) {
			fuzz_fail("open: %s", strerror(errno));
			return false;
		}
	}
	ret = lies_sockets(l, NBD_CMD_CONNECT, l->plan.conns);
	if (ret) {
		fuzz_fail("connecting: %s", strerror(-ret));
		return false;
	}
	if (l->plan.ioctl) {
		l->do_it_tid = 0;
		lies_thread(lies_do_it, l, &l->do_it);
		if (!WAIT_UNTIL(nbd_running(l->dev) || l->do_it_ret <= 0, 2000) ||
		    l->do_it_ret <= 0) {
			fuzz_fail("DO_IT: %d", l->do_it_ret);
			return false;
		}
	}
	if (lies_connected(l) != 1)
		fuzz_fail("STATUS is not connected");
	l->running = true;
	lies_thread(lies_open, l, &opener);
	pthread_detach(opener);
	return !fuzz->failed;
}

/* End it, and see that all is as it must be afterwards. */
static inline void lies_finish(struct liar *l)
{
	pthread_t ender;
	bool hold = !l->plan.only && !pick(l, 8);
	long long start;
	int i;

	if (!LIES_LOOP(l, l->open_ret > 0, 4000)) {
		fuzz_fail("opening does not end, after the lie %s", l->last);
		return;
	}
	if (l->open_ret && !l->over)
		fuzz_fail("open: %s", strerror(-l->open_ret));
	if (l->open_ret && (l->plan.end == END_CLEAR || l->plan.end == END_DISCONNECT))
		l->plan.end = END_NETLINK;
	fuzz_doing("ending (%d) after the lie %s", l->plan.end, l->last);
	slots_fill(l);
	l->ending = true;
	all_may_fail(l);
	start = now_ms();
	if (l->plan.end == END_SERVERS) {
		for (i = 0; i < CONNS; i++)
			if (l->conn[i].state != CONN_NONE)
				conn_close(l, &l->conn[i]);
		if (l->plan.ioctl && !LIES_LOOP(l, l->do_it_ret > 0, 2000))
			fuzz_fail("all servers are gone and DO_IT has not returned");
	}
	if (l->plan.ioctl && l->plan.end == END_SERVERS)
		l->plan.end = END_DISCONNECT;
	lies_thread(lies_end, l, &ender);
	if (!LIES_LOOP(l, l->busy, l->plan.only ? 4000 : 5000)) {
		fuzz_fail("%d I/Os are not finished %lld ms after the end (%d) began; last lie: %s",
			  l->busy, now_ms() - start, l->plan.end, l->last);
		return;
	}
	fuzz_doing("closing after the lie %s", l->last);
	if (!hold && l->io >= 0 && (l->plan.end == END_NETLINK || l->plan.end == END_SERVERS)) {
		close(l->io);
		l->io = -1;
		if (LIES_LOOP(l, l->plan.ioctl && l->do_it_ret > 0, 4000) && l->config >= 0) {
			close(l->config);
			l->config = -1;
		}
	}
	if (!LIES_LOOP(l, l->end_ret > 0 || (l->plan.ioctl && l->do_it_ret > 0), 4000)) {
		fuzz_fail("the end (%d) has not returned after %lld ms; last lie: %s", l->plan.end,
			  now_ms() - start, l->last);
		return;
	}
	/* The last close may be under way. */
	if (l->end_ret && !(l->plan.ioctl && l->end_ret == -EBUSY))
		fuzz_fail("the end (%d) is %s", l->plan.end, strerror(-l->end_ret));
	if (l->plan.ioctl && l->do_it_ret && l->do_it_ret != -EINTR &&
	    !(l->eio && l->do_it_ret == -EIO) &&
	    !(l->plan.timeout && l->do_it_ret == -ETIMEDOUT))
		fuzz_fail("DO_IT: %s", strerror(-l->do_it_ret));
	if (l->io >= 0)
		close(l->io);
	if (l->config >= 0)
		close(l->config);
	pthread_join(ender, NULL);
	if (l->plan.ioctl)
		pthread_join(l->do_it, NULL);
	l->running = false;
	for (i = 0; i < CONNS; i++) {
		struct conn *c = &l->conn[i];

		if (c->state == CONN_NONE)
			continue;
		if (!fuzz_eof(c->fd, 1000))
			fuzz_fail("a server does not see the end of its connection (lie: %s)",
				  c->told ?: "none");
		conn_close(l, c);
	}
	if (!WAIT_UNTIL(nbd_idle(l->dev), 2000))
		fuzz_fail("the device is not free after the end (%d)", l->plan.end);
	if (lies_connected(l) != 0)
		fuzz_fail("STATUS is still connected");
	fuzz_log_clean(l->log);
}

/* What the server thinks of its connections. */
static inline void lies_explain(struct liar *l)
{
	static const char * const name[] = { "none", "open", "doomed", "stalled" };
	struct sockaddr_in in;
	int i;

	fuzz_say("session %s: %s, %d connections%s, %d lies", l->plan.name ?: "",
		 l->plan.ioctl ? "ioctl" : "netlink", l->plan.conns, l->plan.tcp ? ", TCP" : "",
		 l->told);
	fuzz_say("dead_conn_timeout %d, timeout %d, sndbuf %d, end %d", l->plan.dead,
		 l->plan.timeout, l->plan.sndbuf, l->plan.end);
	for (i = 0; i < CONNS; i++) {
		struct conn *c = &l->conn[i];
		socklen_t len = sizeof(in);
		int unread = -1;

		if (c->state == CONN_NONE)
			continue;
		in.sin_port = 0;
		getsockname(c->fd, (struct sockaddr *)&in, &len);
		ioctl(c->fd, FIONREAD, &unread);
		fuzz_say("server %d (port %d): %s, told %s, %d held, %zu + %zu due, %d unread%s%s",
			 i, in.sin_family == AF_INET ? ntohs(in.sin_port) : 0, name[c->state],
			 c->told ?: "no lie", c->nheld, c->have, c->left, unread,
			 c->excused ? ", excused" : "", c->deaf ? ", deaf" : "");
		close(c->fd);
	}
}

static inline void lies_session(struct liar *l)
{
	long long patience = l->plan.timeout ? 12000 : 6000;

	if (lies_start(l)) {
		if (!LIES_LOOP(l, !lies_enough(l), patience + l->plan.lies * 20) && l->plan.only)
			fuzz_fail("%d of %ld lies in time, %d I/Os since the last one", l->told,
				  l->plan.lies, l->ios_after);
		if (!fuzz->failed)
			lies_finish(l);
	}
	if (fuzz->failed)
		lies_explain(l);
}

static inline void lies_signal(int sig __maybe_unused)
{
}

static inline bool lies_init(struct liar *l, struct nbd_dev *dev)
{
	struct sigaction sa = { .sa_handler = lies_signal };
	int i;

	memset(l, 0, sizeof(*l));
	l->dev = dev;
	l->last = "(none)";
	sigaction(SIGUSR1, &sa, NULL);
	l->log = log_open();
	l->wake = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	l->image = aligned_alloc(4096, LIES_SIZE);
	l->junk = malloc(SLOT_SIZE);
	if (l->log < 0 || l->wake < 0 || !l->image || !l->junk || genl_open(&l->genl) ||
	    genl_open(&l->genl2) || syscall(SYS_io_setup, SLOTS, &l->aio))
		return false;
	for (i = 0; i < SLOTS; i++) {
		l->slot[i].buf = aligned_alloc(4096, SLOT_SIZE);
		if (!l->slot[i].buf)
			return false;
	}
	lies_fill(l->image, LIES_SIZE);
	/* Never like the magic of a reply either. */
	memset(l->junk, 0xee, SLOT_SIZE);
	return true;
}

#endif /* NBD_LIES_H */
