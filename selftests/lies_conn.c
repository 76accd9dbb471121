// SPDX-License-Identifier: GPL-2.0
/*
 * The connections of a server that lies: what it sends and receives, and whether the driver may
 * close them.
 */
#include <stddef.h>

#include "lies.h"

unsigned int pick(struct liar *l, unsigned int n)
{
	return fuzz_pick(&l->rng, n);
}

/* A fixed function of the offset, never like a header of the protocol. */
void lies_fill(unsigned char *image, size_t size)
{
	uint64_t *word = (uint64_t *)image;
	size_t i;

	for (i = 0; i < size / 8; i++)
		word[i] = (i * 0x9e3779b97f4a7c15ULL) | 0x8080808080808080ULL;
}

struct slot *slot_of(struct liar *l, uint64_t from)
{
	return from < SLOT_BASE || from >= LIES_SIZE ? NULL :
						       &l->slot[(from - SLOT_BASE) / SLOT_SIZE];
}

void all_may_fail(struct liar *l)
{
	int i;

	for (i = 0; i < SLOTS; i++)
		l->slot[i].error_ok = true;
}

/* Sending; false if the driver has closed the connection */

bool put(struct liar *l, struct conn *c, const void *buf, size_t len)
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

bool put_header(struct liar *l, struct conn *c, uint32_t magic, uint64_t cookie, uint32_t error)
{
	struct nbd_reply r = { .magic = htobe32(magic), .error = htobe32(error), .cookie = cookie };

	return put(l, c, &r, sizeof(r));
}

bool put_reply(struct liar *l, struct conn *c, uint64_t cookie, uint32_t error)
{
	return put_header(l, c, NBD_REPLY_MAGIC, cookie, error);
}

size_t payload(const struct held *h)
{
	return h->type == NBD_CMD_READ ? h->len : 0;
}

/* The truth. */
bool put_answer(struct liar *l, struct conn *c, const struct held *h)
{
	c->done[c->ndone++ % ARRAY_SIZE(c->done)] = h->cookie;
	return put_reply(l, c, h->cookie, 0) && put(l, c, l->image + h->from, payload(h));
}

void conn_forget(struct conn *c, struct held *h)
{
	*h = c->held[--c->nheld];
}

void conn_close(struct liar *l, struct conn *c)
{
	int i;

	for (i = 0; i < c->nheld; i++)
		l->old[l->nold++ % OLD] = c->held[i];
	close(c->fd);
	c->state = CONN_NONE;
}

/* Connections that the driver has no reason to close. */
static int conns_good(struct liar *l)
{
	int i, n = 0;

	for (i = 0; i < CONNS; i++)
		n += l->conn[i].state == CONN_OPEN && !l->conn[i].excused;
	return n;
}

int conns_in(struct liar *l, enum conn_state state)
{
	int i, n = 0;

	for (i = 0; i < CONNS; i++)
		n += l->conn[i].state == state;
	return n;
}

/* A new pair: returns the driver's end, which the caller closes, or -1. */
int conn_new(struct liar *l)
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
	/* The driver's callback needs what the map has of a socket. */
	if (l->plan.work && l->sockmap >= 0 && sockmap_add(l->sockmap, i, pair[0])) {
		fuzz_fail("no place in the sockmap: %s", strerror(errno));
		return -1;
	}
	if (l->plan.sndbuf)
		setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &l->plan.sndbuf,
			   sizeof(l->plan.sndbuf));
	setsockopt(pair[1], SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	return pair[0];
}

/* Lies */

bool lies_strict(struct liar *l)
{
	return !l->may_fail && !l->ending && !l->plan.timeout &&
	       (l->plan.ioctl || l->plan.dead) && now_ms() > l->lenient;
}

/* After a lie, in what state is the connection? */
void lie_told(struct liar *l, struct conn *c, const struct lie *lie, enum outcome what)
{
	if (what == NOT_NOW || c->state != CONN_OPEN)
		return;
	c->told = lie->name;
	l->last = lie->name;
	l->told++;
	l->lies++;
	l->drained += c->replaced;
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

/*
 * Before a lie is told, the driver gets another link in the place of this one, or of another: the
 * lie comes while it waits for what it has sent, and the next one to the new link.
 */
void lies_replace(struct liar *l, struct conn *c)
{
	int ret;

	if (!l->plan.replace || l->ending || conns_in(l, CONN_OPEN) > l->plan.conns ||
	    !conns_in(l, CONN_NONE) || pick(l, 2))
		return;
	ret = lies_place(l, pick(l, l->plan.conns));
	if (!ret) {
		l->replaced++;
		c->replaced = l->plan.conns == 1;
	} else if (ret != -EBUSY) {
		/* Links that earlier lies were told to may still have requests. */
		fuzz_fail("replacing: %s, after the lie %s", strerror(-ret), l->last);
	}
}

/* Receiving */

bool lies_wants(struct liar *l, struct conn *c)
{
	if (l->plan.at_disconnect && !c->disc)
		return false;
	return l->told < l->plan.lies;
}

static void conn_request(struct liar *l, struct conn *c)
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
bool conn_read(struct liar *l, struct conn *c)
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
void conn_ended(struct liar *l, struct conn *c)
{
	bool right = c->state == CONN_DOOMED || c->excused || c->disc || !c->served || l->ending ||
		     l->plan.timeout || l->over;

	if (!right && c->state == CONN_OPEN)
		fuzz_fail("a connection was closed for no reason; last lie of all: %s, of it: %s",
			  l->last, c->told ?: "none");
	conn_close(l, c);
}

void conn_serve(struct liar *l, struct conn *c, bool idle)
{
	if (l->plan.at_disconnect && l->ending && !c->disc)
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
		lies_replace(l, c);
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
