// SPDX-License-Identifier: GPL-2.0
/*
 * A server that tells lies: all those that there are, one after the other, in sessions of each
 * kind; then, in one test, as many as NBD_LIES says, chosen by NBD_SEED. A lie costs at most its
 * connection: every request ends, with the right data or, where that is right, an error.
 *
 * NBD_SEED=SEED[:SESSION] begins with that session. The seed decides what is told to whom; when
 * it is heard is up to the kernel, so that a rare finding may take several runs to be seen again.
 */
#include "kselftest_harness.h"
#include "nbd_lies.h"

#define LIES_DEFAULT	20000
#define WORKERS		2

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

static const struct lie *lie_named(const char *name)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(lies); i++)
		if (!strcmp(lies[i].name, name))
			return &lies[i];
	return NULL;
}

static void lies_tell(struct liar *l, struct conn *c)
{
	const struct lie *lie = l->plan.only ?: &lies[pick(l, ARRAY_SIZE(lies))];
	enum outcome what = lie->tell(l, c, &c->held[pick(l, c->nheld)]);

	/* So that there is something to be replayed. */
	if (what == NOT_NOW && l->plan.only && lie->tell == cookie_before_replay)
		conn_close(l, c);
	lie_told(l, c, lie, what);
}

static void lies_early(struct liar *l, struct conn *c)
{
	const struct lie *once = lie_named("early_reply"), *again = lie_named("early_reply_twice");
	const struct lie *lie = l->plan.only ?: pick(l, 2) ? once : again;
	uint64_t cookie = c->held[c->nheld - 1].cookie;

	if ((lie != once && lie != again) || !lies_wants(l, c) || pick(l, 4))
		return;
	put_reply(l, c, cookie, 0);
	c->early = 1;
	if (lie == again)
		put_reply(l, c, cookie, 0);
	lie_told(l, c, lie, lie == again ? DOOM : PERHAPS);
}

FIXTURE(lies)
{
	struct nbd_dev dev;
};

FIXTURE_VARIANT(lies)
{
	const char *lie;
};

FIXTURE_VARIANT_ADD(lies, wrong_magic) { .lie = "wrong_magic" };
FIXTURE_VARIANT_ADD(lies, unknown_cookie) { .lie = "unknown_cookie" };
FIXTURE_VARIANT_ADD(lies, wrong_attempt) { .lie = "wrong_attempt" };
FIXTURE_VARIANT_ADD(lies, wrong_tag) { .lie = "wrong_tag" };
FIXTURE_VARIANT_ADD(lies, stale_cookie) { .lie = "stale_cookie" };
FIXTURE_VARIANT_ADD(lies, cookie_before_replay) { .lie = "cookie_before_replay" };
FIXTURE_VARIANT_ADD(lies, other_connection) { .lie = "other_connection" };
FIXTURE_VARIANT_ADD(lies, twice) { .lie = "twice" };
FIXTURE_VARIANT_ADD(lies, odd_error) { .lie = "odd_error" };
FIXTURE_VARIANT_ADD(lies, shuts_down) { .lie = "shuts_down" };
FIXTURE_VARIANT_ADD(lies, error_with_data) { .lie = "error_with_data" };
FIXTURE_VARIANT_ADD(lies, short_data_close) { .lie = "short_data_close" };
FIXTURE_VARIANT_ADD(lies, short_data_stall) { .lie = "short_data_stall" };
FIXTURE_VARIANT_ADD(lies, short_data_deaf) { .lie = "short_data_deaf" };
FIXTURE_VARIANT_ADD(lies, reply_within_data) { .lie = "reply_within_data" };
FIXTURE_VARIANT_ADD(lies, long_data) { .lie = "long_data" };
FIXTURE_VARIANT_ADD(lies, one_byte_more) { .lie = "one_byte_more" };
FIXTURE_VARIANT_ADD(lies, endless_data) { .lie = "endless_data" };
FIXTURE_VARIANT_ADD(lies, garbage) { .lie = "garbage" };
FIXTURE_VARIANT_ADD(lies, echo) { .lie = "echo" };
FIXTURE_VARIANT_ADD(lies, half_header_close) { .lie = "half_header_close" };
FIXTURE_VARIANT_ADD(lies, half_header_stall) { .lie = "half_header_stall" };
FIXTURE_VARIANT_ADD(lies, half_header_deaf) { .lie = "half_header_deaf" };
FIXTURE_VARIANT_ADD(lies, write_with_data) { .lie = "write_with_data" };
FIXTURE_VARIANT_ADD(lies, prediction) { .lie = "prediction" };
FIXTURE_VARIANT_ADD(lies, never_reads) { .lie = "never_reads" };
FIXTURE_VARIANT_ADD(lies, never_answers) { .lie = "never_answers" };
FIXTURE_VARIANT_ADD(lies, closes) { .lie = "closes" };
FIXTURE_VARIANT_ADD(lies, closes_after_reply) { .lie = "closes_after_reply" };
FIXTURE_VARIANT_ADD(lies, resets) { .lie = "resets" };
FIXTURE_VARIANT_ADD(lies, ends_its_stream) { .lie = "ends_its_stream" };
FIXTURE_VARIANT_ADD(lies, ends_our_stream) { .lie = "ends_our_stream" };
FIXTURE_VARIANT_ADD(lies, dribbles) { .lie = "dribbles" };
FIXTURE_VARIANT_ADD(lies, early_reply) { .lie = "early_reply" };
FIXTURE_VARIANT_ADD(lies, early_reply_twice) { .lie = "early_reply_twice" };

