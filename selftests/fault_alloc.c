// SPDX-License-Identifier: GPL-2.0
/*
 * Allocations that fail: each operation is repeated with its first allocation failing, then its
 * second, and so on until there is none left. It succeeds or fails with an errno that says so,
 * leaves nothing behind, and works when it is tried again.
 */
#include "kselftest_harness.h"
#include "nbd_nlpeer.h"

#define FAULT_NTH	"/proc/thread-self/fail-nth"
#define FAULT_DEBUG	"/sys/kernel/debug/"
#define MANY_SITES	3000
#define WALK_SECONDS	1200
#define NEW_INDEX	333

/* How it is told what is to fail; what was there before is put back. */
static const struct {
	const char *name, *value;
} settings[] = {
	{ "failslab/ignore-gfp-wait", "N" },
	{ "failslab/verbose", "0" },
	{ "failslab/task-filter", "N" },
	{ "failslab/probability", "0" },
	{ "failslab/interval", "1" },
	{ "failslab/times", "1" },
	{ "failslab/space", "0" },
	{ "failslab/require-start", "0" },
	{ "failslab/require-end", "0xffffffffffffffff" },
	{ "failslab/reject-start", NULL },
	{ "failslab/reject-end", NULL },
	{ "fail_page_alloc/ignore-gfp-wait", "N" },
	{ "fail_page_alloc/ignore-gfp-highmem", "N" },
	{ "fail_page_alloc/min-order", "0" },
	{ "fail_page_alloc/verbose", "0" },
	{ "fail_page_alloc/probability", "0" },
	{ "fail_page_alloc/reject-start", NULL },
	{ "fail_page_alloc/reject-end", NULL },
};

static char settings_before[ARRAY_SIZE(settings)][64];

static bool get_text(const char *name, char *text, size_t len)
{
	char path[128];

	snprintf(path, sizeof(path), FAULT_DEBUG "%s", name);
	return read_file(path, text, len) > 0;
}

static bool put_text(const char *name, const char *text)
{
	char path[128];

	snprintf(path, sizeof(path), FAULT_DEBUG "%s", name);
	return write_file(path, text);
}

/* Where a function of the kernel begins and ends. */
static bool function_range(const char *name, char from[32], char to[32])
{
	unsigned long start = 0, end = -1UL, at;
	char line[512], symbol[256];
	FILE *f;
	int i;

	f = fopen("/proc/kallsyms", "re");
	if (!f)
		return false;
	/* They are in no order. */
	for (i = 0; i < 2; i++) {
		while (fgets(line, sizeof(line), f)) {
			if (sscanf(line, "%lx %*c %255s", &at, symbol) != 2)
				continue;
			if (!i && !strcmp(symbol, name))
				start = at;
			if (i && at > start && at < end)
				end = at;
		}
		rewind(f);
	}
	fclose(f);
	snprintf(from, 32, "0x%lx", start);
	snprintf(to, 32, "0x%lx", end);
	return start;
}

static const char *faults_on(void)
{
	char from[32], to[32];
	size_t i;

	if (access(FAULT_NTH, W_OK))
		return "the kernel has no " FAULT_NTH " (CONFIG_FAULT_INJECTION)";
	if (access(FAULT_DEBUG "failslab", F_OK) || access(FAULT_DEBUG "fail_page_alloc", F_OK))
		return "no failslab or fail_page_alloc in debugfs";
	/* It prints its stack when it has no memory, which looks like a bug in the log. */
	if (!function_range("__vmalloc_node_range_noprof", from, to))
		return "cannot tell vmalloc from others in /proc/kallsyms";
	for (i = 0; i < ARRAY_SIZE(settings); i++) {
		const char *value = settings[i].value;

		if (!value)
			value = strstr(settings[i].name, "start") ? from : to;
		/* Some files depend on the configuration. */
		if (get_text(settings[i].name, settings_before[i], sizeof(settings_before[i])))
			put_text(settings[i].name, value);
	}
	return NULL;
}

static void faults_off(void)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(settings); i++)
		if (settings_before[i][0])
			put_text(settings[i].name, settings_before[i]);
}

/* An operation, done by a process of its own. */

struct try {
	struct nl_session *ns;
	int dev;			/* the open device, or -1 */
	struct genl genl;
	struct nl_msg *msg;
	struct try_shared {
		_Atomic int done;	/* the operation has returned */
		_Atomic int release;	/* the process is to end */
		int ret;		/* 0 or -errno */
		int left;		/* 0: an allocation has failed */
	} *sh;
	pid_t pid;
};

struct operation {
	const char *name;
	int (*before)(struct try *t);
	int (*act)(struct try *t);		/* with the failing allocation */
	int (*after)(struct try *t, int ret);
};

static int fail_nth(int fd, int n)
{
	char text[16];
	int len = snprintf(text, sizeof(text), "%d", n);

	return pwrite(fd, text, len, 0) == len ? 0 : -errno;
}

#define IO_BYTES	(128UL << 10)
static unsigned char io_buf[IO_BYTES] __aligned(4096);

