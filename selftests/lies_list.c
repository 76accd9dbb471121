// SPDX-License-Identifier: GPL-2.0
/*
 * The lies: what a server can tell, and what must come of each.
 */
#include "lies.h"

/* A reply to what was never asked, with some data. */
static bool put_stray(struct liar *l, struct conn *c, uint64_t cookie, size_t len)
{
	return put_reply(l, c, cookie, 0) && put(l, c, l->junk, len);
}

static size_t some_len(struct liar *l)
{
	static const size_t len[] = { 0, 0, 512, 4096 };

	return len[pick(l, ARRAY_SIZE(len))];
}

static enum outcome wrong_magic(struct liar *l, struct conn *c, struct held *h)
{
	static const uint32_t magic[] = {
		0, NBD_REQUEST_MAGIC, 0x98664467, 0x668e33ef, 0x67446699,
	};

	put_header(l, c, magic[pick(l, ARRAY_SIZE(magic))], h->cookie, 0);
	put(l, c, l->image + h->from, payload(h));
	return DOOM;
}

static enum outcome unknown_cookie(struct liar *l, struct conn *c, struct held *h __maybe_unused)
{
	put_stray(l, c, fuzz_next(&l->rng) | 0xffff, some_len(l));
	return DOOM;
}

static enum outcome wrong_attempt(struct liar *l, struct conn *c, struct held *h)
{
	uint64_t cookie = be64toh(h->cookie);

	cookie ^= 1ULL << (32 + pick(l, 32));
	put_stray(l, c, htobe64(cookie), h->len);
	return DOOM;
}

static enum outcome wrong_tag(struct liar *l, struct conn *c, struct held *h)
{
	uint64_t cookie = be64toh(h->cookie);

	cookie ^= 1ULL << pick(l, 32);
	put_stray(l, c, htobe64(cookie), h->len);
	return DOOM;
}

static enum outcome stale_cookie(struct liar *l, struct conn *c, struct held *h __maybe_unused)
{
	int n = c->ndone < (int)ARRAY_SIZE(c->done) ? c->ndone : (int)ARRAY_SIZE(c->done);

	if (!n)
		return NOT_NOW;
	put_stray(l, c, c->done[pick(l, n)], some_len(l));
	return DOOM;
}

/* As it was on a connection that is gone; the request may well be in flight here. */
static enum outcome cookie_before_replay(struct liar *l, struct conn *c,
					 struct held *h __maybe_unused)
{
	unsigned int n = l->nold < OLD ? l->nold : OLD;
	struct held *old;

	if (!n)
		return NOT_NOW;
	old = &l->old[(l->nold - 1 - pick(l, n < 4 ? n : 4)) % OLD];
	put_stray(l, c, old->cookie, payload(old));
	return DOOM;
}

static enum outcome other_connection(struct liar *l, struct conn *c, struct held *h __maybe_unused)
{
	int i, first = pick(l, CONNS);

	for (i = 0; i < CONNS; i++) {
		struct conn *o = &l->conn[(first + i) % CONNS];

		if (o == c || o->state != CONN_OPEN || !o->nheld)
			continue;
		put_stray(l, c, o->held[0].cookie, payload(&o->held[0]));
		return DOOM;
	}
	return NOT_NOW;
}

static enum outcome twice(struct liar *l, struct conn *c, struct held *h)
{
	struct held was = *h;

	put_answer(l, c, h);
	conn_forget(c, h);
	put_stray(l, c, was.cookie, payload(&was));
	return DOOM;
}

static void allow_error(struct liar *l, struct held *h)
{
	struct slot *s = slot_of(l, h->from);

	if (s)
		s->error_ok = true;
}

static enum outcome odd_error(struct liar *l, struct conn *c, struct held *h)
{
	static const uint32_t error[] = {
		1, 2, 4, 5, 11, 12, 22, 28, 75, 95, 107, 109, 110, 512, 4095, 4096, 0x7fffffff,
		0x80000000, 0xfffffffb, 0xffffffff,
	};

	allow_error(l, h);
	put_reply(l, c, h->cookie, error[pick(l, ARRAY_SIZE(error))]);
	conn_forget(c, h);
	return HARMLESS;
}