static const char *take_device(struct nbd_dev *dev)
{
	const char *why = NULL;

	if (!nbd_is_rust())
		return "the C driver does not survive this";
	why = nbd_pick(dev);
	if (!why)
		fuzz_init();
	return why;
}

static bool give_device(struct nbd_dev *dev)
{
	bool ok;

	if (!fuzz)
		return true;
	if (fuzz->failed || !fuzz->done) {
		fuzz_autopsy(dev->index);
		nl_disconnect(dev->index);
	}
	ok = nbd_give_back(dev);
	if (!ok)
		fuzz_autopsy(dev->index);
	munmap(fuzz, sizeof(*fuzz));
	fuzz = NULL;
	return ok;
}

FIXTURE_SETUP(lies)
{
	const char *why = take_device(&self->dev);

	if (why)
		SKIP(return, "%s", why);
}

FIXTURE_TEARDOWN(lies)
{
	EXPECT_TRUE(give_device(&self->dev));
}

/* Sessions with these plans, one after the other. */
static void run_plans(struct __test_metadata *_metadata, struct nbd_dev *dev,
		      const struct lies_plan *plan, size_t n, const struct lie *lie)
{
	unsigned long seed = fuzz_seed();
	const char *wrong;
	pid_t pid;
	size_t i;

	pid = fuzz_fork();
	if (!pid) {
		static struct liar liar;

		if (!lies_init(&liar, dev))
			_exit(1);
		liar.rng.x = seed;
		for (i = 0; i < n && !fuzz->failed; i++) {
			liar.plan = plan[i];
			liar.plan.only = lie;
			if (liar.plan.conns < lie->conns)
				liar.plan.conns = lie->conns;
			lies_session(&liar);
		}
		fuzz->done = 1;
		_exit(0);
	}
	wrong = fuzz_watch(pid, 5000, false);
	ASSERT_NULL(wrong) TH_LOG("%s; NBD_SEED=%lu", wrong, seed);
}