static void try_main(struct try *t, const struct operation *op, int n)
{
	int fd = open(FAULT_NTH, O_RDWR | O_CLOEXEC), ret;
	char text[16] = "";

	t->dev = -1;
	/* A page of it that is not there would cost an allocation that is not the driver's. */
	memset(io_buf, 1, sizeof(io_buf));
	ret = fd < 0 ? -errno : 0;
	if (!ret && op->before)
		ret = op->before(t);
	if (!ret) {
		ret = fail_nth(fd, n);
		ret = ret ?: op->act(t);
		if (pread(fd, text, sizeof(text) - 1, 0) < 0)
			ret = -EIO;
		fail_nth(fd, 0);
		t->sh->left = atoi(text);
		if (op->after)
			ret = op->after(t, ret);
	} else {
		/* Not an errno of the operation's. */
		ret = -ENOTRECOVERABLE;
	}
	t->sh->ret = ret;
	nl_close_ends(&t->ns->s);
	t->sh->done = 1;
	while (!t->sh->release)
		usleep(500);
	_exit(0);
}

/* Start it, with the nth allocation failing, or none if n is 0. */
static void try_start(struct try *t, struct nl_session *ns, const struct operation *op, int n)
{
	if (!t->sh) {
		t->sh = shared_memory(sizeof(*t->sh));
		if (!t->sh)
			_exit(1);
	}
	memset(t->sh, 0, sizeof(*t->sh));
	t->ns = ns;
	memset(nbd_children, 0, sizeof(nbd_children));
	t->pid = fork_quiet();
	if (!t->pid)
		try_main(t, op, n);
	nl_close_ends(&ns->s);
}

static int try_result(struct try *t)
{
	if (!WAIT_UNTIL(t->sh->done || exited(t->pid), BOUNDED))
		return -ETIME;
	return t->sh->done ? t->sh->ret : -EPIPE;
}

static bool try_end(struct try *t)
{
	t->sh->release = 1;
	if (!reap(t->pid, BOUNDED))
		return false;
	t->pid = 0;
	return true;
}

/* What the operations consist of. */

static int op_open(struct try *t)
{
	t->dev = open(t->ns->s.dev.path, O_RDWR | O_CLOEXEC);
	return t->dev < 0 ? -errno : 0;
}

static int op_open_direct(struct try *t)
{
	t->dev = open(t->ns->s.dev.path, O_RDWR | O_DIRECT | O_CLOEXEC);
	return t->dev < 0 ? -errno : 0;
}

static int op_close(struct try *t)
{
	return close(t->dev) ? -errno : 0;
}

static int op_close_after(struct try *t, int ret)
{
	if (t->dev >= 0)
		close(t->dev);
	return ret;
}

static int op_ioctl(struct try *t, unsigned long cmd, unsigned long arg)
{
	return ioctl(t->dev, cmd, arg) < 0 ? -errno : 0;
}

static int op_set_sock(struct try *t)
{
	return op_ioctl(t, NBD_SET_SOCK, t->ns->s.fd[0]);
}

static int op_set_second_sock(struct try *t)
{
	return op_ioctl(t, NBD_SET_SOCK, t->ns->s.fd[1]);
}

static int op_open_and_set_sock(struct try *t)
{
	return op_open(t) ?: op_set_sock(t);
}

static int op_setup(struct try *t)
{
	int ret = op_open(t), i;

	for (i = 0; i < t->ns->s.npeers && !ret; i++)
		ret = op_ioctl(t, NBD_SET_SOCK, t->ns->s.fd[i]);
	ret = ret ?: op_ioctl(t, NBD_SET_BLKSIZE, NL_BLKSIZE);
	ret = ret ?: op_ioctl(t, NBD_SET_SIZE, PEER_SIZE);
	return ret ?: op_ioctl(t, NBD_SET_FLAGS, NL_FLAGS | NBD_FLAG_CAN_MULTI_CONN);
}

static int op_do_it(struct try *t)
{
	return op_ioctl(t, NBD_DO_IT, 0);
}

static int op_clear_sock(struct try *t)
{
	return op_ioctl(t, NBD_CLEAR_SOCK, 0);
}

static int op_ioctl_disconnect(struct try *t)
{
	return op_ioctl(t, NBD_DISCONNECT, 0);
}