/*
 * That is no lie. It says so to all that it has, or to some and then no more: in either case the
 * driver leaves, and nothing fails.
 */
static enum outcome shuts_down(struct liar *l, struct conn *c, struct held *h)
{
	bool all = pick(l, 4);

	/* Those that the driver gives a second take up room. */
	if (conns_in(l, CONN_DOOMED) >= CONN_MAX)
		return NOT_NOW;
	put_reply(l, c, h->cookie, ESHUTDOWN);
	conn_forget(c, h);
	while (c->nheld && (all || !pick(l, 4))) {
		put_reply(l, c, c->held[0].cookie, ESHUTDOWN);
		conn_forget(c, &c->held[0]);
	}
	l->eio = true;
	return LEAVE;
}

static enum outcome error_with_data(struct liar *l, struct conn *c, struct held *h)
{
	allow_error(l, h);
	put_reply(l, c, h->cookie, 5);
	put(l, c, l->image + h->from, h->len);
	conn_forget(c, h);
	return DOOM;
}

/* The first read that is held. */
static struct held *a_read(struct conn *c)
{
	int i;

	for (i = 0; i < c->nheld; i++)
		if (payload(&c->held[i]))
			return &c->held[i];
	return NULL;
}

static size_t put_part(struct liar *l, struct conn *c, struct held *h)
{
	size_t part = pick(l, 4) ? pick(l, h->len) : pick(l, h->len / 512) * 512;

	put_reply(l, c, h->cookie, 0);
	put(l, c, l->image + h->from, part);
	return part;
}

static enum outcome short_data_close(struct liar *l, struct conn *c, struct held *h)
{
	h = a_read(c);
	if (!h)
		return NOT_NOW;
	put_part(l, c, h);
	return CLOSE;
}

static enum outcome short_data_stall(struct liar *l, struct conn *c, struct held *h)
{
	h = a_read(c);
	if (!h)
		return NOT_NOW;
	put_part(l, c, h);
	return STALL;
}

static enum outcome short_data_deaf(struct liar *l, struct conn *c, struct held *h)
{
	h = a_read(c);
	if (!h)
		return NOT_NOW;
	put_part(l, c, h);
	return DEAF;
}

/* Another reply where the data should go on. The data are wrong then, but only these. */
static enum outcome reply_within_data(struct liar *l, struct conn *c, struct held *h)
{
	struct slot *s;

	h = a_read(c);
	if (!h)
		return NOT_NOW;
	s = slot_of(l, h->from);
	if (s)
		s->tainted = true;
	put_reply(l, c, h->cookie, 0);
	put(l, c, l->image + h->from, pick(l, h->len - 32));
	put_reply(l, c, c->held[pick(l, c->nheld)].cookie, 0);
	put(l, c, l->junk, h->len);
	put(l, c, l->junk, 64);
	return DOOM;
}

static enum outcome long_data(struct liar *l, struct conn *c, struct held *h)
{
	put_answer(l, c, h);
	put(l, c, l->junk, 16 + pick(l, h->len));
	conn_forget(c, h);
	return DOOM;
}

static enum outcome one_byte_more(struct liar *l, struct conn *c, struct held *h)
{
	put_answer(l, c, h);
	put(l, c, l->junk, 1 + pick(l, 15));
	conn_forget(c, h);
	return STALL;
}

static enum outcome endless_data(struct liar *l, struct conn *c, struct held *h)
{
	int i;

	put_answer(l, c, h);
	conn_forget(c, h);
	for (i = 0; i < 1024 && put(l, c, l->junk, 4096); i++)
		fuzz->beat++;
	if (i == 1024)
		fuzz_fail("the driver has taken 4 MiB of garbage");
	return DOOM;
}

static enum outcome garbage(struct liar *l, struct conn *c, struct held *h __maybe_unused)
{
	unsigned char buf[256];
	size_t i;

	for (i = 0; i < sizeof(buf); i++)
		buf[i] = pick(l, 256);
	buf[0] = 0;
	put(l, c, buf, 16 + pick(l, 240));
	return DOOM;
}