TEST_F_TIMEOUT(lies, in_all_sessions, 60)
{
	static const struct lies_plan plans[] = {
		{ .name = "to one of four", .conns = 4, .dead = 10, .lies = 4, .sndbuf = 8192,
		  .end = END_NETLINK },
		{ .name = "to the only one", .conns = 1, .dead = 10, .lies = 3, .sndbuf = 8192,
		  .end = END_DISCONNECT },
		{ .name = "without time to reconnect", .conns = 1, .lies = 3, .sndbuf = 8192,
		  .end = END_SERVERS },
		{ .name = "over TCP", .conns = 2, .dead = 10, .lies = 3, .sndbuf = 8192,
		  .tcp = true, .end = END_CLEAR },
		{ .name = "to an ioctl session", .ioctl = true, .conns = 2, .lies = 1,
		  .sndbuf = 8192, .end = END_SERVERS },
		/* The session is ended while the lie is looked at. */
		{ .name = "and then CLEAR_SOCK", .conns = 2, .dead = 10, .lies = 1,
		  .sndbuf = 8192, .abrupt = true, .end = END_CLEAR },
		{ .name = "and then DISCONNECT", .ioctl = true, .conns = 2, .lies = 1,
		  .sndbuf = 8192, .abrupt = true, .end = END_DISCONNECT },
		{ .name = "and then a signal", .ioctl = true, .conns = 1, .lies = 1,
		  .sndbuf = 8192, .abrupt = true, .end = END_SIGNAL },
		{ .name = "at goodbye", .conns = 2, .dead = 10, .lies = 2, .at_goodbye = true,
		  .end = END_NETLINK },
	};

	run_plans(_metadata, &self->dev, plans, ARRAY_SIZE(plans), lie_named(variant->lie));
}

/* What stalls is ended by the timeout. */
FIXTURE(slow)
{
	struct nbd_dev dev;
};

FIXTURE_VARIANT(slow)
{
	const char *lie;
};

FIXTURE_VARIANT_ADD(slow, short_data_stall) { .lie = "short_data_stall" };
FIXTURE_VARIANT_ADD(slow, short_data_deaf) { .lie = "short_data_deaf" };
FIXTURE_VARIANT_ADD(slow, half_header_stall) { .lie = "half_header_stall" };
FIXTURE_VARIANT_ADD(slow, half_header_deaf) { .lie = "half_header_deaf" };
FIXTURE_VARIANT_ADD(slow, never_reads) { .lie = "never_reads" };
FIXTURE_VARIANT_ADD(slow, never_answers) { .lie = "never_answers" };

FIXTURE_SETUP(slow)
{
	const char *why = take_device(&self->dev);

	if (why)
		SKIP(return, "%s", why);
}

FIXTURE_TEARDOWN(slow)
{
	EXPECT_TRUE(give_device(&self->dev));
}

TEST_F_TIMEOUT(slow, times_out, 60)
{
	static const struct lies_plan plans[] = {
		{ .name = "with netlink", .conns = 2, .dead = 10, .lies = 2, .timeout = 1,
		  .sndbuf = 8192, .end = END_NETLINK },
		{ .name = "with ioctls", .ioctl = true, .conns = 1, .lies = 1, .timeout = 1,
		  .sndbuf = 8192, .end = END_DISCONNECT },
	};

	run_plans(_metadata, &self->dev, plans, ARRAY_SIZE(plans), lie_named(variant->lie));
}

/* Random lies */

FIXTURE(many)
{
	struct nbd_dev dev, more[WORKERS];
};

FIXTURE_SETUP(many)
{
	const char *why = take_device(&self->dev);

	if (why)
		SKIP(return, "%s", why);
}