static int op_genl(struct try *t)
{
	struct timeval tv = { .tv_sec = scaled(BOUNDED) / 1000 };
	int ret = genl_open(&t->genl);

	if (ret)
		return ret;
	setsockopt(t->genl.fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
	t->msg = malloc(sizeof(*t->msg));
	return t->msg ? 0 : -ENOMEM;
}

static int op_genl_connect(struct try *t)
{
	int ret = op_genl(t);

	if (!ret)
		nl_begin_connect(t->msg, t->ns, t->ns->s.dev.index, t->ns->s.fd, t->ns->s.npeers);
	return ret;
}

static int op_genl_reconnect(struct try *t)
{
	int ret = op_genl(t);

	if (ret)
		return ret;
	nl_begin(t->msg, NBD_CMD_RECONFIGURE, t->ns->s.dev.index);
	nl_socks(t->msg, &t->ns->s.fd[0], 1);
	return 0;
}

static int op_genl_resize(struct try *t)
{
	int ret = op_genl(t);

	if (ret)
		return ret;
	nl_begin(t->msg, NBD_CMD_RECONFIGURE, t->ns->s.dev.index);
	nl_u64(t->msg, NBD_ATTR_SIZE_BYTES, PEER_SIZE / 2);
	nl_u64(t->msg, NBD_ATTR_BLOCK_SIZE_BYTES, 1024);
	nl_u64(t->msg, NBD_ATTR_TIMEOUT, 20);
	return 0;
}

static int op_genl_disconnect(struct try *t)
{
	int ret = op_genl(t);

	if (!ret)
		nl_begin(t->msg, NBD_CMD_DISCONNECT, t->ns->s.dev.index);
	return ret;
}

/* The kernel has done what the message asks when this returns. */
static int op_genl_send(struct try *t)
{
	t->msg->h.nlmsg_type = t->genl.family;
	t->msg->h.nlmsg_seq++;
	if (send(t->genl.fd, t->msg->buf, t->msg->h.nlmsg_len, 0) != (ssize_t)t->msg->h.nlmsg_len)
		return -errno;
	return 0;
}

/* What it has answered; that there was no memory for the answer is seen here, too. */
static int op_genl_answer(struct try *t, int ret)
{
	static char buf[1 << 16];
	struct nl_answer r = {};
	ssize_t n;

	while (!ret && (n = recv(t->genl.fd, buf, sizeof(buf), 0)) != 0) {
		struct nlmsghdr *h = (void *)buf;

		if (n < 0)
			return -errno;
		for (; NLMSG_OK(h, n); h = NLMSG_NEXT(h, n)) {
			if (h->nlmsg_type != NLMSG_ERROR)
				continue;
			nl_take_error(&r, h);
			return r.ret;
		}
	}
	return ret;
}

static int op_read(struct try *t)
{
	ssize_t n = pread(t->dev, io_buf, IO_BYTES, PEER_SIZE / 4);

	if (n < 0)
		return -errno;
	return memcmp(io_buf, t->ns->s.sh->data + PEER_SIZE / 4, n) ? -EILSEQ : 0;
}

/* The same data that is there, so that all that is read is as it was. */
static int op_write(struct try *t)
{
	ssize_t n;

	memcpy(io_buf, t->ns->s.sh->data + PEER_SIZE / 4, IO_BYTES);
	n = pwrite(t->dev, io_buf, IO_BYTES, PEER_SIZE / 4);
	return n < 0 || fsync(t->dev) ? -errno : 0;
}

/* Counting */

struct tally {
	int tried, fine, error[256];
	long long start;
};

static void tally_add(struct tally *t, int ret)
{
	t->tried++;
	if (!ret)
		t->fine++;
	else if (ret < 0 && ret > -256)
		t->error[-ret]++;
}

static void tally_show(struct tally *t, const char *name, int sites)
{
	char text[512] = "";
	int i, len = 0;

	for (i = 0; i < 256; i++)
		if (t->error[i])
			len += snprintf(text + len, sizeof(text) - len, ", %d x %s", t->error[i],
					strerrorname_np(i) ?: "?");
	ksft_print_msg("%s: %d sites, %d tried: %d x success%s\n", name, sites, t->tried, t->fine,
		       text);
}

static bool is_clean(int ret)
{
	return !ret || ret == -ENOMEM || ret == -ENOBUFS;
}

FIXTURE(alloc)
{
	struct nl_session ns;
	struct try t, again;
	struct tally tally;
	int last, sockets;
};

FIXTURE_SETUP(alloc)
{
	const char *why = geteuid() ? "must be run as root" : faults_on();

	if (!why) {
		why = nl_init(&self->ns, 1, PEER_GOOD);
		if (why)
			faults_off();
	}
	if (why)
		SKIP(return, "%s", why);
	srandom(now_ms());
	self->sockets = count_sockets();
}

FIXTURE_TEARDOWN(alloc)
{
	faults_off();
	if (self->t.pid)
		nbd_child(self->t.pid);
	if (self->again.pid)
		nbd_child(self->again.pid);
	if (self->ns.s.sh)
		EXPECT_TRUE(nl_cleanup(&self->ns));
}

/* Nothing is left of what was tried. */
static void nothing_left(struct __test_metadata *_metadata, FIXTURE_DATA(alloc) * self, int n)
{
	struct peer_session *s = &self->ns.s;
	int i;

	for (i = 0; i < s->npeers; i++) {
		ASSERT_TRUE(WAIT_UNTIL(exited(s->peer[i]), SOON))
			TH_LOG("site %d: server %d sees no end", n, i);
		reap(s->peer[i], SOON);
		s->peer[i] = 0;
	}
	ASSERT_TRUE(WAIT_UNTIL(nbd_idle(&s->dev), SOON)) TH_LOG("site %d: not idle", n);
	ASSERT_TRUE(WAIT_UNTIL(count_sockets() == self->sockets, SOON))
		TH_LOG("site %d: %d sockets, not %d", n, count_sockets(), self->sockets);
}

/* A session that works, from its connection to its end. */
static void works(struct __test_metadata *_metadata, FIXTURE_DATA(alloc) * self, int n)
{
	struct nl_session *ns = &self->ns;

	ASSERT_EQ(0, nl_connect(ns)) TH_LOG("site %d: %s", n, ns->answer.text);
	ASSERT_EQ(0, other_wait(other_run(&ns->s, read_block), BOUNDED)) TH_LOG("site %d", n);
	ASSERT_EQ(0, nl_disconnect(ns->s.dev.index)) TH_LOG("site %d", n);
	nothing_left(_metadata, self, n);
}

/*
 * The walk is for n = 1, 2, ... until nothing was injected. self->t is the try. On a machine so
 * slow that it takes longer than NBD_FAULT_SECONDS (0: no limit), some of the rest are left out by
 * chance.
 */
static bool walk_more(struct __test_metadata *_metadata, FIXTURE_DATA(alloc) * self,
		      const struct operation *op, int n)
{
	struct tally *t = &self->tally;

	if (n == 1) {
		memset(t, 0, sizeof(*t));
		t->start = now_ms();
	} else if (self->t.sh->left) {
		/* The last round was without a fault. */
		EXPECT_EQ(0, self->t.sh->ret) TH_LOG("without a fault");
		t->tried--;
		t->fine--;
		tally_show(t, op->name, self->last - self->t.sh->left);
		report_count(t->tried, "sites");
		return false;
	}
	EXPECT_GT(MANY_SITES, n);
	self->last = n;
	return n < MANY_SITES;
}

static int walk_next(FIXTURE_DATA(alloc) * self, int n)
{
	const char *seconds = getenv("NBD_FAULT_SECONDS");
	int limit = seconds ? atoi(seconds) : 40, range = 11;
	long long over = limit ? (now_ms() - self->tally.start) / (limit * 1000) : 0;

	if (!over)
		return n + 1;
	/* More and more, so that it comes to an end. */
	while (--over > 0 && range < 1000)
		range *= 4;
	return n + 1 + random() % range;
}

static void walk_result(struct __test_metadata *_metadata, FIXTURE_DATA(alloc) * self, int n,
			int ret)
{
	tally_add(&self->tally, ret);
	EXPECT_TRUE(is_clean(ret)) TH_LOG("site %d: %s", n, strerrorname_np(-ret));
}

/* Opening and closing */

static void walk_open(struct __test_metadata *_metadata, FIXTURE_DATA(alloc) * self,
		      const struct operation *op, bool connected)
{
	struct nl_session *ns = &self->ns;
	int n, ret;

	/* For a fault may cost a connection: a request that could not be sent. */
	ns->s.npeers = connected ? 2 : 1;
	for (n = 1; walk_more(_metadata, self, op, n); n = walk_next(self, n)) {
		if (connected)
			ASSERT_EQ(0, nl_connect(ns));
		try_start(&self->t, ns, op, n);
		ret = try_result(&self->t);
		walk_result(_metadata, self, n, ret);
		ASSERT_TRUE(try_end(&self->t));
		if (connected) {
			ASSERT_EQ(0, other_wait(other_run(&ns->s, read_block), BOUNDED))
				TH_LOG("site %d", n);
			ASSERT_EQ(0, nl_disconnect(ns->s.dev.index));
			nothing_left(_metadata, self, n);
		}
	}
	works(_metadata, self, n);
}

TEST_F_TIMEOUT(alloc, open_idle, WALK_SECONDS)
{
	static const struct operation op = { "open, idle", NULL, op_open, op_close_after };

	walk_open(_metadata, self, &op, false);
}

TEST_F_TIMEOUT(alloc, open_connected, WALK_SECONDS)
{
	static const struct operation op = { "first open of a session", NULL, op_open,
					     op_close_after };

	walk_open(_metadata, self, &op, true);
}

TEST_F_TIMEOUT(alloc, close_idle, WALK_SECONDS)
{
	static const struct operation op = { "close, idle", op_open, op_close, NULL };

	walk_open(_metadata, self, &op, false);
}

TEST_F_TIMEOUT(alloc, close_connected, WALK_SECONDS)
{
	static const struct operation op = { "close, connected", op_open, op_close, NULL };

	walk_open(_metadata, self, &op, true);
}

/* The last close drops the setup. */
TEST_F_TIMEOUT(alloc, close_setup, WALK_SECONDS)
{
	static const struct operation op = { "close, set up", op_setup, op_close, NULL };
	int n, ret;

	for (n = 1; walk_more(_metadata, self, &op, n); n = walk_next(self, n)) {
		ASSERT_EQ(0, nl_peers(&self->ns));
		try_start(&self->t, &self->ns, &op, n);
		ret = try_result(&self->t);
		walk_result(_metadata, self, n, ret);
		nothing_left(_metadata, self, n);
		ASSERT_TRUE(try_end(&self->t));
	}
	works(_metadata, self, n);
}

/* Setting up */

TEST_F_TIMEOUT(alloc, set_sock, WALK_SECONDS)
{
	static const struct operation op = { "SET_SOCK", op_open, op_set_sock, NULL };
	struct peer_session *s = &self->ns.s;
	int n, ret;

	for (n = 1; walk_more(_metadata, self, &op, n); n = walk_next(self, n)) {
		ASSERT_EQ(0, nl_peers(&self->ns));
		try_start(&self->t, &self->ns, &op, n);
		ret = try_result(&self->t);
		walk_result(_metadata, self, n, ret);
		if (ret) {
			nothing_left(_metadata, self, n);
			/* The first one still has the device open, and is not its owner. */
			ASSERT_EQ(0, nl_peers(&self->ns));
			try_start(&self->again, &self->ns, &op, 0);
			EXPECT_EQ(0, try_result(&self->again)) TH_LOG("site %d: again", n);
			EXPECT_FALSE(exited(s->peer[0]));
			ASSERT_TRUE(try_end(&self->again));
		} else {
			EXPECT_FALSE(exited(s->peer[0])) TH_LOG("site %d: not kept", n);
		}
		ASSERT_TRUE(try_end(&self->t));
		nothing_left(_metadata, self, n);
	}
	works(_metadata, self, n);
}

TEST_F_TIMEOUT(alloc, set_second_sock, WALK_SECONDS)
{
	static const struct operation op = { "SET_SOCK, the second", op_open_and_set_sock,
					     op_set_second_sock, NULL };
	struct peer_session *s = &self->ns.s;
	int n, ret;

	s->npeers = 2;
	for (n = 1; walk_more(_metadata, self, &op, n); n = walk_next(self, n)) {
		ASSERT_EQ(0, nl_peers(&self->ns));
		try_start(&self->t, &self->ns, &op, n);
		ret = try_result(&self->t);
		walk_result(_metadata, self, n, ret);
		EXPECT_EQ(!!ret, WAIT_UNTIL(exited(s->peer[1]), ret ? SOON : 0))
			TH_LOG("site %d: %d", n, ret);
		EXPECT_FALSE(exited(s->peer[0])) TH_LOG("site %d: the first socket is gone", n);
		ASSERT_TRUE(try_end(&self->t));
		nothing_left(_metadata, self, n);
	}
	works(_metadata, self, n);
}

TEST_F_TIMEOUT(alloc, clear_sock_of_a_setup, WALK_SECONDS)
{
	static const struct operation op = { "CLEAR_SOCK, set up", op_setup, op_clear_sock, NULL };
	int n, ret;

	for (n = 1; walk_more(_metadata, self, &op, n); n = walk_next(self, n)) {
		ASSERT_EQ(0, nl_peers(&self->ns));
		try_start(&self->t, &self->ns, &op, n);
		ret = try_result(&self->t);
		walk_result(_metadata, self, n, ret);
		EXPECT_EQ(0, ret) TH_LOG("site %d", n);
		nothing_left(_metadata, self, n);
		ASSERT_TRUE(try_end(&self->t));
	}
	works(_metadata, self, n);
}

/* A session by ioctl */

static const struct operation do_it = { "DO_IT and the end of the session", op_setup, op_do_it,
					NULL };

/* DO_IT to its end by a disconnect from elsewhere, if it comes so far. */
static int whole_session(struct __test_metadata *_metadata, FIXTURE_DATA(alloc) * self,
			 struct try *t, int n)
{
	struct peer_session *s = &self->ns.s;
	int ret;

	if (nl_peers(&self->ns))
		return -ENOTRECOVERABLE;
	try_start(t, &self->ns, &do_it, n);
	EXPECT_TRUE(WAIT_UNTIL(t->sh->done || nbd_running(&s->dev), BOUNDED))
		TH_LOG("site %d: neither running nor refused", n);
	if (!t->sh->done) {
		EXPECT_EQ(0, other_wait(other_run(s, read_block), BOUNDED)) TH_LOG("site %d", n);
		EXPECT_EQ(0, other_wait(other_ioctl(s, NBD_DISCONNECT), BOUNDED));
	}
	ret = try_result(t);
	EXPECT_TRUE(try_end(t));
	return ret;
}

TEST_F_TIMEOUT(alloc, do_it, WALK_SECONDS)
{
	int n, ret;

	for (n = 1; walk_more(_metadata, self, &do_it, n); n = walk_next(self, n)) {
		ret = whole_session(_metadata, self, &self->t, n);
		walk_result(_metadata, self, n, ret);
		nothing_left(_metadata, self, n);
		if (ret) {
			ASSERT_EQ(0, whole_session(_metadata, self, &self->again, 0))
				TH_LOG("site %d: again", n);
			nothing_left(_metadata, self, n);
		}
	}
}

static void walk_end(struct __test_metadata *_metadata, FIXTURE_DATA(alloc) * self,
		     const struct operation *op)
{
	struct peer_session *s = &self->ns.s;
	int n, ret;

	for (n = 1; walk_more(_metadata, self, op, n); n = walk_next(self, n)) {
		ASSERT_EQ(0, nl_peers(&self->ns));
		try_start(&self->again, &self->ns, &do_it, 0);
		ASSERT_TRUE(WAIT_UNTIL(nbd_running(&s->dev), BOUNDED));
		try_start(&self->t, &self->ns, op, n);
		ret = try_result(&self->t);
		walk_result(_metadata, self, n, ret);
		EXPECT_EQ(0, ret) TH_LOG("site %d", n);
		EXPECT_EQ(0, try_result(&self->again)) TH_LOG("site %d: DO_IT", n);
		ASSERT_TRUE(try_end(&self->t));
		ASSERT_TRUE(try_end(&self->again));
		nothing_left(_metadata, self, n);
	}
	works(_metadata, self, n);
}

TEST_F_TIMEOUT(alloc, clear_sock_of_a_session, WALK_SECONDS)
{
	static const struct operation op = { "CLEAR_SOCK, running", op_open, op_clear_sock, NULL };

	walk_end(_metadata, self, &op);
}

TEST_F_TIMEOUT(alloc, ioctl_disconnect, WALK_SECONDS)
{
	static const struct operation op = { "NBD_DISCONNECT", op_open, op_ioctl_disconnect, NULL };

	walk_end(_metadata, self, &op);
}

/* Netlink */

static const struct operation nl_connecting = { "CONNECT", op_genl_connect, op_genl_send,
						op_genl_answer };

/* One CONNECT; whatever it does, nobody is connected after this. */
static int connect_once(struct __test_metadata *_metadata, FIXTURE_DATA(alloc) * self, int n)
{
	struct nl_session *ns = &self->ns;
	int ret;

	if (nl_peers(ns))
		return -ENOTRECOVERABLE;
	try_start(&self->t, ns, &nl_connecting, n);
	ret = try_result(&self->t);
	EXPECT_TRUE(try_end(&self->t));
	/* That nobody could be told does not undo it. */
	if (!ret)
		EXPECT_TRUE(nbd_running(&ns->s.dev)) TH_LOG("site %d: not running", n);
	if (ret == -ENOMEM)
		EXPECT_FALSE(nbd_running(&ns->s.dev)) TH_LOG("site %d: running", n);
	if (nbd_running(&ns->s.dev)) {
		EXPECT_EQ(0, other_wait(other_run(&ns->s, read_block), BOUNDED))
			TH_LOG("site %d: reading", n);
		EXPECT_EQ(0, nl_disconnect(ns->s.dev.index)) TH_LOG("site %d", n);
	}
	return ret;
}

static void walk_connect(struct __test_metadata *_metadata, FIXTURE_DATA(alloc) * self, int npeers)
{
	struct nl_session *ns = &self->ns;
	int n, ret;

	for (n = 1; walk_more(_metadata, self, &nl_connecting, n); n = walk_next(self, n)) {
		ns->s.npeers = npeers;
		ns->backend = "a backend whose name is copied";
		ret = connect_once(_metadata, self, n);
		walk_result(_metadata, self, n, ret);
		nothing_left(_metadata, self, n);
		/* So that the next one has another number of queues again. */
		ns->s.npeers = 1;
		ns->backend = NULL;
		if (ret || npeers > 1)
			works(_metadata, self, n);
	}
}

TEST_F_TIMEOUT(alloc, connect, WALK_SECONDS)
{
	walk_connect(_metadata, self, 1);
}

TEST_F_TIMEOUT(alloc, connect_with_four_sockets, WALK_SECONDS)
{
	walk_connect(_metadata, self, 4);
}

static bool new_exists(struct nbd_dev *d)
{
	char path[64];

	snprintf(path, sizeof(path), "/sys/block/nbd%d", d->index);
	return !access(path, F_OK) || !access(d->path, F_OK);
}

/* The device is made for it. */
TEST_F_TIMEOUT(alloc, connect_to_a_new_device, WALK_SECONDS)
{
	struct nl_session *ns = &self->ns;
	int picked = ns->s.dev.index, n, ret, kept = 0;

	nl_use(ns, NEW_INDEX);
	ns->cflags = NBD_CFLAG_DESTROY_ON_DISCONNECT;
	for (n = 1; walk_more(_metadata, self, &nl_connecting, n); n = walk_next(self, n)) {
		ASSERT_FALSE(new_exists(&ns->s.dev)) TH_LOG("site %d", n);
		ret = connect_once(_metadata, self, n);
		/* device_add_disk() does not look whether there was memory for its name. */
		if (ret == -EINVAL)
			tally_add(&self->tally, ret);
		else
			walk_result(_metadata, self, n, ret);
		if (ret && new_exists(&ns->s.dev)) {
			/* Only the session could not be made. */
			kept++;
			EXPECT_EQ(0, nl_connected(NEW_INDEX)) TH_LOG("site %d", n);
			nothing_left(_metadata, self, n);
		} else {
			/* Without it sysfs has no size. */
			EXPECT_TRUE(WAIT_UNTIL(exited(ns->s.peer[0]), SOON));
			reap(ns->s.peer[0], SOON);
			EXPECT_EQ(-ENODEV, nl_connected(NEW_INDEX)) TH_LOG("site %d", n);
		}
		if (!ret)
			continue;
		ASSERT_EQ(0, nl_connect(ns)) TH_LOG("site %d: again: %s", n, ns->answer.text);
		ASSERT_EQ(0, other_wait(other_run(&ns->s, read_block), BOUNDED));
		ASSERT_EQ(0, nl_disconnect(NEW_INDEX));
		ASSERT_TRUE(reap(ns->s.peer[0], BOUNDED));
		ASSERT_TRUE(WAIT_UNTIL(count_sockets() == self->sockets, SOON))
			TH_LOG("site %d: %d sockets, not %d", n, count_sockets(), self->sockets);
	}
	ksft_print_msg("of these, %d left the new device idle\n", kept);
	ns->cflags = 0;
	nl_use(ns, picked);
	works(_metadata, self, n);
}

TEST_F_TIMEOUT(alloc, reconfigure_with_a_new_socket, WALK_SECONDS)
{
	static const struct operation op = { "RECONFIGURE with a new socket", op_genl_reconnect,
					     op_genl_send, op_genl_answer };
	struct nl_session *ns = &self->ns;
	int n, ret;

	ns->dead = 300;
	ASSERT_EQ(0, nl_connect(ns));
	for (n = 1; walk_more(_metadata, self, &op, n); n = walk_next(self, n)) {
		ASSERT_TRUE(nl_kill_peer(&ns->s, 0));
		ASSERT_EQ(0, nl_peer(&ns->s, 0));
		try_start(&self->t, ns, &op, n);
		ret = try_result(&self->t);
		ASSERT_TRUE(try_end(&self->t));
		walk_result(_metadata, self, n, ret);
		ASSERT_EQ(1, nl_connected(ns->s.dev.index)) TH_LOG("site %d", n);
		/* That nobody could be told does not undo it. */
		if (ret && WAIT_UNTIL(exited(ns->s.peer[0]), ret == -ENOBUFS ? 200 : SOON)) {
			reap(ns->s.peer[0], SOON);
			ASSERT_EQ(0, nl_reconnect(ns, 0)) TH_LOG("site %d: again", n);
		}
		ASSERT_EQ(0, other_wait(other_run(&ns->s, nl_read_other), BOUNDED))
			TH_LOG("site %d: %d", n, ret);
		ASSERT_TRUE(WAIT_UNTIL(count_sockets() == self->sockets + 2, SOON))
			TH_LOG("site %d: %d sockets", n, count_sockets());
	}
	EXPECT_EQ(0, nl_disconnect(ns->s.dev.index));
	nothing_left(_metadata, self, n);
	works(_metadata, self, n);
}

TEST_F_TIMEOUT(alloc, reconfigure_other_values, WALK_SECONDS)
{
	static const struct operation op = { "RECONFIGURE of size, block size and timeout",
					     op_genl_resize, op_genl_send, op_genl_answer };
	struct nl_session *ns = &self->ns;
	int n, ret;

	ASSERT_EQ(0, nl_connect(ns));
	for (n = 1; walk_more(_metadata, self, &op, n); n = walk_next(self, n)) {
		try_start(&self->t, ns, &op, n);
		ret = try_result(&self->t);
		ASSERT_TRUE(try_end(&self->t));
		walk_result(_metadata, self, n, ret);
		/* Back again, with all that was not changed. */
		ASSERT_EQ(0, nl_change(ns, NBD_ATTR_SIZE_BYTES, PEER_SIZE));
		ASSERT_EQ(0, nl_change(ns, NBD_ATTR_BLOCK_SIZE_BYTES, NL_BLKSIZE));
		ASSERT_EQ(0, nl_change(ns, NBD_ATTR_TIMEOUT, 0));
		EXPECT_EQ(NL_SECTORS, nbd_sys(&ns->s.dev, "size"));
		EXPECT_EQ(NL_BLKSIZE, nbd_sys(&ns->s.dev, "queue/logical_block_size"));
		ASSERT_EQ(0, other_wait(other_run(&ns->s, nl_read_other), BOUNDED))
			TH_LOG("site %d: %d", n, ret);
	}
	EXPECT_EQ(0, nl_disconnect(ns->s.dev.index));
	nothing_left(_metadata, self, n);
}

TEST_F_TIMEOUT(alloc, disconnect, WALK_SECONDS)
{
	static const struct operation op = { "DISCONNECT", op_genl_disconnect, op_genl_send,
					     op_genl_answer };
	struct nl_session *ns = &self->ns;
	int n, ret;

	for (n = 1; walk_more(_metadata, self, &op, n); n = walk_next(self, n)) {
		ASSERT_EQ(0, nl_connect(ns));
		try_start(&self->t, ns, &op, n);
		ret = try_result(&self->t);
		ASSERT_TRUE(try_end(&self->t));
		walk_result(_metadata, self, n, ret);
		if (!ret)
			EXPECT_FALSE(nbd_running(&ns->s.dev)) TH_LOG("site %d", n);
		ASSERT_EQ(0, nl_disconnect(ns->s.dev.index)) TH_LOG("site %d", n);
		nothing_left(_metadata, self, n);
	}
	works(_metadata, self, n);
}

/* Reading and writing: two connections, of which a fault may cost one, but never the request. */

static void walk_io(struct __test_metadata *_metadata, FIXTURE_DATA(alloc) * self,
		    const struct operation *op, bool tcp)
{
	struct nl_session *ns = &self->ns;
	int n, ret, i, lost = 0;

	ns->s.tcp = tcp;
	ns->s.npeers = 2;
	ns->dead = 60;
	ASSERT_EQ(0, nl_connect(ns));
	for (n = 1; walk_more(_metadata, self, op, n); n = walk_next(self, n)) {
		try_start(&self->t, ns, op, n);
		ret = try_result(&self->t);
		ASSERT_TRUE(try_end(&self->t));
		tally_add(&self->tally, ret);
		/* Who writes to a cache hears of any error as EIO. */
		EXPECT_TRUE(is_clean(ret) || ret == -EIO)
			TH_LOG("site %d: %s", n, strerrorname_np(-ret));
		ASSERT_EQ(0, other_wait(other_run(&ns->s, nl_read_other), BOUNDED))
			TH_LOG("site %d: %d", n, ret);
		for (i = 0; i < 2; i++) {
			if (!exited(ns->s.peer[i]))
				continue;
			lost++;
			reap(ns->s.peer[i], SOON);
			ASSERT_EQ(0, nl_reconnect(ns, i)) TH_LOG("site %d: %d", n, i);
		}
	}
	ksft_print_msg("of these, %d cost a connection\n", lost);
	EXPECT_EQ(0, other_wait(other_run(&ns->s, read_all), 10000));
	EXPECT_EQ(0, nl_disconnect(ns->s.dev.index));
}

TEST_F_TIMEOUT(alloc, read_direct, WALK_SECONDS)
{
	static const struct operation op = { "read, O_DIRECT", op_open_direct, op_read, NULL };

	walk_io(_metadata, self, &op, false);
}

TEST_F_TIMEOUT(alloc, write_direct, WALK_SECONDS)
{
	static const struct operation op = { "write and fsync, O_DIRECT", op_open_direct, op_write,
					     NULL };

	walk_io(_metadata, self, &op, false);
}

TEST_F_TIMEOUT(alloc, write_direct_over_tcp, WALK_SECONDS)
{
	static const struct operation op = { "write and fsync, O_DIRECT, TCP", op_open_direct,
					     op_write, NULL };

	walk_io(_metadata, self, &op, true);
}

TEST_F_TIMEOUT(alloc, read_cached, WALK_SECONDS)
{
	static const struct operation op = { "read through the cache", op_open, op_read, NULL };

	walk_io(_metadata, self, &op, false);
}

TEST_F_TIMEOUT(alloc, write_cached, WALK_SECONDS)
{
	static const struct operation op = { "write and fsync through the cache", op_open, op_write,
					     NULL };

	walk_io(_metadata, self, &op, false);
}

/*
 * Workers: any allocation that is made by or for the module, wherever, one at a time. Which one
 * it is cannot be walked, but every interval meets another one.
 */

#define WORKER_ROUNDS	60
#define WORKER_IOS	24

static bool module_range(unsigned long *from, unsigned long *to)
{
	unsigned long size = 0, at = 0;
	bool found = false;
	char line[512];
	FILE *f;

	f = fopen("/proc/modules", "re");
	while (f && !found && fgets(line, sizeof(line), f))
		found = sscanf(line, "nbd %lu %*s %*s %*s %lx", &size, &at) == 2;
	if (f)
		fclose(f);
	*from = at;
	*to = at + size;
	return found && at;
}

static int worker_io(struct peer_session *s)
{
	static unsigned char buf[65536] __aligned(4096);
	int fd[2], i, n = 0;

	fd[0] = open(s->dev.path, O_RDWR | O_DIRECT | O_CLOEXEC);
	fd[1] = open(s->dev.path, O_RDWR | O_CLOEXEC);
	for (i = 0; i < WORKER_IOS; i++) {
		off_t off = PEER_SIZE / 2 + i * sizeof(buf);

		memcpy(buf, s->sh->data + off, sizeof(buf));
		n += pwrite(fd[i % 2], buf, sizeof(buf), off) == sizeof(buf);
		n += pread(fd[0], buf, sizeof(buf), off - PEER_SIZE / 4) == sizeof(buf) &&
		     !memcmp(buf, s->sh->data + off - PEER_SIZE / 4, sizeof(buf));
	}
	n += !fsync(fd[1]);
	return n == 2 * WORKER_IOS + 1 ? 0 : 1;
}

/*
 * New servers for those that have lost their connection; how many. One that cannot be given to the
 * driver ends, and the next call sees that.
 */
static int mend(struct nl_session *ns)
{
	int i, n = 0;

	for (i = 0; i < ns->s.npeers; i++) {
		if (!exited(ns->s.peer[i]))
			continue;
		waitpid(ns->s.peer[i], NULL, WNOHANG);
		nl_reconnect(ns, i);
		n++;
	}
	return n;
}

TEST_F_TIMEOUT(alloc, workers, WALK_SECONDS)
{
	struct nl_session *ns = &self->ns;
	int round, i, injected = 0, lost = 0, bad = 0;
	unsigned long from, to;
	long long end;
	char text[64];
	pid_t pid;

	if (!module_range(&from, &to) || !get_text("failslab/require-start", text, sizeof(text)))
		SKIP(return, "no stack filter (CONFIG_FAULT_INJECTION_STACKTRACE_FILTER)");
	ns->s.npeers = 2;
	ns->dead = 60;
	ASSERT_EQ(0, nl_connect(ns));
	snprintf(text, sizeof(text), "0x%lx", from);
	ASSERT_TRUE(put_text("failslab/require-start", text));
	snprintf(text, sizeof(text), "0x%lx", to);
	ASSERT_TRUE(put_text("failslab/require-end", text));
	for (round = 0; round < WORKER_ROUNDS; round++) {
		snprintf(text, sizeof(text), "%d", round * 7 % 61 + 1);
		ASSERT_TRUE(put_text("failslab/interval", text));
		ASSERT_TRUE(put_text("failslab/times", "1"));
		ASSERT_TRUE(put_text("failslab/probability", "100"));
		pid = other_run(&ns->s, worker_io);
		/* One in three loses a connection meanwhile, and gives all to the other. */
		if (round % 3 == 0)
			kill(ns->s.peer[round % 2], SIGKILL);
		for (end = now_ms() + scaled(20000); !exited(pid) && now_ms() < end; usleep(5000))
			lost += mend(ns);
		i = other_wait(pid, 0);
		put_text("failslab/probability", "0");
		get_text("failslab/times", text, sizeof(text));
		injected += atoi(text) == 0;
		ASSERT_LE(0, i) TH_LOG("round %d: I/O does not end", round);
		bad += i;
		ASSERT_EQ(1, nl_connected(ns->s.dev.index)) TH_LOG("round %d", round);
		lost += mend(ns);
		i = other_wait(other_run(&ns->s, nl_read_other), BOUNDED);
		ASSERT_EQ(0, i) TH_LOG("round %d: it does not go on", round);
	}
	ksft_print_msg("%d rounds: %d allocations failed, %d connections lost, %d with errors\n",
		       WORKER_ROUNDS, injected, lost, bad);
	EXPECT_LT(0, injected);
	EXPECT_EQ(0, bad) TH_LOG("a connection that is lost is no error");
	EXPECT_EQ(0, other_wait(other_run(&ns->s, read_all), 10000));
	EXPECT_EQ(0, nl_disconnect(ns->s.dev.index));
	nothing_left(_metadata, self, round);
}

TEST_HARNESS_MAIN
