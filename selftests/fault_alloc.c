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

/* Where vmalloc is; once, for it takes seconds on a slow kernel. */
static char vmalloc_from[32], vmalloc_to[32];
static bool vmalloc_found;

static void __attribute__((constructor)) find_vmalloc(void)
{
	if (!access(FAULT_NTH, W_OK))
		vmalloc_found = function_range("__vmalloc_node_range_noprof", vmalloc_from,
					       vmalloc_to);
}

static const char *faults_on(void)
{
	size_t i;

	if (access(FAULT_NTH, W_OK))
		return "the kernel has no " FAULT_NTH " (CONFIG_FAULT_INJECTION)";
	if (access(FAULT_DEBUG "failslab", F_OK) || access(FAULT_DEBUG "fail_page_alloc", F_OK))
		return "no failslab or fail_page_alloc in debugfs";
	/* It prints its stack when it has no memory, which looks like a bug in the log. */
	if (!vmalloc_found)
		return "cannot tell vmalloc from others in /proc/kallsyms";
	for (i = 0; i < ARRAY_SIZE(settings); i++) {
		const char *value = settings[i].value;

		if (!value)
			value = strstr(settings[i].name, "start") ? vmalloc_from : vmalloc_to;
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
	const struct operation *op;
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
	int (*before)(struct try *t);
	int (*act)(struct try *t);		/* with the failing allocation */
	int (*after)(struct try *t, int ret);
	/* Instead of those three: the message to be sent. */
	void (*message)(struct nl_msg *m, struct nl_session *ns);
	/* What the test does until it has returned: NULL, or what is wrong. */
	const char *(*meanwhile)(struct try *t);
	unsigned long cmd;
	int oflags;
	int npeers;				/* 0: any */
	bool tcp;
	bool stays;				/* its process is there when the test looks */
	bool must;				/* it succeeds in any case */
	int also;				/* an errno besides those that say "no memory" */
};

static int fail_nth(int fd, int n)
{
	char text[16];
	int len = snprintf(text, sizeof(text), "%d", n);

	return pwrite(fd, text, len, 0) == len ? 0 : -errno;
}

#define IO_BYTES	(128UL << 10)
static unsigned char io_buf[IO_BYTES] __aligned(4096);

/* What the operations consist of. */

static int op_open(struct try *t)
{
	t->dev = open(t->ns->s.dev.path, O_RDWR | O_CLOEXEC | t->op->oflags);
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

static int do_ioctl(struct try *t, unsigned long cmd, unsigned long arg)
{
	return ioctl(t->dev, cmd, arg) < 0 ? -errno : 0;
}

static int op_ioctl(struct try *t)
{
	return do_ioctl(t, t->op->cmd, 0);
}

static int op_set_sock(struct try *t)
{
	return do_ioctl(t, NBD_SET_SOCK, t->ns->s.fd[0]);
}

static int op_set_second_sock(struct try *t)
{
	return do_ioctl(t, NBD_SET_SOCK, t->ns->s.fd[1]);
}

static int op_open_and_set_sock(struct try *t)
{
	return op_open(t) ?: op_set_sock(t);
}

static int op_setup(struct try *t)
{
	int ret = op_open(t), i;

	for (i = 0; i < t->ns->s.npeers && !ret; i++)
		ret = do_ioctl(t, NBD_SET_SOCK, t->ns->s.fd[i]);
	ret = ret ?: do_ioctl(t, NBD_SET_BLKSIZE, NL_BLKSIZE);
	ret = ret ?: do_ioctl(t, NBD_SET_SIZE, PEER_SIZE);
	return ret ?: do_ioctl(t, NBD_SET_FLAGS, NL_FLAGS | NBD_FLAG_CAN_MULTI_CONN);
}

static int op_genl(struct try *t)
{
	struct timeval tv = { .tv_sec = scaled(BOUNDED) / 1000 };
	int ret = genl_open(&t->genl);

	if (ret)
		return ret;
	setsockopt(t->genl.fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
	t->msg = malloc(sizeof(*t->msg));
	if (!t->msg)
		return -ENOMEM;
	t->op->message(t->msg, t->ns);
	return 0;
}

static void msg_connect(struct nl_msg *m, struct nl_session *ns)
{
	nl_begin_connect(m, ns, ns->s.dev.index, ns->s.fd, ns->s.npeers);
}

static void msg_reconnect(struct nl_msg *m, struct nl_session *ns)
{
	nl_begin(m, NBD_CMD_RECONFIGURE, ns->s.dev.index);
	nl_socks(m, &ns->s.fd[0], 1);
}

static void msg_resize(struct nl_msg *m, struct nl_session *ns)
{
	nl_begin(m, NBD_CMD_RECONFIGURE, ns->s.dev.index);
	nl_u64(m, NBD_ATTR_SIZE_BYTES, PEER_SIZE / 2);
	nl_u64(m, NBD_ATTR_BLOCK_SIZE_BYTES, 1024);
	nl_u64(m, NBD_ATTR_TIMEOUT, 20);
}

static void msg_disconnect(struct nl_msg *m, struct nl_session *ns)
{
	nl_begin(m, NBD_CMD_DISCONNECT, ns->s.dev.index);
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

/* Trying one */

static void try_main(struct try *t, int n)
{
	static const struct operation by_netlink = {
		.before = op_genl, .act = op_genl_send, .after = op_genl_answer
	};
	const struct operation *op = t->op->message ? &by_netlink : t->op;
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
	t->op = op;
	nbd_children_forget();
	t->pid = fork_quiet();
	if (!t->pid)
		try_main(t, n);
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
	int n, ret;		/* which allocation has failed, and what the try has returned */
	int sockets;
};

#define AT_SITE(fmt, ...)	TH_LOG("site %d" fmt, self->n, ##__VA_ARGS__)

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

/* There are so many more sockets than at the start. */
static void more_sockets(struct __test_metadata *_metadata, FIXTURE_DATA(alloc) * self, int more)
{
	ASSERT_TRUE(WAIT_UNTIL(count_sockets() == self->sockets + more, SOON))
		AT_SITE(": %d sockets, not %d", count_sockets(), self->sockets + more);
}

/* Nothing is left of what was tried. */
static void nothing_left(struct __test_metadata *_metadata, FIXTURE_DATA(alloc) * self)
{
	struct peer_session *s = &self->ns.s;
	int i;

	for (i = 0; i < s->npeers; i++) {
		ASSERT_TRUE(WAIT_UNTIL(exited(s->peer[i]), SOON))
			AT_SITE(": server %d sees no end", i);
		reap(s->peer[i], SOON);
		s->peer[i] = 0;
	}
	ASSERT_TRUE(WAIT_UNTIL(nbd_idle(&s->dev), SOON)) AT_SITE(": not idle");
	more_sockets(_metadata, self, 0);
}

/* The device can be read, and is disconnected. */
static void ends_well(struct __test_metadata *_metadata, FIXTURE_DATA(alloc) * self)
{
	ASSERT_EQ(0, other_wait(other_run(&self->ns.s, read_block), BOUNDED)) AT_SITE(": reading");
	ASSERT_EQ(0, nl_disconnect(self->ns.s.dev.index)) AT_SITE("");
}

static void goes_on(struct __test_metadata *_metadata, FIXTURE_DATA(alloc) * self)
{
	ASSERT_EQ(0, other_wait(other_run(&self->ns.s, nl_read_other), BOUNDED))
		AT_SITE(": %d", self->ret);
}

/* A session that works, from its connection to its end. */
static void works(struct __test_metadata *_metadata, FIXTURE_DATA(alloc) * self)
{
	ASSERT_EQ(0, nl_connect(&self->ns)) AT_SITE(": %s", self->ns.answer.text);
	ends_well(_metadata, self);
	nothing_left(_metadata, self);
}

/* What the operation has returned. Its process is still there. */
static int try_once(struct __test_metadata *_metadata, FIXTURE_DATA(alloc) * self, struct try *t,
		    const struct operation *op, int n)
{
	const char *wrong = NULL;

	try_start(t, &self->ns, op, n);
	if (op->meanwhile)
		wrong = op->meanwhile(t);
	EXPECT_EQ(NULL, wrong) AT_SITE(": %s", wrong);
	return try_result(t);
}

/*
 * On a machine so slow that a walk takes longer than NBD_FAULT_SECONDS (0: no limit), some of the
 * rest are left out by chance.
 */
static int skip_sites(FIXTURE_DATA(alloc) * self)
{
	const char *seconds = getenv("NBD_FAULT_SECONDS");
	int limit = seconds ? atoi(seconds) : 40, range = 11;
	long long over = limit ? (now_ms() - self->tally.start) / (limit * 1000) : 0;

	if (!over)
		return 0;
	/* More and more, so that it comes to an end. */
	while (--over > 0 && range < 1000)
		range *= 4;
	return random() % range;
}

/*
 * A walk is a loop while this is true: for n = 1, 2, ... until nothing was injected. Each round
 * prepares what the operation needs and tries it; the loop's body looks at what has come of it.
 */
static bool next_site(struct __test_metadata *_metadata, FIXTURE_DATA(alloc) * self,
		      const struct operation *op, int (*prepare)(FIXTURE_DATA(alloc) * self))
{
	struct tally *t = &self->tally;

	if (self->t.pid)
		ASSERT_TRUE(try_end(&self->t));
	if (self->n && self->t.sh->left) {
		/* The last round was without a fault. */
		EXPECT_EQ(0, self->ret) TH_LOG("without a fault");
		t->tried--;
		t->fine--;
		tally_show(t, _metadata->name, self->n - self->t.sh->left);
		report_count(t->tried, "sites");
		return false;
	}
	if (!self->n)
		t->start = now_ms();
	self->n += 1 + skip_sites(self);
	EXPECT_GT(MANY_SITES, self->n);
	if (self->n >= MANY_SITES)
		return false;

	if (op->npeers)
		self->ns.s.npeers = op->npeers;
	if (prepare)
		ASSERT_EQ(0, prepare(self)) AT_SITE("");
	self->ret = try_once(_metadata, self, &self->t, op, self->n);
	tally_add(t, self->ret);
	EXPECT_TRUE(!self->ret || self->ret == -op->also || (is_clean(self->ret) && !op->must))
		AT_SITE(": %s", strerrorname_np(-self->ret));
	if (!op->stays)
		ASSERT_TRUE(try_end(&self->t));
	return true;
}

static int servers(FIXTURE_DATA(alloc) * self)
{
	return nl_peers(&self->ns);
}

static int connection(FIXTURE_DATA(alloc) * self)
{
	return nl_connect(&self->ns);
}

/* Once more, without a fault. */
static void try_again(struct __test_metadata *_metadata, FIXTURE_DATA(alloc) * self,
		      const struct operation *op)
{
	ASSERT_EQ(0, servers(self));
	ASSERT_EQ(0, try_once(_metadata, self, &self->again, op, 0)) AT_SITE(": again");
}

/* A test that is nothing but this walk of an operation. */
#define WALK(test, walk)							\
static const struct operation test##_op;					\
TEST_F_TIMEOUT(alloc, test, WALK_SECONDS)					\
{										\
	walk(_metadata, self, &test##_op);					\
}										\
static const struct operation test##_op =

/* Opening and closing */

static void walk_idle(struct __test_metadata *_metadata, FIXTURE_DATA(alloc) * self,
		      const struct operation *op)
{
	while (next_site(_metadata, self, op, NULL))
		;
	works(_metadata, self);
}

/* With two connections, for a fault may cost one: a request that could not be sent. */
static void walk_connected(struct __test_metadata *_metadata, FIXTURE_DATA(alloc) * self,
			   const struct operation *op)
{
	while (next_site(_metadata, self, op, connection)) {
		ends_well(_metadata, self);
		nothing_left(_metadata, self);
	}
	works(_metadata, self);
}

/* The operation leaves nothing of a setup, while its process still has the device open, too. */
static void walk_setup(struct __test_metadata *_metadata, FIXTURE_DATA(alloc) * self,
		       const struct operation *op)
{
	while (next_site(_metadata, self, op, servers))
		nothing_left(_metadata, self);
	works(_metadata, self);
}

WALK(open_idle, walk_idle) { .act = op_open, .after = op_close_after };
WALK(open_connected, walk_connected) { .act = op_open, .after = op_close_after, .npeers = 2 };
WALK(close_idle, walk_idle) { .before = op_open, .act = op_close };
WALK(close_connected, walk_connected) { .before = op_open, .act = op_close, .npeers = 2 };
/* The last close drops the setup. */
WALK(close_setup, walk_setup) { .before = op_setup, .act = op_close, .stays = true };
WALK(clear_sock_of_a_setup, walk_setup) {
	.before = op_setup, .act = op_ioctl, .cmd = NBD_CLEAR_SOCK, .stays = true, .must = true,
};

/* Setting up */

TEST_F_TIMEOUT(alloc, set_sock, WALK_SECONDS)
{
	static const struct operation op = { .before = op_open, .act = op_set_sock, .stays = true };
	struct peer_session *s = &self->ns.s;

	while (next_site(_metadata, self, &op, servers)) {
		if (self->ret) {
			nothing_left(_metadata, self);
			/* The first one still has the device open, and is not its owner. */
			try_again(_metadata, self, &op);
			EXPECT_FALSE(exited(s->peer[0]));
			ASSERT_TRUE(try_end(&self->again));
		} else {
			EXPECT_FALSE(exited(s->peer[0])) AT_SITE(": not kept");
		}
		ASSERT_TRUE(try_end(&self->t));
		nothing_left(_metadata, self);
	}
	works(_metadata, self);
}

TEST_F_TIMEOUT(alloc, set_second_sock, WALK_SECONDS)
{
	static const struct operation op = {
		.before = op_open_and_set_sock, .act = op_set_second_sock, .npeers = 2,
		.stays = true
	};
	struct peer_session *s = &self->ns.s;

	while (next_site(_metadata, self, &op, servers)) {
		EXPECT_EQ(!!self->ret, WAIT_UNTIL(exited(s->peer[1]), self->ret ? SOON : 0))
			AT_SITE(": %d", self->ret);
		EXPECT_FALSE(exited(s->peer[0])) AT_SITE(": the first socket is gone");
		ASSERT_TRUE(try_end(&self->t));
		nothing_left(_metadata, self);
	}
	works(_metadata, self);
}

/* A session by ioctl */

/* A disconnect from elsewhere, if it comes so far. */
static const char *end_session(struct try *t)
{
	struct peer_session *s = &t->ns->s;

	if (!WAIT_UNTIL(t->sh->done || nbd_running(&s->dev), BOUNDED))
		return "neither running nor refused";
	if (t->sh->done)
		return NULL;
	if (other_wait(other_run(s, read_block), BOUNDED))
		return "reading";
	return other_wait(other_ioctl(s, NBD_DISCONNECT), BOUNDED) ? "NBD_DISCONNECT" : NULL;
}

static const struct operation do_it = {
	.before = op_setup, .act = op_ioctl, .cmd = NBD_DO_IT, .meanwhile = end_session
};

TEST_F_TIMEOUT(alloc, do_it, WALK_SECONDS)
{
	while (next_site(_metadata, self, &do_it, servers)) {
		nothing_left(_metadata, self);
		if (self->ret) {
			try_again(_metadata, self, &do_it);
			ASSERT_TRUE(try_end(&self->again));
			nothing_left(_metadata, self);
		}
	}
}

static int running(FIXTURE_DATA(alloc) * self)
{
	int ret = servers(self);

	if (ret)
		return ret;
	try_start(&self->again, &self->ns, &do_it, 0);
	return WAIT_UNTIL(nbd_running(&self->ns.s.dev), BOUNDED) ? 0 : -ETIME;
}

static void walk_end(struct __test_metadata *_metadata, FIXTURE_DATA(alloc) * self,
		     const struct operation *op)
{
	while (next_site(_metadata, self, op, running)) {
		EXPECT_EQ(0, try_result(&self->again)) AT_SITE(": DO_IT");
		ASSERT_TRUE(try_end(&self->t));
		ASSERT_TRUE(try_end(&self->again));
		nothing_left(_metadata, self);
	}
	works(_metadata, self);
}

WALK(clear_sock_of_a_session, walk_end) {
	.before = op_open, .act = op_ioctl, .cmd = NBD_CLEAR_SOCK, .stays = true, .must = true,
};

WALK(ioctl_disconnect, walk_end) {
	.before = op_open, .act = op_ioctl, .cmd = NBD_DISCONNECT, .stays = true, .must = true,
};

/* Netlink */

/* CONNECT was tried; whatever it has done, nobody is connected after this. */
static void end_connect(struct __test_metadata *_metadata, FIXTURE_DATA(alloc) * self)
{
	struct nbd_dev *d = &self->ns.s.dev;

	/* That nobody could be told does not undo it. */
	if (!self->ret)
		EXPECT_TRUE(nbd_running(d)) AT_SITE(": not running");
	if (self->ret == -ENOMEM)
		EXPECT_FALSE(nbd_running(d)) AT_SITE(": running");
	if (nbd_running(d))
		ends_well(_metadata, self);
}

static int servers_with_a_name(FIXTURE_DATA(alloc) * self)
{
	self->ns.backend = "a backend whose name is copied";
	return servers(self);
}

static void walk_connect(struct __test_metadata *_metadata, FIXTURE_DATA(alloc) * self,
			 const struct operation *op)
{
	struct nl_session *ns = &self->ns;

	while (next_site(_metadata, self, op, servers_with_a_name)) {
		end_connect(_metadata, self);
		nothing_left(_metadata, self);
		/* So that the next one has another number of queues again. */
		ns->s.npeers = 1;
		ns->backend = NULL;
		if (self->ret || op->npeers > 1)
			works(_metadata, self);
	}
}

WALK(connect, walk_connect) { .message = msg_connect, .npeers = 1 };
WALK(connect_with_four_sockets, walk_connect) { .message = msg_connect, .npeers = 4 };

static bool new_exists(struct nbd_dev *d)
{
	char path[64];

	snprintf(path, sizeof(path), "/sys/block/nbd%d", d->index);
	return !access(path, F_OK) || !access(d->path, F_OK);
}

static int servers_without_a_device(FIXTURE_DATA(alloc) * self)
{
	return new_exists(&self->ns.s.dev) ? -EEXIST : servers(self);
}

/* The device is made for it. */
TEST_F_TIMEOUT(alloc, connect_to_a_new_device, WALK_SECONDS)
{
	/* device_add_disk() does not look whether there was memory for its name. */
	static const struct operation op = { .message = msg_connect, .also = EINVAL };
	struct nl_session *ns = &self->ns;
	int picked = ns->s.dev.index;

	nl_use(ns, NEW_INDEX);
	ns->cflags = NBD_CFLAG_DESTROY_ON_DISCONNECT;
	while (next_site(_metadata, self, &op, servers_without_a_device)) {
		end_connect(_metadata, self);
		/* With the device that was made for it. */
		EXPECT_FALSE(new_exists(&ns->s.dev)) AT_SITE("");
		EXPECT_TRUE(WAIT_UNTIL(exited(ns->s.peer[0]), SOON));
		reap(ns->s.peer[0], SOON);
		EXPECT_EQ(-ENODEV, nl_connected(NEW_INDEX)) AT_SITE("");
		if (!self->ret)
			continue;
		ASSERT_EQ(0, nl_connect(ns)) AT_SITE(": again: %s", ns->answer.text);
		ends_well(_metadata, self);
		ASSERT_TRUE(reap(ns->s.peer[0], BOUNDED));
		more_sockets(_metadata, self, 0);
	}
	ns->cflags = 0;
	nl_use(ns, picked);
	works(_metadata, self);
}

static int new_server(FIXTURE_DATA(alloc) * self)
{
	struct peer_session *s = &self->ns.s;

	return nl_kill_peer(s, 0) ? nl_peer(s, 0) : -ETIME;
}

TEST_F_TIMEOUT(alloc, reconfigure_with_a_new_socket, WALK_SECONDS)
{
	static const struct operation op = { .message = msg_reconnect };
	struct nl_session *ns = &self->ns;

	ns->dead = 300;
	ASSERT_EQ(0, nl_connect(ns));
	while (next_site(_metadata, self, &op, new_server)) {
		ASSERT_EQ(1, nl_connected(ns->s.dev.index)) AT_SITE("");
		/* That nobody could be told does not undo it. */
		if (self->ret &&
		    WAIT_UNTIL(exited(ns->s.peer[0]), self->ret == -ENOBUFS ? 200 : SOON)) {
			reap(ns->s.peer[0], SOON);
			ASSERT_EQ(0, nl_reconnect(ns, 0)) AT_SITE(": again");
		}
		goes_on(_metadata, self);
		more_sockets(_metadata, self, 2);
	}
	EXPECT_EQ(0, nl_disconnect(ns->s.dev.index));
	nothing_left(_metadata, self);
	works(_metadata, self);
}

TEST_F_TIMEOUT(alloc, reconfigure_other_values, WALK_SECONDS)
{
	static const struct operation op = { .message = msg_resize };
	struct nl_session *ns = &self->ns;

	ASSERT_EQ(0, nl_connect(ns));
	while (next_site(_metadata, self, &op, NULL)) {
		/* Back again, with all that was not changed. */
		ASSERT_EQ(0, nl_change(ns, NBD_ATTR_SIZE_BYTES, PEER_SIZE));
		ASSERT_EQ(0, nl_change(ns, NBD_ATTR_BLOCK_SIZE_BYTES, NL_BLKSIZE));
		ASSERT_EQ(0, nl_change(ns, NBD_ATTR_TIMEOUT, 0));
		EXPECT_EQ(NL_SECTORS, nbd_sys(&ns->s.dev, "size"));
		EXPECT_EQ(NL_BLKSIZE, nbd_sys(&ns->s.dev, "queue/logical_block_size"));
		goes_on(_metadata, self);
	}
	EXPECT_EQ(0, nl_disconnect(ns->s.dev.index));
	nothing_left(_metadata, self);
}

TEST_F_TIMEOUT(alloc, disconnect, WALK_SECONDS)
{
	static const struct operation op = { .message = msg_disconnect };
	struct nl_session *ns = &self->ns;

	while (next_site(_metadata, self, &op, connection)) {
		if (!self->ret)
			EXPECT_FALSE(nbd_running(&ns->s.dev)) AT_SITE("");
		ASSERT_EQ(0, nl_disconnect(ns->s.dev.index)) AT_SITE("");
		nothing_left(_metadata, self);
	}
	works(_metadata, self);
}

/* Reading and writing: two connections, of which a fault may cost one, but never the request. */

/*
 * New servers for those that have lost their connection; they are counted. One that cannot be given
 * to the driver ends, and the next call sees that.
 */
static int mend(struct nl_session *ns, int *lost)
{
	int i, err, ret = 0;

	for (i = 0; i < ns->s.npeers; i++) {
		if (!exited(ns->s.peer[i]))
			continue;
		reap(ns->s.peer[i], SOON);
		err = nl_reconnect(ns, i);
		ret = ret ?: err;
		*lost += 1;
	}
	return ret;
}

static void walk_io(struct __test_metadata *_metadata, FIXTURE_DATA(alloc) * self,
		    const struct operation *op)
{
	struct nl_session *ns = &self->ns;
	int lost = 0;

	ns->s.tcp = op->tcp;
	ns->s.npeers = 2;
	ns->dead = 60;
	ASSERT_EQ(0, nl_connect(ns));
	while (next_site(_metadata, self, op, NULL)) {
		goes_on(_metadata, self);
		ASSERT_EQ(0, mend(ns, &lost)) AT_SITE("");
	}
	ksft_print_msg("of these, %d cost a connection\n", lost);
	EXPECT_EQ(0, other_wait(other_run(&ns->s, read_all), 10000));
	EXPECT_EQ(0, nl_disconnect(ns->s.dev.index));
}

/* Who writes to a cache hears of any error as EIO. */
WALK(read_direct, walk_io) { .before = op_open, .act = op_read, .oflags = O_DIRECT, .also = EIO };
WALK(write_direct, walk_io) { .before = op_open, .act = op_write, .oflags = O_DIRECT, .also = EIO };
WALK(write_direct_over_tcp, walk_io) {
	.before = op_open, .act = op_write, .oflags = O_DIRECT, .also = EIO, .tcp = true,
};

WALK(read_cached, walk_io) { .before = op_open, .act = op_read, .also = EIO };
WALK(write_cached, walk_io) { .before = op_open, .act = op_write, .also = EIO };

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

TEST_F_TIMEOUT(alloc, workers, WALK_SECONDS)
{
	struct nl_session *ns = &self->ns;
	const int rounds = scaled(1) > 1 ? WORKER_ROUNDS / 2 : WORKER_ROUNDS;
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
	for (round = 0; round < rounds; round++) {
		snprintf(text, sizeof(text), "%d", round * 7 % 61 + 1);
		ASSERT_TRUE(put_text("failslab/interval", text));
		ASSERT_TRUE(put_text("failslab/times", "1"));
		ASSERT_TRUE(put_text("failslab/probability", "100"));
		pid = other_run(&ns->s, worker_io);
		/* One in three loses a connection meanwhile, and gives all to the other. */
		if (round % 3 == 0)
			kill(ns->s.peer[round % 2], SIGKILL);
		for (end = now_ms() + scaled(20000); !exited(pid) && now_ms() < end; usleep(5000))
			mend(ns, &lost);
		i = other_wait(pid, 0);
		put_text("failslab/probability", "0");
		get_text("failslab/times", text, sizeof(text));
		injected += atoi(text) == 0;
		ASSERT_LE(0, i) TH_LOG("round %d: I/O does not end", round);
		bad += i;
		ASSERT_EQ(1, nl_connected(ns->s.dev.index)) TH_LOG("round %d", round);
		mend(ns, &lost);
		i = other_wait(other_run(&ns->s, nl_read_other), BOUNDED);
		ASSERT_EQ(0, i) TH_LOG("round %d: it does not go on", round);
	}
	ksft_print_msg("%d rounds: %d allocations failed, %d connections lost, %d with errors\n",
		       rounds, injected, lost, bad);
	EXPECT_LT(0, injected);
	EXPECT_EQ(0, bad) TH_LOG("a connection that is lost is no error");
	EXPECT_EQ(0, other_wait(other_run(&ns->s, read_all), 10000));
	EXPECT_EQ(0, nl_disconnect(ns->s.dev.index));
	self->n = round;
	nothing_left(_metadata, self);
}

TEST_HARNESS_MAIN