FIXTURE_TEARDOWN(many)
{
	EXPECT_TRUE(give_device(&self->dev));
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

TEST_F_TIMEOUT(many, closes_at_each_byte, 60)
{
	static const struct lie lie = { .name = "closes_at", .tell = closes_at, .conns = 1 };
	static const struct lies_plan plan = {
		.name = "of a reply", .conns = 2, .dead = 10,
		.lies = sizeof(struct nbd_reply) + 513, .end = END_NETLINK,
	};

	run_plans(_metadata, &self->dev, &plan, 1, &lie);
}

static struct lies_plan random_plan(struct liar *l)
{
	static const int sndbuf[] = { 0, 0, 4096, 16384, 65536 };
	struct lies_plan plan = {
		.ioctl = !pick(l, 4), .tcp = !pick(l, 6), .conns = 1 + pick(l, CONN_MAX),
		.dead = pick(l, 4) ? 10 : 0, .timeout = pick(l, 12) ? 0 : 1,
		.sndbuf = sndbuf[pick(l, ARRAY_SIZE(sndbuf))], .fine = !pick(l, 4),
		.abrupt = pick(l, 2), .at_goodbye = !pick(l, 16), .end = pick(l, ENDINGS),
	};

	plan.lies = pick(l, 4) ? 1 + pick(l, 400) : 1 + pick(l, 8);
	if (!plan.ioctl && plan.end == END_SIGNAL)
		plan.end = END_CLEAR;
	if (plan.ioctl && plan.end == END_NETLINK)
		plan.end = END_DISCONNECT;
	return plan;
}

/* Every so many sessions from the first on. */
static void random_lies(struct nbd_dev *dev, unsigned long seed, unsigned long first, int step,
			long count)
{
	static struct liar liar;
	struct liar *l = &liar;
	unsigned long i;
	long lies = 0;

	if (!lies_init(l, dev))
		_exit(1);
	for (i = first; lies < count && !fuzz->failed; i += step) {
		/* Each session has a seed of its own. */
		l->rng.x = seed * 1000003UL + i;
		l->plan = random_plan(l);
		l->lies = 0;
		l->ios = 0;
		lies_session(l);
		lies += l->lies;
		fuzz->count[0] += l->lies;
		fuzz->count[1]++;
		fuzz->count[2] += l->ios;
		if (fuzz->failed)
			fuzz_say("again: NBD_SEED=%lu:%lu", seed, i);
	}
	fuzz->done = 1;
	_exit(0);
}

TEST_F_TIMEOUT(many, random, 1500)
{
	unsigned long seed = fuzz_seed();
	unsigned long count = fuzz_env("NBD_LIES", scaled_down(LIES_DEFAULT));
	unsigned long session = 0;
	const char *s = getenv("NBD_SEED"), *wrong;
	struct fuzz_shared *of[WORKERS];
	long long start = now_ms();
	pid_t pid[WORKERS];
	bool alone = s && strchr(s, ':');
	int i, n = alone ? 1 : WORKERS;

	if (alone)
		session = strtoul(strchr(s, ':') + 1, NULL, 0);
	TH_LOG("NBD_SEED=%lu NBD_LIES=%lu", seed, count);
	for (i = 0; i < n; i++) {
		if (i) {
			ASSERT_NULL(nbd_pick(&self->more[i]));
			fuzz_init();
		}
		of[i] = fuzz;
		pid[i] = fuzz_fork();
		if (!pid[i])
			random_lies(i ? &self->more[i] : &self->dev, seed, session + i, n,
				    count / n);
	}
	for (i = 0; i < n; i++) {
		fuzz = of[i];
		wrong = fuzz_watch(pid[i], 5000, false);
		EXPECT_NULL(wrong) TH_LOG("%s; seed %lu", wrong, seed);
		if (i) {
			of[0]->count[0] += fuzz->count[0];
			of[0]->count[1] += fuzz->count[1];
			of[0]->count[2] += fuzz->count[2];
			EXPECT_TRUE(give_device(&self->more[i]));
		}
	}
	fuzz = of[0];
	TH_LOG("%ld lies in %ld sessions with %ld I/Os, %lld ms", fuzz->count[0], fuzz->count[1],
	       fuzz->count[2], now_ms() - start);
	report_count(fuzz->count[0], "lies");
	EXPECT_LE((long)count / n * n, fuzz->count[0]);
}

TEST_HARNESS_MAIN