static enum outcome echo(struct liar *l, struct conn *c, struct held *h)
{
	struct nbd_request r = { .magic = htobe32(NBD_REQUEST_MAGIC), .type = htobe32(h->type),
				 .cookie = h->cookie, .from = htobe64(h->from),
				 .len = htobe32(h->len) };

	put(l, c, &r, sizeof(r));
	return DOOM;
}

static enum outcome put_half(struct liar *l, struct conn *c, struct held *h, enum outcome what)
{
	struct nbd_reply r = { .magic = htobe32(NBD_REPLY_MAGIC), .cookie = h->cookie };

	put(l, c, &r, 1 + pick(l, sizeof(r) - 1));
	return what;
}

static enum outcome half_header_close(struct liar *l, struct conn *c, struct held *h)
{
	return put_half(l, c, h, CLOSE);
}

static enum outcome half_header_stall(struct liar *l, struct conn *c, struct held *h)
{
	return put_half(l, c, h, STALL);
}

static enum outcome half_header_deaf(struct liar *l, struct conn *c, struct held *h)
{
	return put_half(l, c, h, DEAF);
}

static enum outcome write_with_data(struct liar *l, struct conn *c, struct held *h __maybe_unused)
{
	int i;

	for (i = 0; i < c->nheld; i++) {
		h = &c->held[i];
		if (h->type != NBD_CMD_WRITE)
			continue;
		put_answer(l, c, h);
		put(l, c, l->image + h->from, h->len);
		conn_forget(c, h);
		return DOOM;
	}
	return NOT_NOW;
}

/*
 * The cookie of a request that has not come yet. If it is there when the driver reads this, it
 * fails: no more.
 */
static enum outcome prediction(struct liar *l, struct conn *c, struct held *h)
{
	uint64_t cookie = be64toh(h->cookie);

	all_may_fail(l);
	l->lenient = now_ms() + scaled(1000);
	cookie += (1ULL + pick(l, 4)) << 32;
	if (pick(l, 2))
		cookie += 1 + pick(l, 4);
	put_reply(l, c, htobe64(cookie), 5);
	return PERHAPS;
}

static enum outcome never_reads(struct liar *l __maybe_unused, struct conn *c __maybe_unused,
				struct held *h __maybe_unused)
{
	return DEAF;
}

static enum outcome never_answers(struct liar *l __maybe_unused, struct conn *c __maybe_unused,
				  struct held *h __maybe_unused)
{
	return STALL;
}

static enum outcome closes(struct liar *l __maybe_unused, struct conn *c __maybe_unused,
			   struct held *h __maybe_unused)
{
	return CLOSE;
}

static enum outcome closes_after_reply(struct liar *l, struct conn *c, struct held *h)
{
	put_answer(l, c, h);
	conn_forget(c, h);
	return CLOSE;
}

/* With TCP, a reset instead of an end. */
static enum outcome resets(struct liar *l, struct conn *c, struct held *h)
{
	struct linger linger = { .l_onoff = 1 };

	if (pick(l, 2) && payload(h))
		put_part(l, c, h);
	setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
	return CLOSE;
}

static enum outcome ends_its_stream(struct liar *l __maybe_unused, struct conn *c,
				    struct held *h __maybe_unused)
{
	shutdown(c->fd, SHUT_WR);
	return DOOM;
}

static enum outcome ends_our_stream(struct liar *l __maybe_unused, struct conn *c,
				    struct held *h __maybe_unused)
{
	shutdown(c->fd, SHUT_RD);
	return DEAF;
}

/* No lie, but not usual: an answer in small pieces. */
static enum outcome dribbles(struct liar *l, struct conn *c, struct held *h)
{
	struct nbd_reply r = { .magic = htobe32(NBD_REPLY_MAGIC), .cookie = h->cookie };
	size_t i, step = 1 + pick(l, 5), n;

