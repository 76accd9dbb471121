// SPDX-License-Identifier: GPL-2.0
/*
 * A session with a server that lies, from its start to its end.
 */
#include <sys/eventfd.h>

#include "lies.h"

static void lies_reconnect(struct liar *l)
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

static void lies_deadlines(struct liar *l)
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
static void lies_round(struct liar *l)
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
static bool lies_enough(struct liar *l)
{
	if (l->over)
		return true;
	if (l->plan.at_disconnect)
		return l->good_ios >= 4;
	if (l->told < l->plan.lies)
		return false;
	return l->plan.abrupt || (l->ios_after >= 2 * SLOTS && !conns_in(l, CONN_DOOMED));
}

static bool lies_start(struct liar *l)
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
static void lies_finish(struct liar *l)
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
static void lies_explain(struct liar *l)
{
	static const char * const name[] = { "none", "open", "doomed", "stalled" };
	struct sockaddr_in in;
	int i;

	fuzz_say("session %s: %s, %d connections%s%s%s, %d lies", l->plan.name ?: "",
		 l->plan.ioctl ? "ioctl" : "netlink", l->plan.conns, l->plan.tcp ? ", TCP" : "",
		 l->plan.work ? ", work item" : "", l->plan.replace ? ", replaced" : "", l->told);
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
		fuzz_say("server %d, port %d: %s, told %s, %d held, %zu + %zu due, %d unread%s%s%s",
			 i, in.sin_family == AF_INET ? ntohs(in.sin_port) : 0, name[c->state],
			 c->told ?: "no lie", c->nheld, c->have, c->left, unread,
			 c->excused ? ", excused" : "", c->deaf ? ", deaf" : "",
			 c->replaced ? ", replaced" : "");
		close(c->fd);
	}
}

void lies_session(struct liar *l)
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

static void lies_signal(int sig __maybe_unused)
{
}

bool lies_init(struct liar *l, struct nbd_dev *dev)
{
	struct sigaction sa = { .sa_handler = lies_signal };
	int i;

	memset(l, 0, sizeof(*l));
	l->dev = dev;
	l->last = "(none)";
	sigaction(SIGUSR1, &sa, NULL);
	/* Without it the plans that need it are as the others. */
	l->sockmap = sockmap_new(CONNS);
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