	for (i = 0; i < sizeof(r); i += n) {
		n = sizeof(r) - i < step ? sizeof(r) - i : step;
		put(l, c, (char *)&r + i, n);
	}
	for (i = 0; i < payload(h); i += n) {
		n = 1 + pick(l, payload(h));
		n = payload(h) - i < n ? payload(h) - i : n;
		put(l, c, l->image + h->from + i, n);
	}
	conn_forget(c, h);
	return HARMLESS;
}

/* These two are told when the header of a write was read, see lies_early(). */
static enum outcome early_reply(struct liar *l __maybe_unused, struct conn *c __maybe_unused,
				struct held *h __maybe_unused)
{
	return NOT_NOW;
}

static enum outcome early_reply_twice(struct liar *l __maybe_unused,
				      struct conn *c __maybe_unused,
				      struct held *h __maybe_unused)
{
	return NOT_NOW;
}

/* A reply that breaks off at each byte, and a session that goes on each time. */
static enum outcome closes_at(struct liar *l, struct conn *c, struct held *h)
{
	struct nbd_reply r = { .magic = htobe32(NBD_REPLY_MAGIC) };
	size_t at = l->told % (sizeof(r) + 513);

	h = a_read(c);
	if (!h)
		return NOT_NOW;
	r.cookie = h->cookie;
	put(l, c, &r, at < sizeof(r) ? at : sizeof(r));
	if (at > sizeof(r))
		put(l, c, l->image + h->from, at - sizeof(r));
	/* All of the shortest reads. */
	if (at - sizeof(r) == h->len)
		conn_forget(c, h);
	return CLOSE;
}

const struct lie closes_at_each_byte = { .name = "closes_at", .tell = closes_at, .conns = 1 };

#define LIE(f)		{ .name = #f, .tell = f, .conns = 1 }

static const struct lie lies[] = {
	LIE(wrong_magic),
	LIE(unknown_cookie),
	LIE(wrong_attempt),
	LIE(wrong_tag),
	LIE(stale_cookie),
	LIE(cookie_before_replay),
	{ .name = "other_connection", .tell = other_connection, .conns = 2 },
	LIE(twice),
	LIE(odd_error),
	LIE(shuts_down),
	LIE(error_with_data),
	LIE(short_data_close),
	LIE(short_data_stall),
	LIE(short_data_deaf),
	LIE(reply_within_data),
	LIE(long_data),
	LIE(one_byte_more),
	LIE(endless_data),
	LIE(garbage),
	LIE(echo),
	LIE(half_header_close),
	LIE(half_header_stall),
	LIE(half_header_deaf),
	LIE(write_with_data),
	LIE(prediction),
	LIE(never_reads),
	LIE(never_answers),
	LIE(closes),
	LIE(closes_after_reply),
	LIE(resets),
	LIE(ends_its_stream),
	LIE(ends_our_stream),
	LIE(dribbles),
	LIE(early_reply),
	LIE(early_reply_twice),
};

const struct lie *lie_named(const char *name)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(lies); i++)
		if (!strcmp(lies[i].name, name))
			return &lies[i];
	return NULL;
}

/* Tell a lie that goes now, if there is one. */
void lies_tell(struct liar *l, struct conn *c)
{
	const struct lie *lie = l->plan.only ?: &lies[pick(l, ARRAY_SIZE(lies))];
	enum outcome what = lie->tell(l, c, &c->held[pick(l, c->nheld)]);

	/* So that there is something to be replayed. */
	if (what == NOT_NOW && l->plan.only && lie->tell == cookie_before_replay)
		conn_close(l, c);
	lie_told(l, c, lie, what);
}

/* The same after the header of a write was read. */
void lies_early(struct liar *l, struct conn *c)
{
	const struct lie *once = lie_named("early_reply"), *again = lie_named("early_reply_twice");
	const struct lie *lie = l->plan.only ?: pick(l, 2) ? once : again;
	uint64_t cookie = c->held[c->nheld - 1].cookie;

	if ((lie != once && lie != again) || !lies_wants(l, c) || pick(l, 4))
		return;
	lies_replace(l, c);
	put_reply(l, c, cookie, 0);
	c->early = 1;
	if (lie == again)
		put_reply(l, c, cookie, 0);
	lie_told(l, c, lie, lie == again ? DOOM : PERHAPS);
}
